//! The data centre as it would be with some VMs elsewhere, for policies that try out.

use super::super::day::Day;
use super::super::kinds::{HOST_MEMORY_MB, HostKind};
use super::super::world::{HISTORY, HOSTS, World};

/// A host with the VMs that it would have.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) kind: &'static HostKind,
    pub(super) vms: Vec<usize>,
    /// What its VMs get, in MIPS; as much as they want, unless it has less.
    pub(super) given: f64,
    pub(super) wanted: f64,
    pub(super) memory_mb: u32,
    /// What its VMs used of it in the past, the latest first.
    pub(super) history: [f64; HISTORY],
}

impl Place {
    /// A host as it is.
    pub(super) fn new(world: &World<'_>, host: usize) -> Self {
        let mut place = Self {
            kind: world.hosts[host].kind,
            vms: Vec::new(),
            given: 0.0,
            wanted: 0.0,
            memory_mb: 0,
            history: [0.0; HISTORY],
        };
        for vm in &world.hosts[host].vms {
            place.add(world, *vm);
        }
        if place.wanted > place.kind.mips() {
            let scale = place.kind.mips() / place.wanted;
            place.given = place.vms.iter().map(|vm| (world.vms[*vm].demand * scale).floor()).sum();
        }
        place
    }

    pub(super) fn add(&mut self, world: &World<'_>, vm: usize) {
        let guest = &world.vms[vm];
        self.vms.push(vm);
        self.given += guest.demand.min(self.kind.core_mips);
        self.wanted += guest.demand;
        self.memory_mb += guest.kind.memory_mb;
        for (sum, used) in self.history.iter_mut().zip(&guest.history) {
            *sum += used * guest.kind.mips / self.kind.mips();
        }
    }

    pub(super) fn remove(&mut self, world: &World<'_>, host: usize, gone: usize) {
        let kept: Vec<usize> = self.vms.iter().copied().filter(|vm| *vm != gone).collect();
        let kind = world.hosts[host].kind;
        *self =
            Self { kind, vms: Vec::new(), given: 0.0, wanted: 0.0, memory_mb: 0, history: [0.0; HISTORY] };
        kept.into_iter().for_each(|vm| self.add(world, vm));
    }

    /// Whether it has as much free as the VM wants now, and a core that is fast enough.
    pub(super) fn suits(&self, world: &World<'_>, vm: usize) -> bool {
        let wanted = world.vms[vm].demand;
        let free = (self.kind.mips() - self.wanted).max(0.0);
        self.kind.core_mips >= wanted && free >= wanted && world.has_memory(self.memory_mb, vm)
    }
}

/// A host for each VM in turn, by the least `cost`: of a host that uses so much and gets so much more. Memory is kept, and what
/// VMs could use at most.
pub(super) fn place_by(day: &Day, cost: impl Fn(usize, f64, f64) -> f64) -> Vec<usize> {
    let mut mips = vec![0.0; HOSTS];
    let mut memory_mb = vec![0; HOSTS];
    let mut place = |vm: usize| {
        let vm = day.kind(vm);
        let fits = |host: &usize| {
            let kind = HostKind::of(*host);
            kind.core_mips >= vm.mips
                && kind.mips() - mips[*host] >= vm.mips
                && memory_mb[*host] + vm.memory_mb <= HOST_MEMORY_MB
        };
        let costs = (0..HOSTS).filter(fits).map(|host| (cost(host, mips[host], vm.mips), host));
        // The first of those that cost the same. VMs of all days fit; the last host would only be over-full.
        let best = costs.min_by(|(a, _), (b, _)| a.total_cmp(b)).map_or(HOSTS - 1, |(_, host)| host);
        mips[best] += vm.mips;
        memory_mb[best] += vm.memory_mb;
        best
    };
    (0..day.vms()).map(&mut place).collect()
}
