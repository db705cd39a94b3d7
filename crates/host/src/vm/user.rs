//! The user that a VM's process becomes: one for each VM that runs here, so that none can reach another.

use std::collections::HashSet;
use std::fs;
use std::ops::RangeInclusive;

use godwit_types::{ApiError, ErrorCode, VmId};

/// A user of `range` that none of `taken` is and no process on this machine has: it may run other agents' VMs, too.
pub(crate) fn choose(
    range: &RangeInclusive<u32>,
    vm: VmId,
    mut taken: HashSet<u32>,
) -> Result<u32, ApiError> {
    taken.extend(running());
    free(range, vm, &taken).ok_or_else(|| {
        let (first, last) = (range.start(), range.end());
        let message = format!("all users from {first} to {last} are taken by VMs or other processes");
        ApiError::new(ErrorCode::Refused, message).remedy("give the agent more: godwit host run --vm-users")
    })
}

/// The search begins at a place that differs from VM to VM, so that agents that choose at once rarely meet.
fn free(range: &RangeInclusive<u32>, vm: VmId, taken: &HashSet<u32>) -> Option<u32> {
    let count = u64::from(range.end().checked_sub(*range.start())?) + 1;
    let begin = (vm.0.as_u128() % u128::from(count)) as u64;
    let at = |step: u64| range.start() + ((begin + step) % count) as u32;
    (0..count).map(at).find(|user| !taken.contains(user))
}

/// The users of all processes. One that ends meanwhile has none.
fn running() -> HashSet<u32> {
    let user = |entry: fs::DirEntry| -> Option<u32> {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_vms_get_the_same_user_and_none_is_left_when_all_are_taken() {
        let (range, mut taken) = (100..=109, HashSet::new());
        for n in 0..10 {
            let user = free(&range, VmId(uuid::Uuid::from_u128(n % 3)), &taken).unwrap();
            assert!(range.contains(&user) && taken.insert(user));
        }
        assert_eq!(free(&range, VmId(uuid::Uuid::from_u128(1)), &taken), None);
    }

    #[test]
    fn the_user_of_a_running_process_is_seen() {
        assert!(running().contains(&nix::unistd::getuid().as_raw()));
    }
}
