//! How a cluster is used, what it lacks, and what sparing a host is worth.

use crate::entitlement::{Capacity, Refusal};
use crate::planner::case::Case;
use crate::planner::work::Work;
use crate::planner::{demand, standing};
use crate::resource::PerResource;
use crate::sequence::cost;

/// Cycles a second of a core, in MHz: what work of a core is as a part of a host.
const CORE_MHZ: f64 = 3_000.0;

/// What the hosts that take VMs lack for what is reserved and for the memory of all VMs, after the losses that are prepared for:
/// in millionths of what they have.
pub(super) fn shortage(case: &Case<'_>, without: &[usize]) -> u64 {
    let lost = case.policy.failures_to_tolerate as usize;
    let hosts: Vec<PerResource<u64>> = (0..case.hosts.len())
        .filter(|host| case.gets(*host) && !without.contains(host))
        .map(|host| case.hosts[host].capacity)
        .collect();
    let left = Capacity::without_largest(&hosts, lost);
    let memory: u128 = (0..case.vms.len())
        .filter(|vm| case.home[*vm].is_some_and(|home| case.gives(home)))
        .map(|vm| u128::from(case.need(vm).memory))
        .sum();
    let part = |missing: u128, whole: u64| missing.saturating_mul(1_000_000) / u128::from(whole.max(1));
    let memory = part(memory.saturating_sub(left.total.memory.into()), left.total.memory);
    let reserved: u128 = demand::refusals(case, &left)
        .into_iter()
        .filter_map(|refusal| match refusal {
            Refusal::Cluster { resource, missing, .. } | Refusal::Host { resource, missing, .. } => {
                Some(part(missing.into(), left.total[resource]))
            }
            Refusal::Pool { .. } | Refusal::Limit { .. } => None,
        })
        .fold(0, u128::saturating_add);
    u64::try_from(memory.saturating_add(reserved)).unwrap_or(u64::MAX)
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
