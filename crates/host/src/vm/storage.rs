//! Disks of a VM here that move to another datastore of this host.
//!
//! ```text
//!  begin: the new images are noted and made (see `arrivals`), and given to the VM's process, which fills them
//!     |
//!     '--> look ... hold --> switch: the process uses them alone; they are the VM's own
//!               '---------> cancel: the process lets go of them; they are removed
//! ```
//!
//! The manager says which, by its record of where the VM's disks lie. Each order may be given again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use godwit_types::agent::{BeginStorage, LocalState, NewDiskPlace};
use godwit_types::check;
use godwit_types::control::{DiskBacking, NewPlace, StorageOrder};
use godwit_types::storage::StorageStatus;
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationId, VmId};

use super::arrivals::NewImage;
use super::control::ControlError;
use super::machine::{Machine, blocking};
use super::orders::{conflict, running};
use super::places;
use crate::agent::Agent;

/// `POST /v1/vms/{id}/storage`. Asking again for the same move changes nothing.
pub(crate) async fn begin(
    agent: Arc<Agent>,
    vm: VmId,
    asked: BeginStorage,
) -> Result<StorageStatus, ApiError> {
    let _turn = agent.vms.lock(vm).await;
    let machine = running(&agent, vm)?;
    if let Ok(status) = machine.control.storage(asked.migration, StorageOrder::Look, &[]).await {
        return Ok(status);
    }
    require_running(&machine, &asked)?;
    let BeginStorage { migration, disks, bandwidth_bytes_per_s_max: bytes_per_s_max, .. } = asked;
    let (maker, place) = (Arc::clone(&agent), Arc::clone(&machine));
    let (disks, descriptors) = blocking(move || make(&maker, &place, migration, disks)).await?;
    tracing::info!("disks of {} move to another datastore, by move {migration}", machine.config.name);
    let order = StorageOrder::Begin { disks, bytes_per_s_max };
    let begun = machine.control.storage(migration, order, &descriptors).await;
    if let Err(ControlError::Refused(_)) = &begun {
        // It has not begun. Of one that does not answer, the manager's cancel finds out.
        blocking(move || agent.arrivals.discard(vm, migration)).await;
    }
    Ok(begun?)
}

/// `GET /v1/vms/{id}/storage/{migration}`.
pub(crate) async fn look(agent: &Agent, vm: VmId, migration: MigrationId) -> Result<StorageStatus, ApiError> {
    Ok(running(agent, vm)?.control.storage(migration, StorageOrder::Look, &[]).await?)
}

/// `POST /v1/vms/{id}/storage/{migration}/hold`.
pub(crate) async fn hold(
    agent: Arc<Agent>,
    vm: VmId,
    migration: MigrationId,
) -> Result<StorageStatus, ApiError> {
    let _turn = agent.vms.lock(vm).await;
    Ok(running(&agent, vm)?.control.storage(migration, StorageOrder::Hold, &[]).await?)
}

