//! Hosts that are used for more than the band give VMs away.

use super::RELIEF;
use super::band::{Band, KEEP, fullest, is_short, used};
use crate::planner::Reason;
use crate::planner::model::Model;
use crate::planner::work::Work;
use crate::resource::Resource;

/// Most VMs of a host for which a place is looked for at a time.
const TRIED_MAX: usize = 8;

/// Moves VMs from hosts that are above the band to hosts that stay within it; to those that are `fresh` only if no other takes them, and in
/// their order.
/// Gives the hosts that are still above it.
pub(super) fn relieve(work: &mut Work<'_>, fresh: &[usize]) -> Vec<usize> {
    let top = Band::of(&work.case.policy.power).top;
    let hosts = (0..work.case.hosts.len()).filter(|host| work.case.gives(*host));
    let mut above: Vec<(f64, usize)> = hosts
        .filter(|host| is_above(&work.model, *host, top))
        .map(|host| (used(&work.model, host, KEEP).0, host))
        .collect();
    above.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut above: Vec<usize> = above.into_iter().map(|(_, host)| host).collect();
    above.retain(|host| {
        while is_above(&work.model, *host, top) {
            if !relieve_once(work, *host, top, fresh) {
                return true;
            }
        }
        false
    });
    above
}

/// Who has a host for itself wants no other.
fn is_above(model: &Model<'_>, host: usize, top: f64) -> bool {
    model.guests(host).len() > 1 && used(model, host, KEEP).0 > top
}

/// Moves one VM away. Whether there was one.
fn relieve_once(work: &mut Work<'_>, host: usize, top: f64, fresh: &[usize]) -> bool {
    let resource = used(&work.model, host, KEEP).1;
    for unit in leavers(work, host, top) {
        if let Some(to) = destination(&work.model, unit, top, fresh) {
            work.model.go(unit, to);
            work.note(unit, Reason::Band { resource }, RELIEF);
            return true;
        }
    }
    false
}

/// Those whose leaving helps most for what it costs.
fn leavers(work: &Work<'_>, host: usize, top: f64) -> Vec<usize> {
    let model = &work.model;
    let Some(bursts) = &model.bursts else { return Vec::new() };
    let (part, resource) = used(model, host, KEEP);
    let (has, excess) = (model.case.hosts[host].capacity[resource] as f64, part - top);
    let is_short = is_short(model, host);
    let may = |unit: &usize| {
        let may = if is_short { work.may_flee(*unit) } else { work.rests(*unit).is_none() };
        may && !work.why.contains_key(unit)
    };
    let helps = |unit: usize| match resource {
        Resource::Memory => bursts.memory_of_unit(unit) as f64 / has,
        _ => part - bursts.without(host, unit, KEEP) / has,
    };
    let guests = model.guests(host).iter().map(|unit| *unit as usize).filter(may);
    let mut units: Vec<(f64, usize)> = guests
        .map(|unit| (helps(unit).min(excess) / (model.units[unit].moved as f64).max(1.0), unit))
        .filter(|(worth, _)| *worth > 0.0)
        .collect();
    units.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    units.into_iter().take(TRIED_MAX).map(|(_, unit)| unit).collect()
}

/// The host that takes the unit. One that is empty takes any, so that a VM that fits within no band has a host for itself.
fn destination(model: &Model<'_>, unit: usize, top: f64, fresh: &[usize]) -> Option<usize> {
    let takes = |host: &usize| model.guests(*host).is_empty() && model.look(unit, *host).is_some();
    let mut others = (0..model.case.hosts.len()).filter(|host| !fresh.contains(host));
    fullest(model, unit, top).or_else(|| others.find(takes)).or_else(|| fresh.iter().copied().find(takes))
}
