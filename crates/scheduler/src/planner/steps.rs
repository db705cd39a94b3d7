//! From who goes where to a plan.

use std::collections::BTreeSet;

use godwit_types::HostName;

use super::case::Case;
use super::findings::listed;
use super::model::Model;
use super::objective::shown;
use super::power::{self, Spared, Wake};
use super::work::Work;
use super::{Action, Cost, Plan, Reason, Step, WhyNot, standing};
use crate::resource::Resource;
use crate::rules::table::Says;
use crate::sequence::{self, Going, Timed};

/// The plan, and hosts are woken meanwhile.
pub(super) fn waking(work: Work<'_>, woken: &[Wake]) -> Plan {
    let case = work.case;
    let mut plan = plan(work);
    for wake in woken {
        let host = case.hosts[wake.host];
        plan.steps.push(Step {
            action: Action::Wake { host: host.name.clone() },
            priority: wake.priority,
            reason: wake.reason.clone(),
            gain: shown(wake.gain),
            cost: Cost::default(),
            after: Vec::new(),
            begins_ms: 0,
            ends_ms: host.power.as_ref().map_or(0, |power| power.wake_ms),
        });
        let here = |reason: &&mut (Option<HostName>, String)| reason.0.as_ref() == Some(&host.name);
        let reasons = plan.unmoved.iter_mut().flat_map(|why| &mut why.reasons);
        reasons.filter(here).for_each(|(_, reason)| *reason = "it is being woken".into());
    }
    plan
}

/// The plan, and hosts are switched off once everybody has left them.
pub(super) fn sparing(work: Work<'_>, spared: Spared) -> Plan {
    let case = work.case;
    let mut plan = plan(work);
    plan.kept_on = spared.kept_on;
    for place in spared.hosts {
        let host = case.hosts[place];
        let leaves = |step: &Step| matches!(&step.action, Action::Move { from, .. } if *from == host.name);
        let after: Vec<usize> = (0..plan.steps.len()).filter(|at| leaves(&plan.steps[*at])).collect();
        if after.len() < case.home.iter().filter(|home| **home == Some(place)).count() {
            // Somebody's move fits in no order.
            continue;
        }
        let begins_ms = after.iter().map(|at| plan.steps[*at].ends_ms).max().unwrap_or(0);
        plan.steps.push(Step {
            action: Action::Standby { host: host.name.clone() },
            priority: power::SPARE,
            reason: Reason::Power { host: host.name.clone() },
            gain: 0.0,
            cost: Cost::default(),
            after,
            begins_ms,
            ends_ms: begins_ms,
        });
        if let Some(power) = &host.power {
            let idle = standing::drawn(power, 0, 1);
            plan.after.watts =
                plan.after.watts.saturating_sub(idle).saturating_add(power.standby_watts.into());
        }
    }
    plan
}

/// The plan, in an order in which it can be done.
pub(super) fn plan(work: Work<'_>) -> Plan {
    let home = Model::new(work.case);
    let order = sequence::order(work.case, going(&work, &home));
    let mut unmoved = work.unmoved.clone();
    let mut dropped: Vec<(usize, usize)> = order.dropped.iter().map(|going| (going.vm, going.unit)).collect();
    dropped.sort_unstable();
    // Who would have gone by way of another host is there twice.
    dropped.dedup();
    unmoved.extend(dropped.into_iter().map(|(vm, unit)| WhyNot {
        vm: work.case.vms[vm].name.clone(),
        wrong: wrong(&work, unit),
        reasons: vec![(None, "its move fits in no order: too little room on the way".into())],
    }));
    let mut findings = work.findings.clone();
    findings.extend(assumed(work.case, &order.steps));
    let mut model = home.clone();
    let steps = order.steps.into_iter().map(|timed| step(&work, &mut model, timed)).collect();
    Plan {
        steps,
        before: standing::of(&home),
        after: standing::of(&model),
        unmoved,
        findings: once(findings),
        kept_on: Vec::new(),
    }
}

/// Hosts that take part in moves although nobody knows how fast their networks are.
fn assumed(case: &Case<'_>, steps: &[Timed]) -> Option<String> {
    let ends = steps.iter().filter_map(|step| Some([step.going.from?, step.going.to])).flatten();
    let hosts: BTreeSet<usize> = ends.filter(|host| case.hosts[*host].migration.is_assumed).collect();
    let names: Vec<&str> = hosts.iter().map(|host| case.hosts[*host].name.as_str()).collect();
    let first = case.hosts[*hosts.first()?];
    let rate = Resource::Network.show(first.migration.bytes_per_s);
    Some(format!(
        "nobody knows how fast the network of {} is, and {rate} is assumed: name it with godwit host set {} --network",
        listed("host", &names),
        first.name
    ))
}

/// Each finding once, in order.
fn once(findings: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    findings.into_iter().filter(|finding| seen.insert(finding.clone())).collect()
}

/// Everybody who is not at home.
fn going(work: &Work<'_>, home: &Model<'_>) -> Vec<Going> {
    let groups = groups(work);
    let mut all = Vec::new();
    for (unit, (reason, priority)) in &work.why {
        let (from, to) = (home.place[*unit], work.model.place[*unit]);
        let Some(to) = to.filter(|_| from != to) else { continue };
        all.extend(work.model.units[*unit].vms.iter().map(|vm| Going {
            vm: *vm as usize,
            unit: *unit,
            group: groups[*unit],
            from: from.map(|from| from as usize),
            to: to as usize,
            reason: reason.clone(),
            priority: *priority,
        }));
    }
    all
}

/// For each unit the first of those that a must-rule brings together: if not all of them went, it could be broken further than before.
fn groups(work: &Work<'_>) -> Vec<usize> {
    let mut groups: Vec<usize> = (0..work.model.units.len()).collect();
    for entry in work.case.table.entries.iter().filter(|entry| entry.must && entry.says == Says::Together) {
        let units: Vec<usize> =
            entry.vms.iter().map(|vm| work.model.unit_of[*vm as usize] as usize).collect();
        let joined: Vec<usize> = units.iter().map(|unit| groups[*unit]).collect();
        let Some(first) = joined.iter().min().copied() else { continue };
        groups.iter_mut().filter(|group| joined.contains(group)).for_each(|group| *group = first);
    }
    groups
}

/// The step, and the cluster after it.
fn step(work: &Work<'_>, model: &mut Model<'_>, timed: Timed) -> Step {
    let Timed { going, cost, begins_ms, ends_ms, after } = timed;
    let before = model.score();
    if model.place[going.unit] != Some(going.to as u32) {
        model.go(going.unit, going.to);
    }
    let name = |host: usize| work.case.hosts[host].name.clone();
    let vm = work.case.vms[going.vm].name.clone();
    let action = match going.from {
        Some(from) => Action::Move { vm, from: name(from), to: name(going.to) },
        None => Action::Place { vm, on: name(going.to) },
    };
    Step {
        action,
        priority: going.priority,
        reason: going.reason,
        gain: shown(before - model.score()),
        cost,
        after,
        begins_ms,
        ends_ms,
    }
}

fn wrong(work: &Work<'_>, unit: usize) -> String {
    match work.why.get(&unit).map(|(reason, _)| reason) {
        Some(Reason::Maintenance { host }) => format!("host '{host}' is to be emptied"),
        Some(Reason::Rule { rule }) => format!("it is against rule '{rule}'"),
        Some(Reason::Start) => "it has no host".into(),
        _ => "another host would be better".into(),
    }
}
