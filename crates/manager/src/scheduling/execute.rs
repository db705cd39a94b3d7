//! Doing what is to be done, as ordinary migrations: as far as the steps before are done and the hosts take it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use godwit_scheduler::planner::Action;
use godwit_scheduler::record::{DecisionRecord, StepRecord, StepState};
use godwit_types::migration::{Budget, MigrateVm, MoveDisks};
use godwit_types::task::{Task, TaskKind};
use godwit_types::vm::StartRequest;
use godwit_types::{ApiError, ErrorCode, HostName, TaskId, VmName};
use tokio::task::JoinSet;

use crate::admission::Place;
use crate::manager::{Manager, unknown_vm};
use crate::store::{HostRow, StepChange, StoreError, Tx};
use crate::tasks;

/// Begins every step that can begin now. What cannot is looked at again in the next round.
pub(super) async fn execute(manager: &Arc<Manager>) -> Result<(), ApiError> {
    loop {
        let ready = manager.store.read(|tx| Ok(ready(tx)?)).await?;
        if ready.is_empty() {
            return Ok(());
        }
        let mut begun = JoinSet::new();
        for Ready { decision, step, action, move_disks } in ready {
            let manager = Arc::clone(manager);
            begun.spawn(async move {
                let (state, task, detail) = match begin(&manager, &action, move_disks).await {
                    Ok(task) => (StepState::Running, Some(task), None),
                    // The cluster is another than the plan was made for, and nobody is to blame.
                    Err(error) if error.code == ErrorCode::Conflict => {
                        (StepState::Dropped, None, Some(error.message))
                    }
                    Err(error) => (StepState::Failed, None, Some(error.message)),
                };
                StepChange { decision, step, state, task, detail }
            });
        }
        let changes = begun.join_all().await;
        let written = manager.store.write(move |tx| {
            for change in &changes {
                tx.change_step(change)?;
            }
            Ok(())
        });
        written.await?;
    }
}

async fn begin(manager: &Arc<Manager>, action: &Action, move_disks: bool) -> Result<TaskId, ApiError> {
    let task: Task = match action {
        Action::Move { vm, from, to } => {
            require_on(manager, vm, from).await?;
            let move_disks = move_disks.then(MoveDisks::default);
            let asked = MigrateVm { to: to.clone(), budget: Budget::default(), move_disks };
            tasks::request_migration(manager, vm.to_string(), asked).await?
        }
        Action::Place { vm, on } => {
            let asked = StartRequest { host: Some(on.clone()) };
            tasks::request_start(manager, vm.to_string(), asked).await?
        }
        Action::Wake { host } => tasks::request_wake(manager, host.clone()).await?,
        Action::Standby { host } => tasks::request_standby(manager, host.clone()).await?,
    };
    Ok(task.id)
}

/// Refuses a move that is not from where the VM is.
async fn require_on(manager: &Manager, vm: &VmName, from: &HostName) -> Result<(), ApiError> {
    let name = vm.clone();
    let owner = manager.store.read(move |tx| {
        let row = tx.vm(name.as_str())?.ok_or_else(|| unknown_vm(name.as_str()))?;
        Ok(tx.ownership(row.id)?.map(|(owned, _)| owned.owner))
    });
    match owner.await? {
        Some(owner) if owner == *from => Ok(()),
        _ => Err(ApiError::new(ErrorCode::Conflict, format!("{vm} is not on {from} any more"))),
    }
}

/// A step that can begin, with its decision and its place in it.
struct Ready {
    decision: u64,
    step: usize,
    action: Action,
    /// Whether disks go along that the destination does not reach.
    move_disks: bool,
}

/// The steps that can begin.
fn ready(tx: &Tx<'_>) -> Result<Vec<Ready>, StoreError> {
    let decisions = tx.open_decisions()?;
    if decisions.is_empty() {
        return Ok(Vec::new());
    }
    let open = tx.open_tasks()?;
    let busy: BTreeSet<&VmName> = open.iter().filter_map(|task| task.vm_name.as_ref()).collect();
    let hosts = tx.hosts()?;
    let leaves = |host: &&HostRow| host.maintenance.is_some_and(|entered| entered.move_disks);
    let disks_leave: BTreeSet<&HostName> = hosts.iter().filter(leaves).map(|host| &host.name).collect();
    let always = tx.policy()?.move_disks;
    let mut slots = Slots::of(&hosts, &open);
    let mut ready = Vec::new();
    for record in &decisions {
        for (index, step) in record.steps.iter().enumerate().filter(|(_, step)| can_begin(record, step)) {
            let is_free = match &step.step.action {
                Action::Move { vm, from, to } => !busy.contains(vm) && slots.take(from, to),
                _ => true,
            };
            if is_free {
                let action = step.step.action.clone();
                let move_disks = match &action {
                    Action::Move { from, .. } => always || disks_leave.contains(from),
                    _ => false,
                };
                ready.push(Ready { decision: record.id, step: index, action, move_disks });
            }
        }
    }
    Ok(ready)
}

/// Whether all that it waits for is done.
fn can_begin(record: &DecisionRecord, step: &StepRecord) -> bool {
    let is_done =
        |before: &usize| record.steps.get(*before).is_some_and(|step| step.state == StepState::Done);
    step.state == StepState::Approved && step.step.after.iter().all(is_done)
}

/// How many more migrations each host takes, each way. A step that had to wait in the queue would be done for a plan that is
/// long another by then.
struct Slots(BTreeMap<Place, u32>);

impl Slots {
    fn of(hosts: &[HostRow], open: &[Task]) -> Self {
        let mut free = BTreeMap::new();
        for host in hosts {
            for place in [Place::Out(host.name.clone()), Place::In(host.name.clone())] {
                free.insert(place, host.facts.migration.moves_max);
            }
        }
        let mut slots = Self(free);
        for task in open {
            if let TaskKind::MigrateVm { from, to } = &task.kind {
                slots.use_up(Place::Out(from.clone()));
                slots.use_up(Place::In(to.clone()));
            }
        }
        slots
    }

    fn use_up(&mut self, place: Place) {
        self.0.entry(place).and_modify(|free| *free = free.saturating_sub(1));
    }

    /// Takes a slot at both hosts, if both have one.
    fn take(&mut self, from: &HostName, to: &HostName) -> bool {
        let places = [Place::Out(from.clone()), Place::In(to.clone())];
        let free = places.iter().all(|place| self.0.get(place).is_some_and(|free| *free > 0));
        if free {
            places.into_iter().for_each(|place| self.use_up(place));
        }
        free
    }
}
