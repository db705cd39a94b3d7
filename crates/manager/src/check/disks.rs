//! Checks of the disks that the destination does not share: whether they may, and can, move along.

use godwit_types::Bytes;
use godwit_types::check::{Check, Finding};
use godwit_types::migration::MOVED_DISKS_MAX;

use super::Case;

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
    if let Some(guest) = case.guest() {
        found.extend(case.moving.immovable(&guest.disks));
    }
    found.extend(too_large(case));
    let facts = case.guest().map_or(&[][..], |guest| &guest.disks);
    found.extend(case.moving.without_room(case.destination, facts, "--move-disks=DATASTORE"));
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

fn too_large(case: &Case<'_>) -> Option<Finding> {
    let size = |index: &u32| Some(case.guest()?.disks.get(*index as usize)?.size.0);
    let all = Bytes(case.moving.disks.iter().filter_map(size).fold(0, u64::saturating_add));
    (all > MOVED_DISKS_MAX).then(|| {
        let reason =
            format!("the disks that would move have {all} together, and at most {MOVED_DISKS_MAX} move");
        Finding::blocked(Check::Disks, reason, "put them into a datastore that both hosts share")
    })
}
