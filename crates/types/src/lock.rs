//! The record inside a disk's lock file.
//!
//! Beside every image `x.raw` lies `x.raw.lock`. Whoever writes to the image holds an exclusive open-file-description
//! lock on that file for as long as it does, and before that has written its own record into it. A record with a
//! higher epoch than one's own means that the VM has moved on: the image must not be opened for writing, whether or
//! not anybody holds the lock. So a host that comes back from the dead is refused by the storage too.
//!
//! The lock also tells of its holder's end: it falls with the process, or with the host. A destination that has all of
//! a VM takes over from a source whose lock has fallen, unless the record says that the guest has run on there since.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, HostName, MigrationId, VmId};

/// Who last took the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    pub vm: VmId,
    pub host: HostName,
    pub epoch: Epoch,
    /// The last migration of which the destination may have everything, and after which the guest ran on here: what the
    /// destination has is out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_on_after: Option<MigrationId>,
}

/// Why a lock may not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockRefused {
    #[error(
        "the disk belongs to another VM, {vm}, last run by host {host}; remove the lock file only if that VM is gone"
    )]
    OtherVm { vm: VmId, host: HostName },
    #[error(
        "the VM has moved on: host {host} took the disk at epoch {theirs}, and this host is at epoch {ours}"
    )]
    NewerEpoch { host: HostName, theirs: Epoch, ours: Epoch },
    #[error("host {host} took the disk at the same epoch {epoch}, which only one host can own")]
    SameEpoch { host: HostName, epoch: Epoch },
}

impl LockRecord {
    /// Whether the holder of `self` may replace `current`, the record found in the file.
    pub fn may_replace(&self, current: &Self) -> Result<(), LockRefused> {
        if current.vm != self.vm {
            return Err(LockRefused::OtherVm { vm: current.vm, host: current.host.clone() });
        }
        if current.epoch > self.epoch {
            let (host, theirs) = (current.host.clone(), current.epoch);
            return Err(LockRefused::NewerEpoch { host, theirs, ours: self.epoch });
        }
        if current.epoch == self.epoch && current.host != self.host {
            return Err(LockRefused::SameEpoch { host: current.host.clone(), epoch: self.epoch });
        }
        Ok(())
    }

    /// Whether the guest stands as the destination of `migration` has it, if nobody holds the lock: the last to hold it
    /// was the source, at `epoch`, and the guest has not run on there.
    pub fn stands_since(&self, vm: VmId, epoch: Epoch, migration: MigrationId) -> bool {
        self.vm == vm && self.epoch == epoch && self.ran_on_after != Some(migration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(vm: u128, host: &str, epoch: u64) -> LockRecord {
        let vm = VmId(uuid::Uuid::from_u128(vm));
        LockRecord { vm, host: host.parse().unwrap(), epoch: Epoch(epoch), ran_on_after: None }
    }

    #[test]
    fn a_guest_stands_only_where_it_was_stopped_and_until_it_runs_on() {
        let [first, second] = [1, 2].map(|id| MigrationId(uuid::Uuid::from_u128(id)));
        let stopped = record(1, "a", 5);
        assert!(stopped.stands_since(stopped.vm, Epoch(5), first));
        assert!(!stopped.stands_since(record(2, "a", 5).vm, Epoch(5), first));
        assert!(!stopped.stands_since(stopped.vm, Epoch(4), first));
        let ran_on = LockRecord { ran_on_after: Some(first), ..stopped.clone() };
        assert!(!ran_on.stands_since(stopped.vm, Epoch(5), first));
        assert!(ran_on.stands_since(stopped.vm, Epoch(5), second));
    }

    #[test]
    fn an_older_epoch_another_vm_and_a_rival_at_the_same_epoch_are_refused() {
        let current = record(1, "a", 5);
        assert!(matches!(record(1, "b", 4).may_replace(&current), Err(LockRefused::NewerEpoch { .. })));
        assert!(matches!(record(2, "a", 9).may_replace(&current), Err(LockRefused::OtherVm { .. })));
        assert!(matches!(record(1, "b", 5).may_replace(&current), Err(LockRefused::SameEpoch { .. })));
        assert_eq!(record(1, "a", 5).may_replace(&current), Ok(()));
        assert_eq!(record(1, "b", 6).may_replace(&current), Ok(()));
    }
}
