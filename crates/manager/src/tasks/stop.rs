//! Stopping a VM: the agent is asked until it answers; one that knows no such VM has stopped it.

use std::sync::Arc;
use std::time::Duration;

use godwit_types::agent::StopVm;
use godwit_types::api::Empty;
use godwit_types::task::{Task, TaskKind};
use godwit_types::{ApiError, ErrorCode, HostName};

use super::{Driver, Ending, Silence, cancelled_error, drive, new_task, require_idle, told};
use crate::manager::{Manager, unknown_vm};
use crate::store::{Power, Tx};

/// Longest time that a guest may be given to shut down, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 60 * 60 * 1000;
/// How much longer than the guest an agent may take to answer.
const AGENT_MARGIN: Duration = Duration::from_secs(15);

/// `POST /v1/vms/{vm}/stop`.
pub(crate) async fn request(manager: &Arc<Manager>, vm: String, asked: StopVm) -> Result<Task, ApiError> {
    if asked.timeout_ms > TIMEOUT_MS_MAX {
        let message =
            format!("a guest is given at most {TIMEOUT_MS_MAX} ms to shut down, not {}", asked.timeout_ms);
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    let task = manager.store.write(move |tx| plan(tx, &vm, &asked)).await?;
    drive(manager, task.clone(), false);
    Ok(task)
}

fn plan(tx: &Tx<'_>, vm: &str, asked: &StopVm) -> Result<Task, ApiError> {
    let vm = tx.vm(vm)?.ok_or_else(|| unknown_vm(vm))?;
    require_idle(tx, &vm)?;
    let owned = tx.ownership(vm.id)?.map(|(owned, _)| owned);
    let Some(owned) = owned.filter(|_| vm.power == Power::Running) else {
        return Err(ApiError::new(ErrorCode::Refused, format!("{} is not running", vm.name)));
    };
    let message = format!("{} stops {}", owned.owner, vm.name);
    let task = new_task(&vm, TaskKind::StopVm { force: asked.force }, message);
    tx.add_task(&task, asked)?;
    Ok(task)
}

/// Drives the task to its end.
pub(super) async fn run(driver: &mut Driver) -> Result<Ending, ApiError> {
    let (id, vm) = (driver.task.id, driver.vm);
    let rows = driver.manager.store.read(move |tx| Ok((tx.task_request(id)?, tx.ownership(vm)?)));
    let (asked, owned): (StopVm, _) = rows.await?;
    let Some((owned, _)) = owned else { return Ok(failed(driver, unknown_vm(&vm.to_string()))) };
    let mut silence = Silence::default();
    loop {
        let Some(answer) = driver.unless_cancelled(attempt(driver, &owned.owner, &asked)).await? else {
            let error =
                cancelled_error("the stop").remedy("the guest may shut down all the same: godwit vm show");
            return Ok(failed(driver, error));
        };
        silence.heard(&answer);
        match answer {
            Ok(()) => {
                let message = format!("{} stopped on {}", driver.name, owned.owner);
                return Ok(Ending::succeeded("vm.stopped", Power::Stopped, message));
            }
            Err(error)
                if error.code != ErrorCode::Unreachable
                    || silence.outlasts(driver.manager.limits.patience) =>
            {
                return Ok(failed(driver, error));
            }
            Err(error) => driver.say(format!("waiting for {}: {}", owned.owner, error.message)).await?,
        }
        driver.pause().await;
    }
}

async fn attempt(driver: &Driver, host: &HostName, asked: &StopVm) -> Result<(), ApiError> {
    let timeout = Duration::from_millis(asked.timeout_ms) + AGENT_MARGIN;
    let agent = driver.agent(host).await?.with_timeout(timeout);
    match agent.post::<_, Empty>(&format!("/v1/vms/{}/stop", driver.vm), asked).await {
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        other => other.map(|_| ()),
    }
}

fn failed(driver: &Driver, error: ApiError) -> Ending {
    let message = format!("{} was not stopped: {}", driver.name, told(&error));
    Ending::failed("vm.stop_failed", message, error)
}
