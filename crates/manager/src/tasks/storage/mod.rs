//! Moving disks of a VM to another datastore of its host, whether it runs or not.
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
//! between two of its writes. Whichever it names is the disk if everything stops. Of a VM that does not run nobody writes: its
//! task keeps it from being started, and the copy has its disks' locks.

mod attempt;
mod judge;

use std::sync::Arc;
use std::time::Duration;

use godwit_types::agent::AskDisks;
use godwit_types::api::Empty;
use godwit_types::capability::{DiskFacts, GuestFacts};
use godwit_types::check::refuse;
use godwit_types::ownership::Ownership;
use godwit_types::storage::MoveStorage;
use godwit_types::task::{Task, TaskKind};
use godwit_types::{ApiError, Epoch, ErrorCode, HostName, MigrationId, Name, VmId};
use uuid::Uuid;

use self::attempt::Attempt;
use super::{Driver, Ending, drive, new_task, require_idle};
use crate::check;
use crate::manager::{Manager, unknown_host};
use crate::moving::offer;
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
    let (name, to) = (vm.clone(), asked.to.clone());
    let candidates = manager.store.read(move |tx| Movable::candidates(tx, &name, &to)).await?;
    let (host, said) = first_that_says(manager, candidates).await?;
    let task = manager.store.write(move |tx| plan(tx, &vm, &host, &asked, &said)).await?;
    drive(manager, task.clone(), false);
    Ok(task)
}

/// The first host that can say what the VM's disks hold, or why the last one cannot.
async fn first_that_says(manager: &Manager, candidates: Vec<Movable>) -> Result<(HostName, Said), ApiError> {
    let mut why = ApiError::new(ErrorCode::Internal, "no host can move the disks");
    for movable in candidates {
        match movable.ask(manager).await {
            Ok(said) => return Ok((movable.host.name, said)),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// What the host says of the disks, and the VM's process of itself if it runs.
#[derive(Debug)]
struct Said {
    disks: Vec<DiskFacts>,
    guest: Option<GuestFacts>,
}

/// A VM that nobody is busy with, and a host that can move its disks.
#[derive(Debug)]
struct Movable {
    vm: VmRow,
    host: HostRow,
    /// At which the VM is the host's, or will be: nobody has had it yet.
    epoch: Epoch,
    /// Whether it does not run.
    at_rest: bool,
}

impl Movable {
    /// By the host that has the VM, or had it last; of one that never ran, by any that may reach its disks, and the datastore.
    fn candidates(tx: &Tx<'_>, vm: &str, to: &Name) -> Result<Vec<Self>, ApiError> {
        let Situation { vm, owned, source, .. } = Situation::of(tx, vm)?;
        require_idle(tx, &vm)?;
        let name = &vm.name;
        let at_rest = vm.power != Power::Running;
        let Some(owned) = owned else {
            let reaches = |host: &HostRow| {
                let has = |datastore| offer(host, datastore).is_some();
                host.up && has(to) && vm.spec.disks.iter().all(|disk| has(&disk.image.datastore))
            };
            let by = |host| Self { vm: vm.clone(), host, epoch: Epoch(0).next(), at_rest };
            let all: Vec<Self> = tx.hosts()?.into_iter().filter(reaches).map(by).collect();
            if all.is_empty() {
                let message =
                    format!("no host that is up has both the disks of {name} and a datastore '{to}'");
                return Err(ApiError::new(ErrorCode::Refused, message)
                    .remedy("look at what hosts have: godwit host show"));
            }
            return Ok(all);
        };
        let host = source.ok_or_else(|| unknown_host(owned.owner.as_str()))?;
        let mut against = Vec::new();
        if !at_rest && !owned.claimed {
            against.push(check::unconfirmed(&vm));
        }
        if !host.up {
            against.push(check::down(&host, if at_rest { "last had" } else { "runs" }));
        }
        refuse(&format!("the disks of {name} cannot move"), &against)?;
        Ok(vec![Self { vm, host, epoch: owned.epoch, at_rest }])
    }

    async fn ask(&self, manager: &Manager) -> Result<Said, ApiError> {
        let agent = manager.agent(&self.host.name).await?.with_timeout(MEASURE_TIMEOUT);
        let path = format!("/v1/vms/{}", self.vm.id);
        if self.at_rest {
            let question = AskDisks { spec: self.vm.spec.clone(), epoch: self.epoch };
            return Ok(Said { disks: agent.post(&format!("{path}/disks"), &question).await?, guest: None });
        }
        let guest: GuestFacts = agent.get(&format!("{path}/guest")).await?;
        Ok(Said { disks: guest.disks.clone(), guest: Some(guest) })
    }
}

fn plan(tx: &Tx<'_>, vm: &str, by: &HostName, asked: &MoveStorage, said: &Said) -> Result<Task, ApiError> {
    let by_it = |movable: &Movable| movable.host.name == *by && movable.at_rest == said.guest.is_none();
    let found = Movable::candidates(tx, vm, &asked.to)?.into_iter().find(by_it);
    let Movable { vm, host, epoch, at_rest } = found.ok_or_else(|| {
        let message = format!("something else has happened to {vm} in this moment");
        ApiError::conflict(message).remedy("look at it, and ask again: godwit vm show")
    })?;
    let case = Relocation { vm: &vm, host: &host, asked, disks: &said.disks, guest: said.guest.as_ref() };
    let moving = relocating(&case).map_err(|found| {
        let deed = format!("the disks of {} cannot move to '{}'", vm.name, asked.to);
        refuse(&deed, &found).expect_err("what is found against it blocks it")
    })?;
    if tx.ownership(vm.id)?.is_none() {
        // Whoever has its disks first owns it: their locks say so from now on.
        tx.put_ownership(&Ownership { vm: vm.id, owner: host.name.clone(), epoch, claimed: false })?;
    }
    let kind = TaskKind::MoveStorage { host: host.name.clone(), to: asked.to.clone() };
    let task = new_task(&vm, kind, format!("{} makes the new images", host.name));
    tx.add_task(&task, asked)?;
    tx.add_storage_move(&StorageMove {
        id: MigrationId(Uuid::new_v4()),
        task: task.id,
        vm: vm.id,
        host: host.name,
        epoch,
        moving,
        state: StorageState::Copying,
        at_rest,
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
