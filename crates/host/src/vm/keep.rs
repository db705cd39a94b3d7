//! Memory of VMs that have left this host, kept for their return.
//!
//! ```text
//!  lend --> empty, in the hands of a VM's process --VM has left, or not arrived--> settle: filled, kept
//!   ^                                              '-- nothing came of it -------> settle: forgotten
//!   '-- the VM comes back: lent to its process, which uses it up                         |
//!       runs here again: forgotten       too old, too much, needed: given up, oldest first <-'
//! ```
//!
//! It is a cache: what is in it is checked page by page before it is used, it ends with the agent, and nothing waits for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_provision::memory_file;
use godwit_types::host::KeptMemory;
use godwit_types::{Bytes, VmId, VmName};

use crate::config::KeepConfig;
use crate::facts;

/// The host is short of memory when less than this share of it is available.
const LOW_SHARE: u64 = 16;
/// Unit in which the kernel counts what a file takes, in bytes.
const BLOCK_BYTES: u64 = 512;

/// See the module.
#[derive(Debug)]
pub(crate) struct Keep {
    /// None: nothing is kept.
    config: Option<KeepConfig>,
    max: Bytes,
    /// Those that were settled last are at the end.
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    vm: VmId,
    name: VmName,
    /// The VM's size.
    size: Bytes,
    file: File,
    since: Instant,
}

impl Kept {
    fn memory(&self) -> Bytes {
        Bytes(self.file.metadata().map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES))
    }
}

impl Keep {
    pub(crate) fn new(config: Option<KeepConfig>) -> Self {
        let max = config.and_then(|config| config.max).unwrap_or_else(|| Bytes(facts::memory().0 / 2));
        Self { config, max, kept: Mutex::default() }
    }

    /// What there is of a VM of this size, or where it can be kept; none if it is not to be.
    pub(crate) fn lend(&self, vm: VmId, name: &VmName, size: Bytes) -> Option<File> {
        self.config?;
        let mut kept = self.kept();
        kept.retain(|kept| kept.vm != vm || kept.size == size);
        let lent = match kept.iter().find(|kept| kept.vm == vm) {
            Some(kept) => kept.file.try_clone(),
            None => memory_file(size).map(File::from).and_then(|file| {
                let lent = file.try_clone();
                kept.push(Kept { vm, name: name.clone(), size, file, since: Instant::now() });
                lent
            }),
        };
        let unlucky = |error: &io::Error| tracing::warn!("{name}: its memory cannot be kept: {error}");
        lent.inspect_err(unlucky).ok()
    }

    /// The process that it was lent to has ended, or does not need it: what is in it is kept from now on, within the limit.
    pub(crate) fn settle(&self, vm: VmId) {
        let mut kept = self.kept();
        let Some(index) = kept.iter().position(|kept| kept.vm == vm) else { return };
        let mut settled = kept.remove(index);
        let memory = settled.memory();
        if memory.0 == 0 {
            return;
        }
        tracing::info!("{}: {memory} of its memory is kept for its return", settled.name);
        settled.since = Instant::now();
        kept.push(settled);
        let over = held(&kept).0.saturating_sub(self.max.0);
        let given_up = take_oldest(&mut kept, Bytes(over), |_| true);
        drop(kept);
        say_given_up(&given_up, "more is not to be kept here");
    }

    /// The VM is here, or no more.
    pub(crate) fn forget(&self, vm: VmId) {
        let forgotten: Vec<Kept> = self.kept().extract_if(.., |kept| kept.vm == vm).collect();
        drop(forgotten);
    }

    /// Gives up at least so much, oldest first, that of `last` last. Blocks while the kernel takes back the pages.
    pub(crate) fn give_up(&self, wanted: Bytes, last: VmId) {
        let mut kept = self.kept();
        let mut given_up = take_oldest(&mut kept, wanted, |kept| kept.vm != last);
        let left = wanted.0.saturating_sub(held(&given_up).0);
        given_up.extend(take_oldest(&mut kept, Bytes(left), |_| true));
        drop(kept);
        say_given_up(&given_up, "another VM needs it");
    }

    /// Gives up what is too old, and what the host needs with so much of its memory available. Whether it did.
    pub(crate) fn tidy(&self, available: Bytes, total: Bytes) -> bool {
        let Some(KeepConfig { age, .. }) = self.config else { return false };
        let mut kept = self.kept();
        let old: Vec<Kept> =
            kept.extract_if(.., |kept| kept.since.elapsed() >= age && kept.memory().0 > 0).collect();
        let short = (total.0 / LOW_SHARE).saturating_sub(available.0);
        let needed = take_oldest(&mut kept, Bytes(short), |_| true);
        drop(kept);
        say_given_up(&old, "it is too old");
        say_given_up(&needed, "the host is short of memory");
        !old.is_empty() || !needed.is_empty()
    }

    /// All that is kept.
    pub(crate) fn held(&self) -> Bytes {
        held(&self.kept())
    }

    /// What is kept of one VM.
    pub(crate) fn held_of(&self, vm: VmId) -> Bytes {
        Bytes(self.kept().iter().filter(|kept| kept.vm == vm).map(|kept| kept.memory().0).sum())
    }

