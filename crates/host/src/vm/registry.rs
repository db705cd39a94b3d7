//! Which VMs are on this host, and who may act on one now.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_types::agent::{LocalVm, Outgoing};
use godwit_types::{Bytes, MigrationId, VmId, VmName};

use super::machine::Machine;
use super::state::Ended;

/// VMs that have ended here and are remembered; the oldest is forgotten first.
const ENDED_MAX: usize = 256;
/// How long a VM that has ended is reported, even if the manager has heard of it: it may have been busy with a task.
const ENDED_REPORTED: Duration = Duration::from_secs(60);

/// The VMs of this host.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<VmId, Arc<Machine>>,
    ended: HashMap<VmId, Past>,
    /// Memory promised to VMs that are being started, and their users.
    reserved: HashMap<VmId, (Bytes, Option<u32>)>,
    locks: HashMap<VmId, Arc<tokio::sync::Mutex<()>>>,
}

#[derive(Debug)]
struct Past {
    name: VmName,
    ended: Ended,
    at: Instant,
    acknowledged: bool,
}

/// Memory and a user promised to a VM until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    registry: &'a Registry,
    vm: VmId,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.registry.inner().reserved.remove(&self.vm);
    }
}

impl Registry {
    /// Waits until nobody else acts on `vm`.
    pub(crate) async fn lock(&self, vm: VmId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut inner = self.inner();
            inner.locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(inner.locks.entry(vm).or_default())
        };
        lock.lock_owned().await
    }

    /// Memory that VMs here may still come to use.
    pub(crate) fn memory_promised(&self) -> Bytes {
        let (live, reserved): (Vec<_>, u64) = {
            let inner = self.inner();
            (inner.live.values().cloned().collect(), inner.reserved.values().map(|(bytes, _)| bytes.0).sum())
        };
        Bytes(live.iter().map(|machine| machine.memory_to_come().0).sum::<u64>().saturating_add(reserved))
    }

    /// The users of VMs here.
    pub(crate) fn users(&self) -> HashSet<u32> {
        let inner = self.inner();
        let live = inner.live.values().filter_map(|machine| machine.config.user);
        live.chain(inner.reserved.values().filter_map(|(_, user)| *user)).collect()
    }

    pub(crate) fn reserve(&self, vm: VmId, memory: Bytes, user: Option<u32>) -> Reservation<'_> {
        self.inner().reserved.insert(vm, (memory, user));
        Reservation { registry: self, vm }
    }

    pub(crate) fn live(&self, vm: VmId) -> Option<Arc<Machine>> {
        self.inner().live.get(&vm).cloned()
    }

    /// Whether the VM has a process here, or is about to.
    pub(crate) fn is_here(&self, vm: VmId) -> bool {
        let inner = self.inner();
        inner.live.contains_key(&vm) || inner.reserved.contains_key(&vm)
    }

    pub(crate) fn all_live(&self) -> Vec<Arc<Machine>> {
        self.inner().live.values().cloned().collect()
    }

    /// The VM as reported, whether its process runs or has ended.
    pub(crate) fn find(&self, vm: VmId) -> Option<LocalVm> {
        let live = self.live(vm);
        live.map(|machine| machine.report())
            .or_else(|| self.inner().ended.get(&vm).map(|past| past.report(vm)))
    }

    /// A migration away from here, under way or ended.
    pub(crate) fn outgoing(&self, vm: VmId, migration: MigrationId) -> Option<Outgoing> {
        let live = self.live(vm).and_then(|machine| machine.state(|state| state.outgoing.clone()));
        let past = || self.inner().ended.get(&vm).and_then(|past| past.ended.outgoing.clone());
        let fits = |outgoing: &Outgoing| outgoing.migration == migration;
        live.filter(fits).or_else(|| past().filter(fits))
    }

    /// What the manager is told: all that runs here, and what has ended lately.
    pub(crate) fn report(&self) -> Vec<LocalVm> {
        let mut all: Vec<LocalVm> = self.all_live().iter().map(|machine| machine.report()).collect();
        let inner = self.inner();
        let news = |past: &Past| !past.acknowledged || past.at.elapsed() < ENDED_REPORTED;
        all.extend(inner.ended.iter().filter(|(_, past)| news(past)).map(|(vm, past)| past.report(*vm)));
        all.sort_by_key(|local| local.id);
        all
    }

    /// The manager has heard `report`.
    pub(crate) fn acknowledge(&self, report: &[LocalVm]) {
        let mut inner = self.inner();
        for local in report {
            if let Some(past) = inner.ended.get_mut(&local.id).filter(|past| past.ended.epoch == local.epoch)
            {
                past.acknowledged |= past.ended.state == local.state;
            }
        }
    }

    pub(crate) fn insert(&self, machine: Arc<Machine>) {
        let mut inner = self.inner();
        inner.ended.remove(&machine.id());
        inner.live.insert(machine.id(), machine);
    }

    /// The process of `machine` has ended and is cleaned up.
    pub(crate) fn retire(&self, machine: &Arc<Machine>, ended: Option<Ended>) {
        let mut inner = self.inner();
        if inner.live.get(&machine.id()).is_some_and(|live| Arc::ptr_eq(live, machine)) {
            inner.live.remove(&machine.id());
        }
        if let Some(ended) = ended {
            inner.remember(machine.id(), machine.config.name.clone(), ended);
        }
    }

    /// A VM whose process was found dead.
    pub(crate) fn found_dead(&self, vm: VmId, name: VmName, ended: Ended) {
        self.inner().remember(vm, name, ended);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remember(&mut self, vm: VmId, name: VmName, ended: Ended) {
        if self.ended.len() >= ENDED_MAX
            && let Some(oldest) = self.ended.iter().min_by_key(|(_, past)| past.at).map(|(vm, _)| *vm)
        {
            self.ended.remove(&oldest);
        }
        self.ended.insert(vm, Past { name, ended, at: Instant::now(), acknowledged: false });
    }
}

impl Past {
    fn report(&self, id: VmId) -> LocalVm {
        let Ended { state, epoch, detail, .. } = self.ended.clone();
        LocalVm {
            id,
            name: self.name.clone(),
            epoch,
            state,
            detail,
            addresses: Vec::new(),
            usage: None,
            disks: Vec::new(),
        }
    }
}
