//! VMs that the scheduler does not move for a while: their last move failed, or people did not want it.

use std::collections::{BTreeMap, BTreeSet};

use godwit_scheduler::planner::Action;
use godwit_scheduler::record::{LeftAlone, StepRecord, StepState};
use godwit_types::VmName;

use super::Inventory;
use crate::scheduling::Terms;
use crate::store::{StoreError, Tx};

/// By name, each with the reason and until when.
pub(crate) fn left_alone(
    tx: &Tx<'_>,
    terms: &Terms,
    inventory: &Inventory,
    now: u64,
) -> Result<Vec<LeftAlone>, StoreError> {
    let steps = tx.setbacks_since(now.saturating_sub(terms.policy.cooldown_ms))?;
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let to_leave = inventory.running().filter(|(_, host)| host.maintenance.is_some());
    let to_leave: BTreeSet<&VmName> = to_leave.map(|(row, _)| &row.name).collect();
    let is_to_leave = |vm: &VmName| to_leave.contains(vm);
    let alone = judge(&steps, terms, is_to_leave);
    Ok(alone.into_iter().filter(|alone| alone.until_unix_ms > now).collect())
}

/// What follows from setbacks, newest last.
fn judge(steps: &[StepRecord], terms: &Terms, is_to_leave: impl Fn(&VmName) -> bool) -> Vec<LeftAlone> {
    let cooldown_ms = terms.policy.cooldown_ms;
    let (mut alone, mut failures) = (BTreeMap::new(), BTreeMap::<&VmName, u32>::new());
    for record in steps {
        let Action::Move { vm, to, .. } = &record.step.action else { continue };
        let failed = record.state == StepState::Failed;
        let count = failures.entry(vm).or_default();
        *count += u32::from(failed);
        let wait_ms = match is_to_leave(vm) {
            // What must be is not up to whoever rejected it before.
            true if !failed => continue,
            true => cooldown_ms.min(terms.retry_ms.saturating_mul(1 << (*count - 1).min(16))),
            false => cooldown_ms,
        };
        let why = record.detail.as_deref().unwrap_or("no reason was given");
        let reason = match failed {
            true => format!("its last move, to {to}, failed: {why}"),
            false => format!("its move to {to} was rejected"),
        };
        let until_unix_ms = record.changed_unix_ms.saturating_add(wait_ms);
        alone.insert(vm.clone(), LeftAlone { vm: vm.clone(), reason, until_unix_ms });
    }
    alone.into_values().collect()
}

#[cfg(test)]
mod tests {
    use godwit_scheduler::planner::{Cost, Reason, Step};
    use godwit_scheduler::policy::Policy;

    use super::*;

    fn setback(vm: &str, state: StepState, changed_unix_ms: u64) -> StepRecord {
        let [from, to] = ["a", "b"].map(|host| host.parse().unwrap());
        let action = Action::Move { vm: vm.parse().unwrap(), from, to };
        let (cost, reason) = (Cost::default(), Reason::Start);
        let step =
            Step { action, priority: 3, reason, gain: 0.0, cost, after: vec![], begins_ms: 0, ends_ms: 0 };
        StepRecord {
            step,
            state,
            applied: false,
            changed_unix_ms,
            task: None,
            detail: Some("no room".into()),
        }
    }

    fn terms() -> Terms {
        Terms { policy: Policy { cooldown_ms: 100_000, ..Policy::default() }, retry_ms: 15_000 }
    }

    fn until(steps: &[StepRecord], leaves: bool) -> Vec<u64> {
        judge(steps, &terms(), |_| leaves).into_iter().map(|alone| alone.until_unix_ms).collect()
    }

    #[test]
    fn a_vm_whose_move_failed_or_was_rejected_is_left_alone_for_its_cool_down_with_the_reason() {
        let steps = [setback("web1", StepState::Failed, 1), setback("web2", StepState::Rejected, 2)];
        let alone = judge(&steps, &terms(), |_| false);
        assert_eq!(alone[0].reason, "its last move, to b, failed: no room");
        assert_eq!(alone[1].reason, "its move to b was rejected");
        assert_eq!(until(&steps, false), [100_001, 100_002]);
    }

    #[test]
    fn a_vm_that_is_to_leave_is_tried_again_soon_and_later_each_time_and_nobody_can_reject_it() {
        let failed = |at| setback("web1", StepState::Failed, at);
        assert_eq!(until(&[failed(1)], true), [15_001]);
        assert_eq!(until(&[failed(1), failed(20_000)], true), [50_000]);
        assert_eq!(
            until(&[failed(1), failed(2), failed(3), failed(4)], true),
            [100_004],
            "no later than the cool-down"
        );
        assert_eq!(until(&[setback("web1", StepState::Rejected, 1)], true), [0; 0]);
    }
}
