//! Starting a VM.
//!
//! ```text
//!  ownership: host@n+1, unclaimed     (in the transaction that makes the task)
//!      |
//!      v    not there                answered
//!  ask host ----------> start it there ------> running: claimed
//!      ^   '- there: see what it is  |
//!      '--- out of reach ------------'
//! ```

use std::sync::Arc;
use std::time::Duration;

use godwit_types::agent::{LocalState, LocalVm, StartVm};
use godwit_types::check::{Check, Finding, refuse};
use godwit_types::ownership::Ownership;
use godwit_types::task::{Task, TaskKind};
use godwit_types::vm::StartRequest;
use godwit_types::{ApiError, Epoch, ErrorCode, HostName};

use super::{Driver, Ending, Silence, cancelled_error, drive, new_task, require_idle, told};
use crate::fit;
use crate::manager::{Manager, unknown_host, unknown_vm};
use crate::moving::moving;
use crate::rulebook;
use crate::store::{HostRow, Power, Tx, VmRow};

/// How long an agent may take to start a VM.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// `POST /v1/vms/{vm}/start`.
pub(crate) async fn request(
    manager: &Arc<Manager>,
    vm: String,
    asked: StartRequest,
) -> Result<Task, ApiError> {
    let plan = move |tx: &Tx<'_>| rulebook::admitted(tx, || plan(tx, &vm, asked.host.as_ref()));
    let task = manager.store.write(plan).await?;
    drive(manager, task.clone(), false);
    Ok(task)
}

fn plan(tx: &Tx<'_>, vm: &str, host: Option<&HostName>) -> Result<Task, ApiError> {
    let vm = tx.vm(vm)?.ok_or_else(|| unknown_vm(vm))?;
    require_idle(tx, &vm)?;
    let owned = tx.ownership(vm.id)?.map(|(owned, _)| owned);
    require_not_running(tx, &vm, owned.as_ref())?;
    let last = owned.as_ref().map(|owned| tx.host(&owned.owner)).transpose()?.flatten();
    let host = choose(tx, &vm, host, last.as_ref())?;
    let epoch = owned.map_or(Epoch(0), |owned| owned.epoch).next();
    tx.put_ownership(&Ownership { vm: vm.id, owner: host.clone(), epoch, claimed: false })?;
    let message = format!("{host} starts {}", vm.name);
    let task = new_task(&vm, TaskKind::StartVm { host }, message);
    tx.add_task(&task, &())?;
    Ok(task)
}

fn require_not_running(tx: &Tx<'_>, vm: &VmRow, owned: Option<&Ownership>) -> Result<(), ApiError> {
    let Some(owned) = owned.filter(|_| vm.power == Power::Running) else { return Ok(()) };
    let (name, host) = (&vm.name, &owned.owner);
    if tx.host(host)?.is_some_and(|host| host.up) {
        return Err(ApiError::new(ErrorCode::Conflict, format!("{name} runs on {host} already")));
    }
    let message = format!("{name} may still run on {host}, which the manager does not hear from");
    Err(ApiError::new(ErrorCode::Refused, message).remedy(format!("bring {host} or the network to it back")))
}

/// The host named, or the best one; one that reaches the VM's disks where `last` had them.
fn choose(
    tx: &Tx<'_>,
    vm: &VmRow,
    host: Option<&HostName>,
    last: Option<&HostRow>,
) -> Result<HostName, ApiError> {
    let Some(name) = host else {
        let mut hosts = tx.hosts()?;
        hosts.retain(|host| elsewhere(vm, host, last).is_empty());
        return fit::place(&vm.spec, &hosts);
    };
    let host: HostRow = tx.host(name)?.ok_or_else(|| unknown_host(name.as_str()))?;
    let mut found = fit::obstacles(&vm.spec, &host);
    found.extend(elsewhere(vm, &host, last));
    refuse(&format!("{} cannot start on {name}", vm.name), &found)?;
    Ok(host.name)
}

/// Disks that a host does not share with the one that had the VM last: what it has under their names is something else, such
/// as what the VM has left there when it moved with its disks.
fn elsewhere(vm: &VmRow, host: &HostRow, last: Option<&HostRow>) -> Vec<Finding> {
    let images = moving(&vm.spec, last, host, None).images;
    let finding = |image| {
        let (host, last) = (&host.name, last.map_or("", |last| last.name.as_str()));
        let reason = format!("its disk {image} is on {last}, and {host} does not share that datastore");
        let remedy =
            format!("start it on {last}, then move it with its disks: godwit vm migrate --move-disks");
        Finding::blocked(Check::Disks, reason, remedy)
    };
    images.iter().map(finding).collect()
}

/// Drives the task to its end.
pub(super) async fn run(driver: &mut Driver, host: &HostName) -> Result<Ending, ApiError> {
    let id = driver.task.vm;
    let rows = driver.manager.store.read(move |tx| Ok((tx.vm(&id.to_string())?, tx.ownership(id)?)));
    let (Some(vm), Some((owned, _))) = rows.await? else {
        return Ok(failed(driver, host, unknown_vm(&id.to_string())));
    };
    let start = StartVm { name: vm.name, epoch: owned.epoch, spec: vm.spec };
    let mut silence = Silence::default();
    loop {
        let Some(answer) = driver.unless_cancelled(attempt(driver, host, &start)).await? else {
            let error =
                cancelled_error("the start").remedy("the VM may have been started already: godwit vm show");
            return Ok(failed(driver, host, error));
        };
        silence.heard(&answer);
        match answer {
            Ok(local) => return Ok(started(driver, host, &local)),
            Err(error)
                if error.code != ErrorCode::Unreachable
                    || silence.outlasts(driver.manager.limits.patience) =>
            {
                return Ok(failed(driver, host, error));
            }
            Err(error) => driver.say(format!("waiting for {host}: {}", error.message)).await?,
        }
        driver.pause().await;
    }
}

/// Finds the VM running at its epoch, or starts it.
async fn attempt(driver: &Driver, host: &HostName, start: &StartVm) -> Result<LocalVm, ApiError> {
    let agent = driver.agent(host).await?;
    let path = format!("/v1/vms/{}", driver.task.vm);
    match agent.get::<LocalVm>(&path).await {
        Ok(local) if local.epoch == start.epoch => Ok(local),
        Err(error) if error.code != ErrorCode::NotFound => Err(error),
        Ok(_) | Err(_) => agent.with_timeout(START_TIMEOUT).post(&format!("{path}/start"), start).await,
    }
}

fn started(driver: &Driver, host: &HostName, local: &LocalVm) -> Ending {
    let name = &driver.task.vm_name;
    match local.state {
        LocalState::Crashed => {
            let why = local.detail.as_deref().unwrap_or("its process ended by itself");
            let message = format!("{name} crashed on {host} as it started: {why}");
            let error = ApiError::new(ErrorCode::Failed, message);
            failed(driver, host, error.remedy(format!("read the VM's log on {host}")))
        }
        LocalState::Stopped => Ending::succeeded(
            "vm.stopped",
            Power::Stopped,
            format!("{name} started on {host} and shut itself down"),
        ),
        _ => Ending::succeeded("vm.started", Power::Running, format!("{name} started on {host}")),
    }
}

fn failed(driver: &Driver, host: &HostName, error: ApiError) -> Ending {
    let message = format!("{} was not started on {host}: {}", driver.task.vm_name, told(&error));
    Ending::failed("vm.start_failed", message, error)
}
