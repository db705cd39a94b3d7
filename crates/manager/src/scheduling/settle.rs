//! What has become of steps that were to be done: a pure function of their records and of the VMs' tasks.

use std::collections::BTreeMap;

use godwit_scheduler::planner::Action;
use godwit_scheduler::record::{DecisionRecord, StepRecord, StepState};
use godwit_types::TaskId;
use godwit_types::task::{Task, TaskKind, TaskState};

use crate::store::{StepChange, StoreError, Tx};

/// Writes down what has become of all steps that were to be done.
pub(super) fn settle(tx: &Tx<'_>) -> Result<(), StoreError> {
    let decisions = tx.open_decisions()?;
    if decisions.is_empty() {
        return Ok(());
    }
    let mut tasks: BTreeMap<TaskId, Task> =
        tx.open_tasks()?.into_iter().map(|task| (task.id, task)).collect();
    let running = decisions.iter().flat_map(|record| &record.steps).filter(|s| s.state == StepState::Running);
    for ended in running.filter_map(|step| step.task) {
        if !tasks.contains_key(&ended) {
            tasks.extend(tx.task(ended)?.map(|task| (ended, task)));
        }
    }
    for change in decisions.iter().flat_map(|record| changes(record, &tasks)) {
        tx.change_step(&change)?;
    }
    Ok(())
}

fn changes(record: &DecisionRecord, tasks: &BTreeMap<TaskId, Task>) -> Vec<StepChange> {
    let mut states: Vec<StepState> = record.steps.iter().map(|step| step.state).collect();
    let mut changes = Vec::new();
    for (index, step) in record.steps.iter().enumerate() {
        let waits_in_vain =
            || step.step.after.iter().any(|before| states.get(*before).is_some_and(|state| is_lost(*state)));
        let became = match step.state {
            StepState::Running => ended(step, tasks),
            StepState::Approved if waits_in_vain() => {
                Some((StepState::Dropped, None, Some("a step for which it waited was not done".to_owned())))
            }
            StepState::Approved => begun(step, tasks),
            _ => None,
        };
        if let Some((state, task, detail)) = became {
            states[index] = state;
            changes.push(StepChange { decision: record.id, step: index, state, task, detail });
        }
    }
    changes
}

const fn is_lost(state: StepState) -> bool {
    matches!(state, StepState::Failed | StepState::Rejected | StepState::Dropped)
}

type Became = (StepState, Option<TaskId>, Option<String>);

/// How a step ended, if it did.
fn ended(step: &StepRecord, tasks: &BTreeMap<TaskId, Task>) -> Option<Became> {
    let Some(task) = step.task.and_then(|id| tasks.get(&id)) else {
        return Some((StepState::Failed, None, Some("nothing is known any more of its task".to_owned())));
    };
    match task.state {
        TaskState::Succeeded => Some((StepState::Done, None, None)),
        TaskState::Failed | TaskState::Cancelled => {
            let why = task.error.as_ref().map_or(&task.message, |error| &error.message);
            Some((StepState::Failed, None, Some(why.clone())))
        }
        TaskState::Waiting | TaskState::Running | TaskState::Cancelling => None,
    }
}

/// A step whose task was begun by a manager that ended before it could say so.
fn begun(step: &StepRecord, tasks: &BTreeMap<TaskId, Task>) -> Option<Became> {
    let does = |task: &&Task| {
        !task.state.is_final()
            && match (&step.step.action, &task.kind) {
                (Action::Move { vm, to, .. }, TaskKind::MigrateVm { to: bound, .. }) => {
                    task.vm_name.as_ref() == Some(vm) && bound == to
                }
                (Action::Wake { host }, TaskKind::WakeHost { host: woken }) => host == woken,
                (Action::Standby { host }, TaskKind::SendToStandby { host: sent }) => host == sent,
                _ => false,
            }
    };
    tasks.values().find(does).map(|task| (StepState::Running, Some(task.id), None))
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
