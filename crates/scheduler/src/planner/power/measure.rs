//! How a cluster is used, what it lacks, and what sparing a host is worth.

use crate::entitlement::{Capacity, Refusal};
use crate::planner::case::Case;
use crate::planner::model::Model;
use crate::planner::work::Work;
use crate::planner::{demand, standing};
use crate::resource::PerResource;
use crate::sequence::cost;
use crate::snapshot::Snapshot;

/// Cycles a second of a core, in MHz: what work of a core is as a part of a host.
const CORE_MHZ: f64 = 3_000.0;

/// How far hosts are above the band and below it, in thousandths of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Distance {
    pub(super) high: u64,
    pub(super) low: u64,
}

/// What is used of a host's CPU and memory, in thousandths.
pub(super) fn used(model: &Model<'_>, host: usize) -> [u64; 2] {
    [0, 1].map(|at| (model.objective.part(host, at, model.load[host][at]) * 1000.0) as u64)
}

pub(super) fn distance(model: &Model<'_>) -> Distance {
    let power = &model.case.policy.power;
    // The policy was found to make sense: the band is within 0 and 100 %.
    let (from, to) =
        (power.target_percent.saturating_sub(power.band_percent), power.target_percent + power.band_percent);
    let (from, to) = (10 * u64::from(from), 10 * u64::from(to));
    let each = (0..model.case.hosts.len()).filter(|host| model.case.gets(*host));
    each.flat_map(|host| used(model, host)).fold(Distance { high: 0, low: 0 }, |sum, used| Distance {
        high: sum.high + used.saturating_sub(to),
        low: sum.low + from.saturating_sub(used),
    })
}

/// What the hosts that take VMs lack for what is reserved and for the memory of all VMs, after the losses that are prepared for:
/// in millionths of what they have.
pub(super) fn shortage(case: &Case<'_>) -> u64 {
    let lost = case.policy.failures_to_tolerate as usize;
    let hosts: Vec<PerResource<u64>> =
        (0..case.hosts.len()).filter(|host| case.gets(*host)).map(|host| case.hosts[host].capacity).collect();
    let left = Capacity::without_largest(&hosts, lost);
    let memory: u128 = (0..case.vms.len())
        .filter(|vm| case.home[*vm].is_some_and(|home| case.gives(home)))
        .map(|vm| u128::from(case.need(vm).memory))
        .sum();
    let part = |missing: u128, whole: u64| missing.saturating_mul(1_000_000) / u128::from(whole.max(1));
    let memory = part(memory.saturating_sub(left.total.memory.into()), left.total.memory);
    let reserved: u128 = demand::refusals(case, lost)
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

/// The snapshot with the most that VMs have wanted lately.
pub(super) fn long(snapshot: &Snapshot) -> Snapshot {
    let mut long = snapshot.clone();
    for vm in &mut long.vms {
        let (now, lately) = (vm.demand, vm.demand_long);
        vm.demand = PerResource::from_fn(|resource| now[resource].max(lately[resource]));
    }
    long
}

/// What is saved while demand stays as it is, less what must be worth it: watts times seconds.
pub(super) fn balance_of(work: &Work<'_>, hosts: &[usize]) -> i128 {
    let case = work.case;
    let stable_s = case.policy.stable_ms as f64 / 1000.0;
    let saved = |host: usize| {
        let Some(power) = &case.hosts[host].power else { return 0.0 };
        let idle = standing::drawn(power, 0, 1);
        (idle as f64 - f64::from(power.standby_watts)) * (stable_s - power.wake_ms as f64 / 1000.0)
    };
    let moved = |unit: usize| {
        let home = work.model.units[unit].home.map_or(0, |home| home as usize);
        let host = case.hosts[home];
        let full = host.power.as_ref().map_or(0, |power| standing::drawn(power, 1, 1)) as f64;
        let part = CORE_MHZ / (host.capacity.cpu as f64).max(1.0);
        let each = work.model.units[unit].vms.iter().map(|vm| {
            cost::of(&case.vms[*vm as usize].writes, host.migration.bytes_per_s).cpu_ms as f64 / 1000.0
        });
        // Away, and back again.
        2.0 * each.sum::<f64>() * part * full
    };
    let saved: f64 = hosts.iter().map(|host| saved(*host)).sum();
    let cost: f64 = work.why.keys().map(|unit| moved(*unit)).sum();
    (saved - f64::from(case.policy.power.benefit_ratio) * cost) as i128
}
