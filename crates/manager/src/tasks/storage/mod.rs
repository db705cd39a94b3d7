//! Moving disks of a running VM to another datastore of its host.
//!
//! ```text
//!  `copying` in the record       (in the transaction that makes the task)
//!      |
//!      v  the host begins, and is polled: judge.rs says what next
//!  in sync --> hold: both images are the same, whatever comes
//!      |                  |
//!      |  cancel,         v
//!      |  failure    `switched` in the record: the VM's disks lie in their new places
//!      v                  |
//!  `aborted`              '--> the host is told, again and again --> what the disks have left is removed
//!  -> the host is told
//! ```
//!
//! While it is held, each image has all that the guest was told is written, so that the record may change at any moment
//! between two of its writes. Whichever it names is the disk if everything stops.

mod attempt;
mod judge;

use std::sync::Arc;
use std::time::Duration;

use godwit_types::api::Empty;
use godwit_types::capability::GuestFacts;
use godwit_types::check::refuse;
use godwit_types::storage::MoveStorage;
use godwit_types::task::{Task, TaskKind};
use godwit_types::{ApiError, ErrorCode, HostName, MigrationId, VmId};
use uuid::Uuid;

use self::attempt::Attempt;
use super::{Driver, Ending, drive, new_task, require_idle};
use crate::manager::{Manager, unknown_host, unknown_vm};
use crate::preflight::Situation;
use crate::relocating::{Relocation, relocating};
use crate::store::{HostRow, Power, StorageMove, StorageState, Tx, VmRow};

/// How long an agent may take to say how it gets on, or to do as told.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to say how large disks are.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(8);
/// `POST /v1/vms/{vm}/move-storage`.
pub(crate) async fn request(
    manager: &Arc<Manager>,
    vm: String,
    asked: MoveStorage,
) -> Result<Task, ApiError> {
    if asked.bandwidth_bytes_per_s_max == Some(0) {
        return Err(ApiError::new(ErrorCode::Invalid, "a bandwidth cap of 0 lets nothing through"));
    }
    let name = vm.clone();
    let (row, host) = manager.store.read(move |tx| movable(tx, &name)).await?;
    let agent = manager.agent(&host.name).await?.with_timeout(MEASURE_TIMEOUT);
    let guest: GuestFacts = agent.get(&format!("/v1/vms/{}/guest", row.id)).await?;
    let task = manager.store.write(move |tx| plan(tx, &vm, &asked, &guest)).await?;
    drive(manager, task.clone(), false);
    Ok(task)
}

/// The VM and the host that runs it for certain, if nobody is busy with it.
fn movable(tx: &Tx<'_>, vm: &str) -> Result<(VmRow, HostRow), ApiError> {
    let Situation { vm, owned, source, .. } = Situation::of(tx, vm)?;
    require_idle(tx, &vm)?;
    let name = &vm.name;
    let refused = |message: String| ApiError::new(ErrorCode::Refused, message);
    if vm.power != Power::Running {
        let remedy = format!("start it, and its disks can move while it runs: godwit vm start {name}");
        return Err(refused(format!("{name} is not running")).remedy(remedy));
    }
    let owned = owned.filter(|owned| owned.claimed).ok_or_else(|| {
        refused(format!("the host that owns {name} has not confirmed that it runs it"))
            .remedy("wait until the VM's state is certain: godwit vm show")
    })?;
    let host = source.ok_or_else(|| unknown_host(owned.owner.as_str()))?;
    if !host.up {
        let message = format!("{}, which runs {name}, is down: the manager does not hear from it", host.name);
        let remedy = format!("check the network to {} and that 'godwit host run' is alive there", host.name);
        return Err(refused(message).remedy(remedy));
    }
    Ok((vm, host))
}

fn plan(tx: &Tx<'_>, vm: &str, asked: &MoveStorage, guest: &GuestFacts) -> Result<Task, ApiError> {
    let (vm, host) = movable(tx, vm)?;
    let moving = relocating(&Relocation { vm: &vm, host: &host, asked, guest }).map_err(|found| {
        let deed = format!("the disks of {} cannot move to '{}'", vm.name, asked.to);
        refuse(&deed, &found).expect_err("what is found against it blocks it")
    })?;
    let owned = tx.ownership(vm.id)?.ok_or_else(|| unknown_vm(vm.name.as_str()))?.0;
    let kind = TaskKind::MoveStorage { host: host.name.clone(), to: asked.to.clone() };
    let task = new_task(&vm, kind, format!("{} makes the new images", host.name));
    tx.add_task(&task, asked)?;
    tx.add_storage_move(&StorageMove {
        id: MigrationId(Uuid::new_v4()),
        task: task.id,
        vm: vm.id,
        host: host.name,
        epoch: owned.epoch,
        moving,
        state: StorageState::Copying,
    })?;
    Ok(task)
}

/// Drives the task to its end.
pub(super) async fn run(driver: &mut Driver) -> Result<Ending, ApiError> {
    let id = driver.task.id;
    let rows = driver.manager.store.read(move |tx| Ok((tx.storage_move_of(id)?, tx.task_request(id)?)));
    let (m, asked): (Option<StorageMove>, MoveStorage) = rows.await?;
    let Some(m) = m else {
        let message = format!("{} is no more", driver.name);
        return Ok(Ending::failed(
            "vm.storage_move_failed",
            message.clone(),
            ApiError::new(ErrorCode::Failed, message),
        ));
    };
    Attempt::new(driver, m, asked.to.to_string()).run(asked.bandwidth_bytes_per_s_max).await
}

fn path(vm: VmId) -> String {
    format!("/v1/vms/{vm}/storage")
}

/// What the manager tells a host of a move of storage that has been decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Switch,
    Cancel,
}

/// Tells a host what became of a move.
pub(crate) async fn tell(
    manager: &Manager,
    host: &HostName,
    (vm, id): (VmId, MigrationId),
    word: Word,
) -> Result<(), ApiError> {
    let agent = manager.agent(host).await?.with_timeout(ASK_TIMEOUT);
    let path = format!("{}/{id}", path(vm));
    match word {
        Word::Switch => agent.post::<_, Empty>(&format!("{path}/switch"), &Empty {}).await.map(drop),
        Word::Cancel => agent.delete::<Empty>(&path).await.map(drop),
    }
}