/// `POST /v1/vms/{id}/storage/{migration}/switch`: the VM's record names the new images.
pub(crate) async fn switch(agent: Arc<Agent>, vm: VmId, migration: MigrationId) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    let Some(disks) = agent.arrivals.storage(vm, migration) else { return Ok(()) };
    if let Some(machine) = agent.vms.live(vm) {
        match machine.control.storage(migration, StorageOrder::Switch, &[]).await {
            Ok(_) => {
                tracing::info!("the disks of {} have moved, by move {migration}", machine.config.name);
                machine.has_moved(disks);
                let written = blocking(move || machine.dir.write_config(&machine.settled_config())).await;
                written.map_err(|error| {
                    // The note stays, so that it is done again.
                    ApiError::new(
                        ErrorCode::Failed,
                        format!("the VM's configuration was not written: {error}"),
                    )
                })?;
            }
            // Another process of the VM, which was started with its disks where they are now.
            Err(ControlError::Refused(error)) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    blocking(move || agent.arrivals.settle(vm, migration)).await;
    Ok(())
}

/// `DELETE /v1/vms/{id}/storage/{migration}`: the VM's record names the old images, and always will.
pub(crate) async fn cancel(agent: Arc<Agent>, vm: VmId, migration: MigrationId) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    if let Some(machine) = agent.vms.live(vm) {
        match machine.control.storage(migration, StorageOrder::Cancel, &[]).await {
            Ok(_) => {}
            Err(ControlError::Refused(error)) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    blocking(move || agent.arrivals.discard(vm, migration)).await;
    Ok(())
}

fn require_running(machine: &Machine, asked: &BeginStorage) -> Result<(), ApiError> {
    let (name, local) = (&machine.config.name, machine.report());
    if local.epoch != asked.epoch {
        return Err(conflict(format!("{name} is here at epoch {}, not {}", local.epoch, asked.epoch)));
    }
    if local.state != LocalState::Running || machine.state(|state| state.stopping) {
        let message = format!("the disks of {name} cannot move: it is {:?}", local.state);
        return Err(conflict(message).remedy("wait for its task to end: godwit task ls"));
    }
    Ok(())
}

/// Makes the new images, and opens them for the VM's process.
fn make(
    agent: &Agent,
    machine: &Machine,
    migration: MigrationId,
    places: Vec<NewDiskPlace>,
) -> Result<(Vec<NewPlace>, Vec<OwnedFd>), ApiError> {
    let disks = machine.disks();
    let new = places.into_iter().map(|place| choose(agent, machine, &disks, place));
    let new: Vec<(NewImage, Bytes)> = new.collect::<Result<_, _>>()?;
    let vm = machine.id();
    agent.arrivals.begin_storage(vm, migration, new.clone())?;
    let mut descriptors = Vec::new();
    for (disk, _) in &new {
        let opened = godwit_provision::open_disk(&disk.backing).map_err(|error| {
            agent.arrivals.discard(vm, migration);
            ApiError::new(ErrorCode::Failed, error.to_string())
        })?;
        descriptors.extend(opened.images.into_iter().map(|(_, image)| image).chain(opened.lock));
    }
    let new = new.into_iter().map(|(disk, _)| NewPlace {
        index: disk.index,
        image: disk.image,
        backing: disk.backing,
    });
    Ok((new.collect(), descriptors))
}

/// Where a disk goes, and its size.
fn choose(
    agent: &Agent,
    machine: &Machine,
    disks: &[DiskBacking],
    NewDiskPlace { index, image }: NewDiskPlace,
) -> Result<(NewImage, Bytes), ApiError> {
    let name = &machine.config.name;
    let refused = |message: String| ApiError::new(ErrorCode::Refused, message);
    let from = disks.get(index as usize).filter(|disk| !disk.read_only);
    let from = from.ok_or_else(|| refused(format!("{name} has no disk {index} that its guest can write")))?;
    let facts = godwit_provision::measure(from)
        .map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
    if facts.layered {
        let message =
            format!("the disk {} of {name} has backing files, which do not move", from.path.display());
        return Err(
            refused(message).remedy("make it one image, as by 'qemu-img convert', while the VM is stopped")
        );
    }
    // What the VM has left there itself, up to now, is replaced.
    let epoch = machine.state(|state| state.epoch).next();
    let path = places::to_arrive(&agent.config, machine.id(), epoch, &image).map_err(|found| {
        check::refuse(&format!("a disk of {name} cannot move"), &[found]).expect_err("it blocks")
    })?;
    if disks.iter().any(|disk| disk.path == path) {
        return Err(refused(format!("{image} is a disk of {name} already")));
    }
    let lock = godwit_provision::lock_of(&path);
    let backing = DiskBacking { path, lock, format: from.format, read_only: false };
    Ok((NewImage { index, image, backing }, facts.size))
}
