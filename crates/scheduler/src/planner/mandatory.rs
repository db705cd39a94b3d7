//! What must be done: hosts are emptied, rules mended, VMs placed.

use std::cmp::Reverse;

use super::work::Work;
use super::{Reason, room};
use crate::rules::table::Says;
use crate::snapshot::HostState;

/// What must be done has this priority.
pub(super) const MANDATORY: u8 = 1;

/// Everybody leaves these hosts who can, the largest first.
pub(super) fn empty(work: &mut Work<'_>, hosts: &[usize]) {
    for unit in largest_first(work, |work, unit| {
        work.model.place[unit].is_some_and(|host| hosts.contains(&(host as usize)))
    }) {
        let Some(host) = work.model.place[unit].map(|host| host as usize) else { continue };
        let reason = Reason::Maintenance { host: work.case.hosts[host].name.clone() };
        if !settle(work, unit, reason, true) {
            work.why_not(unit, &format!("host '{}' is to be emptied", work.case.hosts[host].name));
        }
    }
}

/// Hosts in maintenance that are heard of.
pub(super) fn in_maintenance(work: &Work<'_>) -> Vec<usize> {
    let hosts = (0..work.case.hosts.len()).filter(|host| work.case.gives(*host));
    hosts.filter(|host| work.case.hosts[*host].state == HostState::Maintenance).collect()
}

/// Hosts for VMs that have none. If others may move, they make room.
pub(super) fn place(work: &mut Work<'_>, wanted: impl Fn(usize) -> bool, others_move: bool) {
    let is_wanted = |work: &Work<'_>, unit: usize| {
        let vms = &work.model.units[unit].vms;
        work.model.place[unit].is_none()
            && vms.iter().any(|vm| wanted(*vm as usize))
            && vms.iter().all(|vm| work.case.vms[*vm as usize].host.is_none())
    };
    for unit in largest_first(work, is_wanted) {
        if !settle(work, unit, Reason::Start, others_move) {
            work.why_not(unit, "it has no host");
        }
    }
}

/// Mends must-rules, the one that is broken furthest first, until nothing helps.
pub(super) fn mend(work: &mut Work<'_>) {
    let mut broken: Vec<usize> = (0..work.case.table.entries.len())
        .filter(|rule| work.case.table.entries[*rule].must && work.model.broken(*rule) > 0)
        .collect();
    broken.sort_by_key(|rule| (Reverse(work.model.broken(*rule)), *rule));
    for rule in broken {
        while work.model.broken(rule) > 0 && mend_once(work, rule) {}
        if work.model.broken(rule) > 0 {
            explain(work, rule);
        }
    }
}

/// Makes the change that mends the rule most, of those the cheapest. Whether there is one.
fn mend_once(work: &mut Work<'_>, rule: usize) -> bool {
    let entry = &work.case.table.entries[rule];
    let reason = Reason::Rule { rule: entry.name.clone() };
    if entry.says == Says::Together {
        return gather(work, rule, reason);
    }
    let mut units: Vec<usize> =
        entry.vms.iter().map(|vm| work.model.unit_of[*vm as usize] as usize).collect();
    units.sort_unstable();
    units.dedup();
    units.retain(|unit| work.model.place[*unit].is_some() && work.stays(*unit).is_none());
    let hosts = 0..work.case.hosts.len();
    let model = &work.model;
    let mends = |unit: usize, host: usize| {
        let dearer = model.look(unit, host)?;
        let worse = model.worse_of(rule, unit, host);
        (worse < 0).then_some((worse, dearer, unit, host))
    };
    let best = units.iter().flat_map(|unit| hosts.clone().filter_map(|host| mends(*unit, host))).min();
    if let Some((_, _, unit, host)) = best {
        work.model.go(unit, host);
        work.note(unit, reason, MANDATORY);
        return true;
    }
    // Nobody can go as things are: others make room for one of them.
    for unit in units {
        let (model, why, wrong) = (work.model.clone(), work.why.clone(), work.model.broken(rule));
        if settle(work, unit, reason.clone(), true) && work.model.broken(rule) < wrong {
            return true;
        }
        (work.model, work.why) = (model, why);
    }
    false
}

/// Brings all VMs of a rule to the host where that costs least.
fn gather(work: &mut Work<'_>, rule: usize, reason: Reason) -> bool {
    let vms = &work.case.table.entries[rule].vms;
    let mut units: Vec<usize> = vms.iter().map(|vm| work.model.unit_of[*vm as usize] as usize).collect();
    units.sort_unstable();
    units.dedup();
    units.retain(|unit| work.model.place[*unit].is_some());
    let mut best: Option<(i64, Vec<usize>, super::model::Model<'_>)> = None;
    for host in 0..work.case.hosts.len() {
        let mut model = work.model.clone();
        let coming: Vec<usize> =
            units.iter().copied().filter(|unit| model.place[*unit] != Some(host as u32)).collect();
        let came = coming.iter().all(|unit| {
            // On the way the rule may be broken further: it is mended once all are there.
            let may = work.stays(*unit).is_none()
                && model.may_run(*unit, host)
                && model.has_room(*unit, host)
                && model.breaks(*unit, host).is_none_or(|broken| broken == rule);
            if may {
                model.go(*unit, host);
            }
            may
        });
        if came && model.broken(rule) == 0 && best.as_ref().is_none_or(|(least, ..)| model.cost() < *least) {
            best = Some((model.cost(), coming, model));
        }
    }
    let Some((_, coming, model)) = best else { return false };
    work.model = model;
    coming.into_iter().for_each(|unit| work.note(unit, reason.clone(), MANDATORY));
    true
}

/// Why those stay that break the rule.
fn explain(work: &mut Work<'_>, rule: usize) {
    let entry = &work.case.table.entries[rule];
    let wrong = format!("it is against {}", entry.show());
    let mut units: Vec<usize> =
        entry.vms.iter().map(|vm| work.model.unit_of[*vm as usize] as usize).collect();
    units.sort_unstable();
    units.dedup();
    units.retain(|unit| work.model.place[*unit].is_some());
    if let Says::Only(allowed) = &entry.says {
        units.retain(|unit| work.model.place[*unit].is_some_and(|host| !allowed[host as usize]));
    }
    units.into_iter().for_each(|unit| work.why_not(unit, &wrong));
}

/// Moves a unit to the best host there is, others out of its way if they may. Whether it has gone.
fn settle(work: &mut Work<'_>, unit: usize, reason: Reason, others_move: bool) -> bool {
    if work.stays(unit).is_some() {
        return false;
    }
    let priority = MANDATORY;
    if let Some(host) = room::best(&work.model, unit, &[]) {
        work.model.go(unit, host);
        work.note(unit, reason, priority);
        return true;
    }
    if !others_move {
        return false;
    }
    let stay: Vec<bool> = (0..work.model.units.len()).map(|unit| work.stays(unit).is_some()).collect();
    let Some(moved) = room::make(&mut work.model, unit, &|unit| !stay[unit]) else { return false };
    let makes_room = Reason::Room { vm: work.name(unit) };
    moved.into_iter().for_each(|moved| work.note(moved, makes_room.clone(), priority));
    work.note(unit, reason, priority);
    true
}

fn largest_first(work: &Work<'_>, wanted: impl Fn(&Work<'_>, usize) -> bool) -> Vec<usize> {
    let mut units: Vec<usize> = (0..work.model.units.len()).filter(|unit| wanted(work, *unit)).collect();
    units.sort_by_key(|unit| (Reverse(work.model.units[*unit].need[1]), *unit));
    units
}
