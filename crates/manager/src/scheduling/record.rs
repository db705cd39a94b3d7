//! What becomes of a plan: whether it is worth recording, and which of its steps are done without asking anybody.

use std::collections::BTreeMap;

use godwit_scheduler::decision::Decision;
use godwit_scheduler::planner::{Action, Goal, Plan, Reason};
use godwit_scheduler::policy::{Automation, Policy};
use godwit_scheduler::record::{DecisionRecord, StepState};
use godwit_types::{ApiError, VmName};

use crate::store::{NewEvent, Tx};

/// Records a decision if it says something that the last one did not, or if `asked`; its id if it was.
pub(super) fn record(
    tx: &Tx<'_>,
    cause: &str,
    decision: &Decision,
    asked: bool,
) -> Result<Option<u64>, ApiError> {
    let is_balance = decision.goal == Goal::Balance;
    let states =
        if is_balance { states(decision) } else { vec![StepState::Recommended; decision.plan.steps.len()] };
    if is_balance {
        let last = tx.last_balance()?;
        let says_the_same = match &last {
            Some(last) => is_same(last, &decision.plan),
            None => {
                decision.plan.steps.is_empty()
                    && decision.plan.findings.is_empty()
                    && decision.plan.unmoved.is_empty()
            }
        };
        if says_the_same && !asked {
            return Ok(None);
        }
    }
    tx.drop_open_steps(is_balance, "a later decision has taken its place")?;
    let id = tx.add_decision(cause, decision, &states)?;
    if !states.is_empty() {
        let approved = states.iter().filter(|state| **state == StepState::Approved).count();
        let message = format!(
            "decision {id}, since {cause}: {approved} to be done, {} recommended; see: godwit scheduler show {id}",
            states.len() - approved
        );
        tx.add_event(NewEvent::new("scheduler.decided", message))?;
    }
    Ok(Some(id))
}

/// Whether a plan has the steps that the last decision has left open, and says the same beside them. Numbers in texts change
/// from round to round.
fn is_same(last: &DecisionRecord, plan: &Plan) -> bool {
    let open =
        last.steps.iter().filter(|step| matches!(step.state, StepState::Recommended | StepState::Approved));
    let without_numbers = |texts: &[String]| -> Vec<String> {
        texts.iter().map(|text| text.chars().filter(|c| !c.is_ascii_digit()).collect()).collect()
    };
    open.map(|step| (&step.step.action, &step.step.reason))
        .eq(plan.steps.iter().map(|step| (&step.action, &step.reason)))
        && last.outline.unmoved.iter().map(|why| &why.vm).eq(plan.unmoved.iter().map(|why| &why.vm))
        && without_numbers(&last.outline.findings) == without_numbers(&plan.findings)
}

/// Which steps are done at once, and which wait for people.
///
/// A host is emptied whatever the automation: somebody has asked for it. Everything else is done where the VM's automation, or
/// else the cluster's, is full, up to the policy's threshold. A step is done only with those that it waits for.
fn states(decision: &Decision) -> Vec<StepState> {
    let Decision { plan, policy, snapshot, .. } = decision;
    let automations: BTreeMap<&VmName, Automation> =
        snapshot.vms.iter().map(|vm| (&vm.name, vm.automation)).collect();
    let mut done: Vec<bool> = plan
        .steps
        .iter()
        .map(|step| is_full(policy, &automations, &step.action) && step.priority <= policy.threshold)
        .collect();
    for (index, step) in plan.steps.iter().enumerate() {
        done[index] &= step.after.iter().all(|before| done.get(*before).copied().unwrap_or(false));
    }
    let asked_for =
        plan.steps.iter().enumerate().filter(|(_, step)| matches!(step.reason, Reason::Maintenance { .. }));
    let mut needed: Vec<usize> = asked_for.map(|(index, _)| index).collect();
    while let Some(index) = needed.pop() {
        // Steps wait for earlier ones alone, so this ends.
        if let Some(step) = plan.steps.get(index) {
            done[index] = true;
            needed.extend(step.after.iter().copied().filter(|before| *before < index));
        }
    }
    done.into_iter().map(|done| if done { StepState::Approved } else { StepState::Recommended }).collect()
}

fn is_full(policy: &Policy, automations: &BTreeMap<&VmName, Automation>, action: &Action) -> bool {
    let own = match action {
        Action::Move { vm, .. } | Action::Place { vm, .. } => automations.get(vm).copied(),
        Action::Wake { .. } | Action::Standby { .. } => None,
    };
    let applies = own.filter(|own| *own != Automation::Inherit).unwrap_or(policy.automation);
    applies == Automation::Full
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
