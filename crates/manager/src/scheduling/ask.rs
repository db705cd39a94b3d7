//! What people ask of the scheduler.

use std::sync::Arc;

use godwit_scheduler::decision::{ENGINE_VERSION, Explanation, Replay};
use godwit_scheduler::planner::{Goal, Reason};
use godwit_scheduler::record::{
    AskReplay, AskWhatIf, DecisionRecord, Emptying, Imagined, NameSteps, Ran, RunScheduler, SchedulerStatus,
    StepState,
};
use godwit_types::{ApiError, ErrorCode, HostName, VmName};

use super::rounds::{Wanted, look};
use super::snapshot::{Inventory, left_alone, snapshot};
use super::{Terms, decide, execute};
use crate::clock::now_unix_ms;
use crate::manager::{Manager, unknown_host, unknown_vm};
use crate::store::{NewEvent, Power, StepChange};

/// `GET /v1/scheduler`.
pub(crate) async fn status(manager: &Manager) -> Result<SchedulerStatus, ApiError> {
    let looked_unix_ms = manager.scheduling.last.borrow().map(|last| last.unix_ms);
    let limits = manager.limits.clone();
    let status = manager.store.read(move |tx| {
        let terms = Terms::of(tx, &limits)?;
        let decision = tx.last_balance()?;
        let mut open = tx.open_decisions()?;
        open.extend(
            decision
                .iter()
                .filter(|last| open.iter().all(|one| one.id != last.id))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let count = |wanted: StepState| {
            let steps = open.iter().flat_map(|record| &record.steps);
            u32::try_from(steps.filter(|step| step.state == wanted).count()).unwrap_or(u32::MAX)
        };
        Ok(SchedulerStatus {
            automation: terms.policy.automation,
            threshold: terms.policy.threshold,
            engine: ENGINE_VERSION,
            looked_unix_ms,
            recommended: count(StepState::Recommended),
            approved: count(StepState::Approved),
            running: count(StepState::Running),
            decision,
            left_alone: left_alone(tx, &terms, &Inventory::of(tx)?, now_unix_ms())?,
        })
    });
    status.await
}

/// `POST /v1/scheduler/run`.
pub(crate) async fn run(manager: &Arc<Manager>, asked: RunScheduler) -> Result<Ran, ApiError> {
    if asked.goal == Goal::Place {
        let message = "a VM is placed when it starts: godwit vm start VM";
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    let wanted = if asked.dry_run { Wanted::ToTell } else { Wanted::ByPeople };
    look(manager, "somebody has asked", asked.goal, wanted).await
}

/// `GET /v1/hosts/{host}/maintenance`: what emptying a host would do.
pub(crate) async fn emptying(
    manager: &Arc<Manager>,
    host: HostName,
    move_disks: bool,
) -> Result<Emptying, ApiError> {
    let (name, limits) = (host.clone(), manager.limits.clone());
    let scene = manager.store.read(move |tx| {
        tx.host(&name)?.ok_or_else(|| unknown_host(name.as_str()))?;
        let terms = Terms::of(tx, &limits)?;
        let mut snapshot = snapshot(tx, &terms, None, now_unix_ms())?;
        let emptied = snapshot.hosts.iter_mut().filter(|host| host.name == name);
        emptied.for_each(|host| host.move_disks |= move_disks);
        Ok((snapshot, terms.policy, tx.running_on(&name)?))
    });
    let (snapshot, policy, vms) = scene.await?;
    let goal = Goal::Evacuate { hosts: vec![host.clone()] };
    let plan = decide(snapshot, policy, goal).await?.plan;
    Ok(Emptying { host, vms, plan })
}

/// `POST /v1/scheduler/decisions/{id}/apply`: does what was recommended, and what it waits for.
pub(crate) async fn apply(
    manager: &Arc<Manager>,
    id: u64,
    named: NameSteps,
) -> Result<DecisionRecord, ApiError> {
    let applied = manager.store.write(move |tx| {
        let record = tx.decision_record(id)?.ok_or_else(|| unknown_decision(id))?;
        let mut wanted = chosen(&record, &named)?;
        while let Some(index) = wanted.pop() {
            if let Some(step) = record.steps.get(index).filter(|step| step.state == StepState::Recommended) {
                tx.apply_step(id, index)?;
                wanted.extend(step.step.after.iter().copied().filter(|before| *before < index));
            }
        }
        tx.add_event(NewEvent::new("scheduler.applied", format!("what decision {id} recommends is applied")))
            .map_err(ApiError::from)
    });
    applied.await?;
    {
        let _alone = manager.scheduling.alone.lock().await;
        execute::execute(manager).await?;
    }
    record_of(manager, id).await
}

/// `POST /v1/scheduler/decisions/{id}/reject`: the VMs stay where they are for their cool-down.
pub(crate) async fn reject(manager: &Manager, id: u64, named: NameSteps) -> Result<DecisionRecord, ApiError> {
    let rejected = manager.store.write(move |tx| {
        let record = tx.decision_record(id)?.ok_or_else(|| unknown_decision(id))?;
        for step in chosen(&record, &named)? {
            if let Reason::Maintenance { host } = &record.steps[step].step.reason {
                let message = format!("step {step} of decision {id} empties {host}, which was asked for");
                let remedy = format!("end that instead: godwit host maintenance exit {host}");
                return Err(ApiError::new(ErrorCode::Refused, message).remedy(remedy));
            }
            tx.change_step(&StepChange {
                decision: id,
                step,
                state: StepState::Rejected,
                task: None,
                detail: None,
            })?;
        }
        tx.add_event(NewEvent::new(
            "scheduler.rejected",
            format!("what decision {id} recommends was rejected"),
        ))
        .map_err(ApiError::from)
    });
    rejected.await?;
    record_of(manager, id).await
}

/// The steps that wait for people, of those that were named; all of them if none was.
fn chosen(record: &DecisionRecord, named: &NameSteps) -> Result<Vec<usize>, ApiError> {
    let waits =
        |index: &usize| record.steps.get(*index).is_some_and(|step| step.state == StepState::Recommended);
    let id = record.id;
    if let Some(other) = named.steps.iter().find(|index| !waits(index)) {
        let message = format!("step {other} of decision {id} does not wait for anybody's word");
        return Err(ApiError::new(ErrorCode::Conflict, message)
            .remedy(format!("see what does: godwit scheduler show {id}")));
    }
    let all: Vec<usize> = (0..record.steps.len()).filter(waits).collect();
    if all.is_empty() {
        let message = format!("nothing in decision {id} waits for anybody's word");
        return Err(ApiError::new(ErrorCode::Conflict, message)
            .remedy("see what does: godwit scheduler recommendations"));
    }
    Ok(if named.steps.is_empty() { all } else { named.steps.clone() })
}

/// `POST /v1/scheduler/decisions/{id}/replay`: plans again from what was known then.
pub(crate) async fn replay(manager: &Manager, id: u64, asked: AskReplay) -> Result<Replay, ApiError> {
    let found = manager.store.read(move |tx| {
        let decision = tx.decision(id)?.ok_or_else(|| unknown_decision(id))?;
        let policy = match (asked.policy, asked.as_of_unix_ms) {
            (Some(policy), _) => Some(policy),
            (None, Some(unix_ms)) => Some(tx.policy_as_of(unix_ms)?.ok_or_else(no_policy)?),
            (None, None) => None,
        };
        Ok((decision, policy))
    });
    let (decision, policy) = found.await?;
    let again = tokio::task::spawn_blocking(move || decision.replay(policy.as_ref()));
    again.await.map_err(|error| ApiError::new(ErrorCode::Internal, format!("no plan was made: {error}")))
}

/// `GET /v1/scheduler/explain/{vm}`: why it is where it is, and what the other hosts would give it.
pub(crate) async fn explain(manager: &Arc<Manager>, vm: VmName) -> Result<Explanation, ApiError> {
    let limits = manager.limits.clone();
    let name = vm.clone();
    let scene = manager.store.read(move |tx| {
        let row = tx.vm(name.as_str())?.ok_or_else(|| unknown_vm(name.as_str()))?;
        let terms = Terms::of(tx, &limits)?;
        let placing = Some(&row).filter(|row| row.power != Power::Running);
        Ok((snapshot(tx, &terms, placing, now_unix_ms())?, terms.policy))
    });
    let (snapshot, policy) = scene.await?;
    let decision = decide(snapshot, policy, Goal::Balance).await?;
    let told =
        tokio::task::spawn_blocking(move || decision.explain(&vm).ok_or_else(|| unknown_vm(vm.as_str())));
    told.await
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("nothing was explained: {error}")))?
}

