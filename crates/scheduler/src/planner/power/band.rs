//! How far hosts are used, beside how far they are to be.

use crate::planner::model::Model;
use crate::policy::PowerPolicy;
use crate::resource::Resource;

pub(super) use crate::planner::model::BURST_DEVIATIONS as FILL;
/// Deviations to spare where a host keeps those that it has: less, so that what was filled is not emptied again.
pub(super) const KEEP: f64 = 1.0;

/// To what part all hosts together are filled, and above what part one gives VMs away.
#[derive(Debug, Clone, Copy)]
pub(in crate::planner) struct Band {
    pub(super) target: f64,
    pub(in crate::planner) top: f64,
}

impl Band {
    pub(in crate::planner) fn of(power: &PowerPolicy) -> Self {
        let part = |percent: u32| f64::from(percent) / 100.0;
        Self { target: part(power.target_percent), top: part(power.target_percent + power.band_percent) }
    }
}

/// What part of a host is used, of CPU or of memory, whichever is more.
pub(super) fn used(model: &Model<'_>, host: usize, deviations: f64) -> (f64, Resource) {
    let Some(bursts) = &model.bursts else { return (0.0, Resource::Cpu) };
    let capacity = &model.case.hosts[host].capacity;
    let cpu = part(bursts.of_host(host, deviations), capacity.cpu);
    let memory = part(bursts.memory_of_host(host) as f64, capacity.memory);
    if memory > cpu { (memory, Resource::Memory) } else { (cpu, Resource::Cpu) }
}

/// The same, with the unit there.
pub(super) fn used_with(model: &Model<'_>, host: usize, unit: usize, deviations: f64) -> f64 {
    let Some(bursts) = &model.bursts else { return 0.0 };
    let capacity = &model.case.hosts[host].capacity;
    let memory = bursts.memory_of_host(host) + bursts.memory_of_unit(unit);
    part(bursts.with(host, unit, deviations), capacity.cpu).max(part(memory as f64, capacity.memory))
}

/// Whether the VMs of a host want more CPU now than it has.
pub(super) fn is_short(model: &Model<'_>, host: usize) -> bool {
    model.bursts.as_ref().is_some_and(|bursts| bursts.now(host) > model.case.hosts[host].capacity.cpu as f64)
}

/// The fullest of the hosts in use that stay within the band if they take the unit.
pub(super) fn fullest(model: &Model<'_>, unit: usize, top: f64) -> Option<usize> {
    let hosts = (0..model.case.hosts.len()).filter(|host| !model.guests(*host).is_empty());
    let fits = hosts.filter_map(|host| {
        model.look(unit, host)?;
        Some((used_with(model, host, unit, FILL), host)).filter(|(used, _)| *used <= top)
    });
    fits.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).map(|(_, host)| host)
}

fn part(used: f64, has: u64) -> f64 {
    if used == 0.0 { 0.0 } else { used / has as f64 }
}
