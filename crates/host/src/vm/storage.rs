//! Disks of a VM that move to another datastore of this host.
//!
//! ```text
//!  begin: the new images are noted and made (see `arrivals`), and given to who fills them: the VM's process, or, of a VM
//!     |   that does not run, a process of their own (see `copies`)
//!     '--> look ... hold --> switch: the process uses them alone; they are the VM's own
//!               '---------> cancel: the process lets go of them; they are removed
//! ```
//!
//! The manager says which, by its record of where the VM's disks lie. Each order may be given again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use godwit_provision::ProvisionError;
use godwit_types::agent::{AskDisks, BeginStorage, LocalState};
use godwit_types::capability::DiskFacts;
use godwit_types::control::{CopyDisk, CopyDisks, DiskDescriptors, NewPlace, StorageOrder};
use godwit_types::storage::StorageStatus;
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationId, VmId};
use tokio::time::timeout;

use super::control::ControlError;
use super::machine::{Machine, blocking};
use super::orders::{MEASURE_TIMEOUT, running};
use super::targets::{Moving, make, opened, resting_disks};
use crate::agent::Agent;

/// `POST /v1/vms/{id}/disks`: how large the disks are of a VM that does not run, in the order of its specification.
pub(crate) async fn measure(
    agent: Arc<Agent>,
    vm: VmId,
    asked: AskDisks,
) -> Result<Vec<DiskFacts>, ApiError> {
    let measured = blocking(move || -> Result<Vec<DiskFacts>, ApiError> {
        let failed = |error: ProvisionError| ApiError::new(ErrorCode::Failed, error.to_string());
        resting_disks(&agent, vm, &asked.spec, asked.epoch)?
            .iter()
            .map(|disk| godwit_provision::measure(disk).map_err(failed))
            .collect()
    });
    timeout(MEASURE_TIMEOUT, measured).await.unwrap_or_else(|_| {
        let message = format!("the datastores did not answer within {} s", MEASURE_TIMEOUT.as_secs());
        Err(ApiError::new(ErrorCode::Failed, message)
            .remedy("check their mounts and the storage behind them"))
    })
}

/// `POST /v1/vms/{id}/storage`. Asking again for the same move changes nothing.
pub(crate) async fn begin(
    agent: Arc<Agent>,
    vm: VmId,
    mut asked: BeginStorage,
) -> Result<StorageStatus, ApiError> {
    let _turn = agent.vms.lock(vm).await;
    match asked.at_rest.take() {
        Some(spec) => begin_at_rest(agent, vm, spec, asked).await,
        None => begin_running(agent, vm, asked).await,
    }
}

async fn begin_running(agent: Arc<Agent>, vm: VmId, asked: BeginStorage) -> Result<StorageStatus, ApiError> {
    let machine = running(&agent, vm)?;
    if let Ok(status) = machine.control.storage(asked.migration, StorageOrder::Look, &[]).await {
        return Ok(status);
    }
    require_running(&machine, &asked)?;
    let BeginStorage { migration, epoch, disks: places, bandwidth_bytes_per_s_max: bytes_per_s_max, .. } =
        asked;
    let (maker, place) = (Arc::clone(&agent), Arc::clone(&machine));
    let (disks, descriptors) = blocking(move || {
        let disks = place.disks();
        let made = make(&maker, &Moving { vm, epoch, migration, disks: &disks }, places)?;
        let files = made.iter().map(|new| opened(&maker, vm, migration, &new.backing));
        let files = files.collect::<Result<Vec<_>, _>>()?.into_iter();
        let each = |files: DiskDescriptors<OwnedFd>| {
            files.images.into_iter().map(|(_, image)| image).chain(files.lock)
        };
        Ok::<_, ApiError>((made, files.flat_map(each).collect::<Vec<_>>()))
    })
    .await?;
    tracing::info!("disks of {} move to another datastore, by move {migration}", machine.config.name);
    let order = StorageOrder::Begin { disks, bytes_per_s_max };
    let begun = machine.control.storage(migration, order, &descriptors).await;
    if let Err(ControlError::Refused(_)) = &begun {
        // It has not begun. Of one that does not answer, the manager's cancel finds out.
        blocking(move || agent.arrivals.discard(vm, migration)).await;
    }
    Ok(begun?)
}