/// `POST /v1/scheduler/what-if`: what would be if something were otherwise. Nothing is recorded or done.
pub(crate) async fn what_if(manager: &Manager, asked: AskWhatIf) -> Result<Imagined, ApiError> {
    let limits = manager.limits.clone();
    let scene = manager.store.read(move |tx| {
        let terms = Terms::of(tx, &limits)?;
        Ok((snapshot(tx, &terms, None, now_unix_ms())?, terms.policy))
    });
    let (real, policy) = scene.await?;
    let imagined = godwit_scheduler::what_if::apply(&real, &asked.changes)
        .map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    let homeless = imagined.vms.iter().any(|vm| vm.host.is_none());
    let goal = if homeless { Goal::Place } else { Goal::Balance };
    let now = decide(real, policy.clone(), Goal::Balance).await?.plan.before;
    let plan = decide(imagined, asked.policy.unwrap_or(policy), goal).await?.plan;
    Ok(Imagined { now, plan })
}

fn no_policy() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "no decision is known from before that time, and so no policy")
        .remedy("see from when on they are: godwit scheduler decisions")
}

async fn record_of(manager: &Manager, id: u64) -> Result<DecisionRecord, ApiError> {
    let record = manager.store.read(move |tx| Ok(tx.decision_record(id)?)).await?;
    record.ok_or_else(|| unknown_decision(id))
}

pub(crate) fn unknown_decision(id: u64) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no decision {id}"))
        .remedy("list them: godwit scheduler decisions")
}
