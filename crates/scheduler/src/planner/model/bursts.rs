//! How much of a host its VMs want at once: what they have wanted together, slot by slot.
//!
//! ```text
//!   the larger of the last slot and   mean + k * deviation   of the sums of a host's VMs over the slots
//! ```
//!
//! The most that each VM has wanted says little of the most that all of them do: bursts of different VMs do not coincide, and where they
//! do, the sums of their slots tell. The mean and its deviations leave room for bursts that have not been seen (Verma et al., "Server
//! workload analysis for power minimization using consolidation", USENIX ATC 2009, size by correlated peaks for the same reason).
//! What was lately and what is expected of the next hour are looked at each by itself, and the larger counts.

use super::Unit;
use crate::planner::case::Case;
use crate::snapshot::Vm;

/// Most slots of either kind; older ones, and those further ahead, are left out.
const SLOTS_MAX: usize = 24;

/// See the module. In MHz; memory in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Bursts {
    /// Slots of what was, which come first, and all of them.
    recent: usize,
    slots: usize,
    units: Vec<u64>,
    hosts: Vec<u64>,
    /// The most memory of late.
    units_memory: Vec<u64>,
    hosts_memory: Vec<u64>,
}

impl Bursts {
    /// All hosts are empty.
    pub(super) fn new(case: &Case<'_>, units: &[Unit]) -> Self {
        let longest = |series: fn(&Vm) -> &[u64]| {
            case.vms.iter().map(|vm| series(vm).len()).max().unwrap_or(0).min(SLOTS_MAX)
        };
        let (recent, ahead) = (longest(|vm| &vm.recent_mhz).max(1), longest(|vm| &vm.ahead_mhz));
        let slots = recent + ahead;
        // All of them on one host must still be a number.
        let most = u64::MAX / (case.vms.len() as u64 + 1);
        let mut bursts = Self {
            recent,
            slots,
            units: vec![0; slots * units.len()],
            hosts: vec![0; slots * case.hosts.len()],
            units_memory: vec![0; units.len()],
            hosts_memory: vec![0; case.hosts.len()],
        };
        for (at, unit) in units.iter().enumerate() {
            let row = &mut bursts.units[at * slots..(at + 1) * slots];
            for vm in unit.vms.iter().map(|vm| *vm as usize) {
                add_vm(case, vm, recent, most, row);
                let memory =
                    case.demand[vm].memory.max(case.vms[vm].demand_long.memory.min(case.vms[vm].memory));
                bursts.units_memory[at] += memory.min(most);
            }
        }
        bursts
    }

    pub(super) fn enter(&mut self, unit: usize, host: usize) {
        let unit_slots = &self.units[unit * self.slots..(unit + 1) * self.slots];
        let host_slots = &mut self.hosts[host * self.slots..(host + 1) * self.slots];
        host_slots.iter_mut().zip(unit_slots).for_each(|(host, unit)| *host += unit);
        self.hosts_memory[host] += self.units_memory[unit];
    }

    pub(super) fn leave(&mut self, unit: usize, host: usize) {
        let unit_slots = &self.units[unit * self.slots..(unit + 1) * self.slots];
        let host_slots = &mut self.hosts[host * self.slots..(host + 1) * self.slots];
        host_slots.iter_mut().zip(unit_slots).for_each(|(host, unit)| *host -= unit);
        self.hosts_memory[host] -= self.units_memory[unit];
    }

    /// What a host has to give, in MHz, with so many deviations to spare.
    pub(crate) fn of_host(&self, host: usize, deviations: f64) -> f64 {
        self.most(self.row(&self.hosts, host).iter().map(|mhz| *mhz as f64), deviations)
    }

    /// The same, with the unit there.
    pub(crate) fn with(&self, host: usize, unit: usize, deviations: f64) -> f64 {
        let (host, unit) = (self.row(&self.hosts, host), self.row(&self.units, unit));
        self.most(host.iter().zip(unit).map(|(host, unit)| (host + unit) as f64), deviations)
    }

    /// The same, without the unit, which is there.
    pub(crate) fn without(&self, host: usize, unit: usize, deviations: f64) -> f64 {
        let (host, unit) = (self.row(&self.hosts, host), self.row(&self.units, unit));
        self.most(host.iter().zip(unit).map(|(host, unit)| (host - unit) as f64), deviations)
    }

    /// What a unit wants by itself.
    pub(crate) fn of_unit(&self, unit: usize, deviations: f64) -> f64 {
        self.most(self.row(&self.units, unit).iter().map(|mhz| *mhz as f64), deviations)
    }

    /// All hosts together.
    pub(crate) fn of_all(&self, deviations: f64) -> f64 {
        let sum =
            |slot: usize| self.hosts[slot..].iter().step_by(self.slots).map(|mhz| *mhz as f64).sum::<f64>();
        self.most((0..self.slots).map(sum), deviations)
    }

    pub(crate) fn memory_of_host(&self, host: usize) -> u64 {
        self.hosts_memory[host]
    }

    pub(crate) fn memory_of_unit(&self, unit: usize) -> u64 {
        self.units_memory[unit]
    }

    /// What a host's VMs want now.
    pub(crate) fn now(&self, host: usize) -> f64 {
        self.hosts[host * self.slots + self.recent - 1] as f64
    }

    fn row<'r>(&self, rows: &'r [u64], at: usize) -> &'r [u64] {
        &rows[at * self.slots..(at + 1) * self.slots]
    }

    fn most(&self, mut slots: impl Iterator<Item = f64>, deviations: f64) -> f64 {
        let mut now = 0.0;
        let recent = slots.by_ref().take(self.recent).inspect(|mhz| now = *mhz);
        let recent = with_margin(recent, deviations);
        recent.max(now).max(with_margin(slots, deviations))
    }
}

/// What the VM wants in each slot; where that is not known, the most that is.
fn add_vm(case: &Case<'_>, at: usize, recent: usize, most: u64, row: &mut [u64]) {
    let vm = case.vms[at];
    let within = |mhz: u64| vm.controls.cpu.limit.map_or(mhz, |limit| mhz.min(limit)).min(most);
    let unknown = within(case.demand[at].cpu.max(vm.demand_long.cpu));
    let (past, ahead) = row.split_at_mut(recent);
    let newest_first = vm.recent_mhz.iter().rev().map(|mhz| within(*mhz)).chain(std::iter::repeat(unknown));
    past.iter_mut().rev().zip(newest_first).for_each(|(slot, mhz)| *slot += mhz);
    let known = vm.recent_mhz.iter().fold(0u128, |sum, mhz| sum + u128::from(within(*mhz)));
    let usual = known.checked_div(vm.recent_mhz.len() as u128).map_or(unknown, |mhz| mhz as u64);
    let soonest_first = vm.ahead_mhz.iter().map(|mhz| within(*mhz)).chain(std::iter::repeat(usual));
    ahead.iter_mut().zip(soonest_first).for_each(|(slot, mhz)| *slot += mhz);
}

/// Mean and deviations; 0 of nothing.
fn with_margin(slots: impl Iterator<Item = f64>, deviations: f64) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for mhz in slots {
        count += 1.0;
        sum += mhz;
        squares += mhz * mhz;
    }
    if count == 0.0 {
        return 0.0;
    }
    let mean = sum / count;
    mean + deviations * (squares / count - mean * mean).max(0.0).sqrt()
}
