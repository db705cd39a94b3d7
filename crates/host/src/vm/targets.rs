//! Where disks go that move to another datastore of this host: chosen, made, opened.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use godwit_types::agent::NewDiskPlace;
use godwit_types::check;
use godwit_types::control::{DiskBacking, DiskDescriptors, NewPlace};
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, MigrationId, VmId};

use super::arrivals::NewImage;
use super::places;
use crate::agent::Agent;

/// Where the disks of a VM lie that does not run.
pub(super) fn resting_disks(
    agent: &Agent,
    vm: VmId,
    spec: &VmSpec,
    epoch: Epoch,
) -> Result<Vec<DiskBacking>, ApiError> {
    let arriving = BTreeSet::new();
    let disks = agent.candidate(vm, spec, epoch, &arriving).disks();
    disks.map_err(|found| {
        let deed = format!("the disks of VM {vm} cannot be used on {}", agent.config.name);
        check::refuse(&deed, &found).expect_err("what is found against it blocks it")
    })
}

/// Whose disks move, and where all of them lie.
pub(super) struct Moving<'a> {
    pub(super) vm: VmId,
    pub(super) epoch: Epoch,
    pub(super) migration: MigrationId,
    pub(super) disks: &'a [DiskBacking],
}

/// Makes the new images.
pub(super) fn make(
    agent: &Agent,
    moving: &Moving<'_>,
    places: Vec<NewDiskPlace>,
) -> Result<Vec<NewPlace>, ApiError> {
    let new = places.into_iter().map(|place| choose(agent, moving, place));
    let new: Vec<(NewImage, Bytes)> = new.collect::<Result<_, _>>()?;
    agent.arrivals.begin_storage(moving.vm, moving.migration, new.clone())?;
    let place = |(NewImage { index, image, backing }, _)| NewPlace { index, image, backing };
    Ok(new.into_iter().map(place).collect())
}

/// The files of one of the move's images; the new ones are removed if one cannot be opened.
pub(super) fn opened(
    agent: &Agent,
    vm: VmId,
    migration: MigrationId,
    backing: &DiskBacking,
) -> Result<DiskDescriptors<OwnedFd>, ApiError> {
    godwit_provision::open_disk(backing).map_err(|error| {
        agent.arrivals.discard(vm, migration);
        ApiError::new(ErrorCode::Failed, error.to_string())
    })
}

/// Where a disk goes, and its size.
fn choose(
    agent: &Agent,
    Moving { vm, epoch, disks, .. }: &Moving<'_>,
    NewDiskPlace { index, image }: NewDiskPlace,
) -> Result<(NewImage, Bytes), ApiError> {
    let refused = |message: String| ApiError::new(ErrorCode::Refused, message);
    let from = disks.get(index as usize).filter(|disk| !disk.read_only);
    let from =
        from.ok_or_else(|| refused(format!("VM {vm} has no disk {index} that its guest can write")))?;
    let facts = godwit_provision::measure(from)
        .map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))?;
    if facts.layered {
        let message = format!("the disk {} has backing files, which do not move", from.path.display());
        return Err(
            refused(message).remedy("make it one image, as by 'qemu-img convert', while the VM is stopped")
        );
    }
    // What the VM has left there itself, up to now, is replaced.
    let path = places::to_arrive(&agent.config, (*vm, epoch.next()), &image, &[]).map_err(|found| {
        check::refuse(&format!("a disk of VM {vm} cannot move"), &[found]).expect_err("it blocks")
    })?;
    if disks.iter().any(|disk| disk.path == path) {
        return Err(refused(format!("{image} is a disk of VM {vm} already")));
    }
    let lock = godwit_provision::lock_of(&path);
    let backing = DiskBacking { path, lock, format: from.format, read_only: false };
    Ok((NewImage { index, image, backing }, facts.size))
}
