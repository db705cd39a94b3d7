//! Where a VM is to start, if nobody has said.

use std::sync::Arc;

use godwit_scheduler::planner::{Action, Goal, WhyNot};
use godwit_scheduler::record::StepState;
use godwit_types::task::Task;
use godwit_types::{ApiError, ErrorCode, HostName};

use super::snapshot::snapshot;
use super::{Terms, decide};
use crate::clock::now_unix_ms;
use crate::manager::{Manager, unknown_vm};
use crate::store::{StepChange, Tx, VmRow};

/// Has the scheduler choose a host for `vm`, and `start` make the task that starts it there, with a record of both.
pub(crate) async fn place(
    manager: &Arc<Manager>,
    vm: String,
    start: impl FnOnce(&Tx<'_>, &HostName) -> Result<Task, ApiError> + Send + 'static,
) -> Result<Task, ApiError> {
    let _alone = manager.scheduling.placing.lock().await;
    let limits = manager.limits.clone();
    let scene = manager.store.read(move |tx| {
        let row = tx.vm(&vm)?.ok_or_else(|| unknown_vm(&vm))?;
        let terms = Terms::of(tx, &limits)?;
        Ok((snapshot(tx, &terms, Some(&row), now_unix_ms())?, terms.policy, row))
    });
    let (snapshot, policy, row) = scene.await?;
    let decision = decide(snapshot, policy, Goal::Place).await?;
    let started = manager.store.write(move |tx| {
        let Some((step, on)) = found(&decision.plan.steps, &row) else {
            return Err(refused(&row, decision.plan.unmoved.iter().find(|why| why.vm == row.name)));
        };
        let task = start(tx, &on)?;
        let states = vec![StepState::Approved; decision.plan.steps.len()];
        let decision = tx.add_decision(&format!("{} is to start", row.name), &decision, &states)?;
        let change =
            StepChange { decision, step, state: StepState::Running, task: Some(task.id), detail: None };
        tx.change_step(&change)?;
        Ok(task)
    });
    started.await
}

fn found(steps: &[godwit_scheduler::planner::Step], row: &VmRow) -> Option<(usize, HostName)> {
    steps.iter().enumerate().find_map(|(index, step)| match &step.action {
        Action::Place { vm, on } if *vm == row.name => Some((index, on.clone())),
        _ => None,
    })
}

/// With what speaks against each host.
fn refused(row: &VmRow, why: Option<&WhyNot>) -> ApiError {
    let reasons = why.into_iter().flat_map(|why| &why.reasons).map(|(host, reason)| match host {
        Some(host) => format!("{host}: {reason}"),
        None => reason.clone(),
    });
    let reasons: Vec<String> = reasons.collect();
    let message = format!("no host can run {}: {}", row.name, reasons.join("; "));
    ApiError::new(ErrorCode::Refused, message).remedy(format!(
        "make room for it (godwit scheduler run --goal make-room:{}), or name a host: godwit vm start {} --host HOST",
        row.name, row.name
    ))
}