    /// Whether a process may be about to keep a VM's memory.
    pub(crate) fn is_lent(&self, vm: VmId) -> bool {
        self.kept().iter().any(|kept| kept.vm == vm)
    }

    /// What is kept, for people to see.
    pub(crate) fn report(&self) -> Vec<KeptMemory> {
        let age_ms = |since: Instant| Duration::as_millis(&since.elapsed()) as u64;
        let shown = |kept: &Kept| {
            let (vm, name, memory) = (kept.vm, kept.name.clone(), kept.memory());
            (memory.0 > 0).then(|| KeptMemory { vm, name, memory, age_ms: age_ms(kept.since) })
        };
        self.kept().iter().filter_map(shown).collect()
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held(kept: &[Kept]) -> Bytes {
    Bytes(kept.iter().map(|kept| kept.memory().0).sum())
}

/// Takes the oldest out, of those that may be, until they hold at least so much.
fn take_oldest(kept: &mut Vec<Kept>, wanted: Bytes, may: impl Fn(&Kept) -> bool) -> Vec<Kept> {
    let mut taken = 0;
    let needed = |kept: &mut Kept| {
        let memory = kept.memory().0;
        let take = taken < wanted.0 && memory > 0 && may(kept);
        taken += if take { memory } else { 0 };
        take
    };
    kept.extract_if(.., needed).collect()
}

fn say_given_up(given_up: &[Kept], why: &str) {
    for kept in given_up {
        tracing::info!("{}: {} of its memory is not kept any longer: {why}", kept.name, kept.memory());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use uuid::Uuid;

    use super::*;

    const SIZE: Bytes = Bytes::mib(64);

    fn vm(n: u128) -> VmId {
        VmId(Uuid::from_u128(n))
    }

    fn keep(max: Bytes) -> Keep {
        Keep::new(Some(KeepConfig { age: Duration::from_secs(3600), max: Some(max) }))
    }

    /// A VM leaves this much memory behind.
    fn leave(keep: &Keep, n: u128, memory: Bytes) {
        let file = keep.lend(vm(n), &"web1".parse().unwrap(), SIZE).unwrap();
        file.write_all_at(&vec![7; memory.0 as usize], 0).unwrap();
        keep.settle(vm(n));
    }

    fn there(keep: &Keep) -> Vec<u128> {
        keep.report().iter().map(|kept| kept.vm.0.as_u128()).collect()
    }

    #[test]
    fn what_was_left_is_lent_again_to_the_same_vm_of_the_same_size_and_to_no_other() {
        let keep = keep(Bytes::mib(100));
        let name = "web1".parse().unwrap();
        leave(&keep, 1, Bytes::mib(2));
        let blocks = |file: File| file.metadata().unwrap().blocks();
        assert_eq!(blocks(keep.lend(vm(1), &name, SIZE).unwrap()) * BLOCK_BYTES, 2 << 20);
        assert_eq!(blocks(keep.lend(vm(2), &name, SIZE).unwrap()), 0);
        assert_eq!(blocks(keep.lend(vm(1), &name, Bytes::mib(32)).unwrap()), 0);
        assert_eq!(keep.held(), Bytes(0));
    }

    #[test]
    fn the_oldest_is_given_up_when_there_is_more_than_the_limit() {
        let keep = keep(Bytes::mib(5));
        (1..=3).for_each(|n| leave(&keep, n, Bytes::mib(2)));
        assert_eq!(there(&keep), [2, 3]);
        leave(&keep, 4, Bytes::mib(6));
        assert_eq!(there(&keep), [], "what is larger than the limit is not kept at all");
    }

    #[test]
    fn a_vm_that_needs_memory_gets_that_of_others_first() {
        let keep = keep(Bytes::mib(100));
        (1..=3).for_each(|n| leave(&keep, n, Bytes::mib(2)));
        keep.give_up(Bytes(0), vm(1));
        assert_eq!(there(&keep), [1, 2, 3]);
        keep.give_up(Bytes::mib(1), vm(1));
        assert_eq!(there(&keep), [1, 3]);
        keep.give_up(Bytes::mib(3), vm(1));
        assert_eq!(there(&keep), []);
    }

    #[test]
    fn a_host_that_is_short_of_memory_and_time_give_it_up() {
        let keep = keep(Bytes::mib(100));
        (1..=2).for_each(|n| leave(&keep, n, Bytes::mib(2)));
        assert!(!keep.tidy(Bytes::mib(64), Bytes::mib(1024)));
        assert!(keep.tidy(Bytes::mib(63), Bytes::mib(1024)));
        assert_eq!(there(&keep), [2]);
        let old = Keep { config: Some(KeepConfig { age: Duration::ZERO, max: None }), ..keep };
        assert!(old.tidy(Bytes::mib(1024), Bytes::mib(1024)));
        assert_eq!(old.held(), Bytes(0));
    }

    #[test]
    fn nothing_is_kept_of_a_vm_that_stays_or_is_forgotten_or_where_nothing_is_to_be_kept() {
        let keep = keep(Bytes::mib(100));
        leave(&keep, 1, Bytes(0));
        leave(&keep, 2, Bytes::mib(1));
        keep.forget(vm(2));
        assert!(keep.kept().is_empty());
        assert!(Keep::new(None).lend(vm(1), &"web1".parse().unwrap(), SIZE).is_none());
    }
}
