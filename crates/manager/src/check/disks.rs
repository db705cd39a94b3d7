//! Checks of the disks that the destination does not share: whether they may, and can, move along.

use std::collections::BTreeMap;

use godwit_types::Bytes;
use godwit_types::check::{Check, Finding};
use godwit_types::migration::MOVED_DISKS_MAX;

use super::Case;
use crate::moving::offer;

pub(super) fn findings(case: &Case<'_>) -> Vec<Finding> {
    let Some(source) = case.source.filter(|_| !case.moving.disks.is_empty()) else { return Vec::new() };
    if case.wish.move_disks.is_none() {
        let unshared = |index: &u32| {
            let image = &case.vm.spec.disks[*index as usize].image;
            let reason = format!(
                "the disk {image} lies in a datastore '{}' that {} does not share with {}",
                image.datastore, source.name, case.destination.name
            );
            Finding::blocked(Check::Disks, reason, "let the disk move with the VM: --move-disks")
        };
        return case.moving.disks.iter().map(unshared).collect();
    }
    let mut found = Vec::new();
    found.extend(post_copy(case));
    found.extend(unable(case));
    found.extend(images(case));
    found.extend(too_large(case));
    found.extend(space(case));
    found
}

fn post_copy(case: &Case<'_>) -> Option<Finding> {
    case.wish.budget.post_copy.then(|| {
        let reason =
            "disks that move with the VM must be there before the guest, so that nothing can follow it";
        Finding::blocked(
            Check::PostCopy,
            reason,
            "migrate without --post-copy, or put the disks into a datastore that both hosts share",
        )
    })
}

/// The VM's process is of a release that sends memory alone.
fn unable(case: &Case<'_>) -> Option<Finding> {
    let guest = case.guest().filter(|guest| !guest.moves_disks)?;
    let name = &case.vm.name;
    let reason = format!("the process of {name}, of Godwit {}, cannot send its disks along", guest.release);
    Some(Finding::blocked(Check::Disks, reason, format!("stop {name} and start it again on its host")))
}

/// What is known of the images.
fn images(case: &Case<'_>) -> Vec<Finding> {
    let Some(guest) = case.guest() else { return Vec::new() };
    let mut found = Vec::new();
    for (index, image) in case.moving.disks.iter().zip(&case.moving.images) {
        match guest.disks.get(*index as usize) {
            None => {
                let reason = format!("it is not known how large the disk {image} is");
                let remedy =
                    "check that its host reaches the datastore, and that its agent is of this release";
                found.push(Finding::blocked(Check::Disks, reason, remedy));
            }
            Some(facts) if facts.layered => {
                let reason = format!("the disk {image} has backing files, which do not move along");
                let remedy = "make it one image, as by 'qemu-img convert', while the VM is stopped";
                found.push(Finding::blocked(Check::Disks, reason, remedy));
            }
            Some(_) => {}
        }
    }
    found
}

fn too_large(case: &Case<'_>) -> Option<Finding> {
    let size = |index: &u32| Some(case.guest()?.disks.get(*index as usize)?.size.0);
    let all = Bytes(case.moving.disks.iter().filter_map(size).fold(0, u64::saturating_add));
    (all > MOVED_DISKS_MAX).then(|| {
        let reason =
            format!("the disks that would move have {all} together, and at most {MOVED_DISKS_MAX} move");
        Finding::blocked(Check::Disks, reason, "put them into a datastore that both hosts share")
    })
}

/// Whether the destination's datastores take what the images hold.
fn space(case: &Case<'_>) -> Vec<Finding> {
    let host = &case.destination.name;
    let mut needed = BTreeMap::new();
    for index in &case.moving.disks {
        let datastore = &case.moving.spec.disks[*index as usize].image.datastore;
        let held = case
            .guest()
            .and_then(|guest| guest.disks.get(*index as usize))
            .map_or(0, |disk| disk.allocated.0);
        *needed.entry(datastore).or_insert(0) += held;
    }
    let lacks = |(name, bytes)| {
        // That it is not there at all is told by others.
        let offer = offer(case.destination, name)?;
        if offer.id.is_none() {
            let reason =
                format!("{host} says nothing of what its datastore '{name}' is, and so cannot take disks");
            let remedy = format!("let root of {host} write to it, and install this release there");
            return Some(Finding::blocked(Check::Datastores, reason, remedy));
        }
        (offer.free.0 < bytes).then(|| {
            let reason = format!(
                "the disks that move hold {}, and the datastore '{name}' of {host} has {} free",
                Bytes(bytes),
                offer.free
            );
            Finding::blocked(
                Check::Datastores,
                reason,
                "make room there, or name another: --move-disks=DATASTORE",
            )
        })
    };
    needed.into_iter().filter_map(lacks).collect()
}