async fn begin_at_rest(
    agent: Arc<Agent>,
    vm: VmId,
    spec: VmSpec,
    asked: BeginStorage,
) -> Result<StorageStatus, ApiError> {
    let BeginStorage { migration, epoch, disks: places, bandwidth_bytes_per_s_max: bytes_per_s_max, .. } =
        asked;
    if let Some(copying) = agent.copies.find(vm, migration) {
        return Ok(copying.status());
    }
    if let Some(machine) = agent.vms.live(vm) {
        let local = machine.report();
        let message = format!("a process of {} is on {} ({:?})", local.name, agent.config.name, local.state);
        return Err(ApiError::conflict(message).remedy("wait for its task to end: godwit task ls"));
    }
    let (user, reservation) = {
        let _admission = agent.admission.lock().await;
        agent.require_staying()?;
        let user = agent.user(vm)?;
        // Others see who it is once it has begun.
        (user, agent.vms.reserve(vm, Bytes(0), user))
    };
    let maker = Arc::clone(&agent);
    let started = blocking(move || {
        let disks = resting_disks(&maker, vm, &spec, epoch)?;
        let made = make(&maker, &Moving { vm, epoch, migration, disks: &disks }, places)?;
        let open = |backing| opened(&maker, vm, migration, backing);
        let copy = |to: NewPlace| CopyDisk { from: disks[to.index as usize].clone(), to };
        let disks: Vec<CopyDisk> = made.into_iter().map(copy).collect();
        let files = disks.iter().map(|disk| Ok((open(&disk.from)?, open(&disk.to.backing)?)));
        let files = files.collect::<Result<Vec<_>, ApiError>>()?;
        let host = maker.config.name.clone();
        let order = CopyDisks { migration, vm, host, epoch, user, disks, bytes_per_s_max };
        maker.copies.start(&maker.vmm, &order, &files).map_err(|error| {
            maker.arrivals.discard(vm, migration);
            let message = format!("{} cannot be started: {error}", maker.vmm.display());
            ApiError::new(ErrorCode::Failed, message).remedy("name the binary with --vmm")
        })
    });
    let (copying, socket) = started.await?;
    tracing::info!("disks of VM {vm}, which does not run, move to another datastore, by move {migration}");
    let begun = copying.begun();
    agent.spawn(Arc::clone(&copying).follow(socket));
    let begun = begun.await;
    drop(reservation);
    if begun.is_err() {
        agent.copies.end(vm).await?;
        blocking(move || agent.arrivals.discard(vm, migration)).await;
    }
    begun
}

/// `GET /v1/vms/{id}/storage/{migration}`.
pub(crate) async fn look(agent: &Agent, vm: VmId, migration: MigrationId) -> Result<StorageStatus, ApiError> {
    if let Some(copying) = agent.copies.find(vm, migration) {
        return Ok(copying.status());
    }
    Ok(running(agent, vm)?.control.storage(migration, StorageOrder::Look, &[]).await?)
}

/// `POST /v1/vms/{id}/storage/{migration}/hold`.
pub(crate) async fn hold(
    agent: Arc<Agent>,
    vm: VmId,
    migration: MigrationId,
) -> Result<StorageStatus, ApiError> {
    let _turn = agent.vms.lock(vm).await;
    if let Some(copying) = agent.copies.find(vm, migration) {
        return copying.hold();
    }
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
    agent.copies.end(vm).await?;
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
    if agent.copies.find(vm, migration).is_some() {
        agent.copies.end(vm).await?;
    }
    blocking(move || agent.arrivals.discard(vm, migration)).await;
    Ok(())
}

fn require_running(machine: &Machine, asked: &BeginStorage) -> Result<(), ApiError> {
    let (name, local) = (&machine.config.name, machine.report());
    if local.epoch != asked.epoch {
        return Err(ApiError::conflict(format!(
            "{name} is here at epoch {}, not {}",
            local.epoch, asked.epoch
        )));
    }
    if local.state != LocalState::Running || machine.state(|state| state.stopping) {
        let message = format!("the disks of {name} cannot move: it is {:?}", local.state);
        return Err(ApiError::conflict(message).remedy("wait for its task to end: godwit task ls"));
    }
    Ok(())
}
