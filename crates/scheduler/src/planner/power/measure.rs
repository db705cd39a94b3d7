//! How a cluster is used, what it lacks, and what sparing a host is worth.

use crate::entitlement::{Reserved, Tree};
use crate::planner::case::Case;
use crate::planner::work::Work;
use crate::planner::{demand, standing};
use crate::resource::Resource;
use crate::sequence::cost;

/// Cycles a second of a core, in MHz: what work of a core is as a part of a host.
const CORE_MHZ: f64 = 3_000.0;

/// What the hosts that take VMs must have, whichever they are: asked once, and held against many sets of hosts.
pub(super) struct Required {
    reserved: Option<Reserved>,
    /// Of all VMs, in bytes.
    memory: u128,
}

impl Required {
    pub(super) fn of(case: &Case<'_>) -> Self {
        let memory = (0..case.vms.len())
            .filter(|vm| case.home[*vm].is_some_and(|home| case.gives(home)))
            .map(|vm| u128::from(case.need(vm).memory))
            .sum();
        Self { reserved: case.tree.as_ref().map(Tree::reserved), memory }
    }

    /// What is lacking if some hosts are not there, after the losses that are prepared for: in millionths of what is left.
    pub(super) fn lacking(&self, case: &Case<'_>, without: &[usize]) -> u64 {
        let mut is_left = vec![true; case.hosts.len()];
        without.iter().for_each(|host| is_left[*host] = false);
        let lost = case.policy.failures_to_tolerate as usize;
        let left = demand::capacity(case, lost, |host| is_left[host]);
        let part = |wanted: u128, there: u64, whole: u64| {
            let missing = wanted.saturating_sub(there.into());
            missing.saturating_mul(1_000_000) / u128::from(whole.max(1))
        };
        let reserved = |resource: Resource| {
            let Some(reserved) = &self.reserved else { return 0 };
            let (total, largest) = (left.total[resource], left.largest[resource]);
            let all = part(reserved.total[resource].into(), total, total);
            all.saturating_add(part(reserved.largest[resource].into(), largest, total))
        };
        let memory = part(self.memory, left.total.memory, left.total.memory);
        let all = Resource::ALL.into_iter().map(reserved).fold(memory, u128::saturating_add);
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

/// What is saved while demand stays as it is, less what must be worth it: watts times seconds.
pub(super) fn balance_of(work: &Work<'_>, host: usize, units: &[usize]) -> i128 {
    let case = work.case;
    let known = case.hosts[host];
    let Some(power) = &known.power else { return 0 };
    let stable_s = case.policy.stable_ms as f64 / 1000.0;
    let idle = standing::drawn(power, 0, 1) as f64;
    let saved = (idle - f64::from(power.standby_watts)) * (stable_s - power.wake_ms as f64 / 1000.0);
    let core = CORE_MHZ / (known.capacity.cpu as f64).max(1.0) * standing::drawn(power, 1, 1) as f64;
    let vms = units.iter().flat_map(|unit| &work.model.units[*unit].vms);
    let cpu_ms =
        |vm: &u32| cost::of(&case.vms[*vm as usize].writes, known.migration.bytes_per_s).cpu_ms as f64;
    // Away, and back again.
    let cost = 2.0 * vms.map(cpu_ms).sum::<f64>() / 1000.0 * core;
    (saved - f64::from(case.policy.power.benefit_ratio) * cost) as i128
}
