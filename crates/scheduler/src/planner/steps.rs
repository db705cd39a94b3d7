//! From who goes where to a plan.

use super::model::Model;
use super::objective::shown;
use super::standing;
use super::work::Work;
use super::{Action, Plan, Step, WhyNot};
use crate::sequence::{self, Going, Timed};

/// The plan, in an order in which it can be done.
pub(super) fn plan(work: Work<'_>) -> Plan {
    let home = Model::new(work.case);
    let ready_ms = vec![0; work.case.hosts.len()];
    let order = sequence::order(work.case, going(&work, &home), &ready_ms);
    let mut unmoved = work.unmoved.clone();
    for unit in order.dropped {
        for vm in &work.model.units[unit].vms {
            unmoved.push(WhyNot {
                vm: work.case.vms[*vm as usize].name.clone(),
                wrong: wrong(&work, unit),
                reasons: vec![(None, "its move fits in no order: too little room on the way".into())],
            });
        }
    }
    let mut model = home.clone();
    let steps = order.steps.into_iter().map(|timed| step(&work, &mut model, timed)).collect();
    Plan { steps, before: standing::of(&home), after: standing::of(&model), unmoved, findings: work.findings }
}

/// Everybody who is not at home.
fn going(work: &Work<'_>, home: &Model<'_>) -> Vec<Going> {
    let mut all = Vec::new();
    for (unit, (reason, priority)) in &work.why {
        let (from, to) = (home.place[*unit], work.model.place[*unit]);
        let Some(to) = to.filter(|_| from != to) else { continue };
        all.extend(work.model.units[*unit].vms.iter().map(|vm| Going {
            vm: *vm as usize,
            unit: *unit,
            from: from.map(|from| from as usize),
            to: to as usize,
            reason: reason.clone(),
            priority: *priority,
        }));
    }
    all
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
    use super::Reason;
    match work.why.get(&unit).map(|(reason, _)| reason) {
        Some(Reason::Maintenance { host }) => format!("host '{host}' is to be emptied"),
        Some(Reason::Rule { rule }) => format!("it is against rule '{rule}'"),
        Some(Reason::Start) => "it has no host".into(),
        _ => "another host would be better".into(),
    }
}
