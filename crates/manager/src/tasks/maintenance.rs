//! Emptying a host, so that it can be patched.
//!
//! ```text
//!   enter: host in `maintenance`, task     (one transaction: from then on no VM comes to the host)
//!     |
//!     v            the scheduler moves its VMs away; this task looks on
//!   VMs run there -----------------------------------------------------> none: succeeded, the host stays in maintenance
//!     |  cancel, exit
//!     v
//!   cancelled: the host takes VMs again; moves that are under way go on
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use godwit_scheduler::planner::WhyNot;
use godwit_types::task::{Task, TaskKind, TaskState};
use godwit_types::{ApiError, ErrorCode, HostName, TaskId, VmName};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{cancelled_error, host_task};
use crate::manager::{Manager, unknown_host};
use crate::store::{InMaintenance, NewEvent, Tx};

/// A host that is being emptied is looked at this often even if nothing happens.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// VMs that cannot leave and that the task's message names, each with its reason.
const NAMED_MAX: usize = 3;

/// What the task is given beside its host.
#[derive(Debug, Serialize, Deserialize)]
struct Entered {
    /// VMs that ran there in the beginning.
    vms: usize,
}

/// `POST /v1/hosts/{host}/maintenance`.
pub(crate) async fn enter(
    manager: &Arc<Manager>,
    host: HostName,
    move_disks: bool,
) -> Result<Task, ApiError> {
    let task = manager.store.write(move |tx| begin(tx, &host, move_disks)).await?;
    super::drive(manager, task.clone(), false);
    Ok(task)
}

fn begin(tx: &Tx<'_>, name: &HostName, move_disks: bool) -> Result<Task, ApiError> {
    let host = tx.host(name)?.ok_or_else(|| unknown_host(name.as_str()))?;
    if let Some(entered) = host.maintenance {
        let message = format!("{name} is in maintenance already");
        let remedy = format!("see how it gets on: godwit task show {}", entered.task);
        return Err(ApiError::new(ErrorCode::Conflict, message).remedy(remedy));
    }
    let vms = tx.running_on(name)?.len();
    let kind = TaskKind::EnterMaintenance { host: name.clone() };
    let task = host_task(kind, format!("{name} gets no VM any more; {} to leave", count(vms)));
    tx.add_task(&task, &Entered { vms })?;
    let entered = InMaintenance { since_unix_ms: task.started_unix_ms, task: task.id, move_disks };
    tx.enter_maintenance(name, entered)?;
    let event = NewEvent::new("host.entering_maintenance", task.message.clone());
    tx.add_event(event.host(name).task(task.id))?;
    Ok(task)
}

/// `DELETE /v1/hosts/{host}/maintenance`: it takes VMs again, be it empty or not yet.
pub(crate) async fn exit(manager: &Manager, name: HostName) -> Result<(), ApiError> {
    let left = manager.store.write(move |tx| {
        let host = tx.host(&name)?.ok_or_else(|| unknown_host(name.as_str()))?;
        let Some(entered) = host.maintenance else {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is not in maintenance")));
        };
        tx.leave_maintenance(&name)?;
        tx.cancel_task(entered.task)?;
        let message = format!("{name} is no longer in maintenance, and takes VMs again");
        tx.add_event(NewEvent::new("host.left_maintenance", message).host(&name))?;
        Ok(())
    });
    left.await?;
    manager.cancels.send_replace(());
    Ok(())
}

/// Looks on until the host is empty, or nobody wants it to be any more.
pub(super) async fn run(manager: &Arc<Manager>, task: Task) -> Result<(), ApiError> {
    let TaskKind::EnterMaintenance { host } = task.kind else { return Ok(()) };
    let (mut events, mut cancels) = (manager.store.last_event(), manager.cancels.subscribe());
    loop {
        let name = host.clone();
        let ended = manager.store.write(move |tx| look(tx, task.id, &name)).await?;
        if ended {
            return Ok(());
        }
        let something = async {
            tokio::select! {
                _ = events.changed() => {}
                _ = cancels.changed() => {}
            }
        };
        // Either way it is time to look again.
        let _ = timeout(LOOK_AGAIN, something).await;
    }
}

/// Ends the task if its time has come, or says how it gets on.
fn look(tx: &Tx<'_>, id: TaskId, host: &HostName) -> Result<bool, ApiError> {
    let Some(task) = tx.task(id)?.filter(|task| !task.state.is_final()) else { return Ok(true) };
    if task.state == TaskState::Cancelling {
        give_up(tx, id, host)?;
        return Ok(true);
    }
    let scene = Scene::of(tx, id, host)?;
    if scene.is_empty() {
        let message = format!("{host} is empty, and gets no VM until it leaves maintenance");
        tx.finish_task(id, TaskState::Succeeded, &message, None, None)?;
        tx.add_event(NewEvent::new("host.in_maintenance", message).host(host).task(id))?;
        return Ok(true);
    }
    let message = scene.describe(host);
    if message != task.message {
        tx.set_task_message(id, &message)?;
    }
    Ok(false)
}

fn give_up(tx: &Tx<'_>, id: TaskId, host: &HostName) -> Result<(), ApiError> {
    let left = tx.running_on(host)?.len();
    if tx.host(host)?.and_then(|row| row.maintenance).is_some_and(|entered| entered.task == id) {
        tx.leave_maintenance(host)?;
        let message = format!("{host} is no longer to be emptied, and takes VMs again");
        tx.add_event(NewEvent::new("host.left_maintenance", message).host(host).task(id))?;
    }
    let message = format!("{host} did not enter maintenance, and takes VMs again; {} on it", count(left));
    let error = cancelled_error(&format!("emptying {host}"));
    Ok(tx.finish_task(id, TaskState::Cancelled, &message, None, Some(&error))?)
}

/// How far a host is emptied.
#[derive(Debug, Default, PartialEq, Eq)]
struct Scene {
    /// VMs that ran there in the beginning.
    began_with: usize,
    up: bool,
    /// VMs that run there.
    left: BTreeSet<VmName>,
    /// Those that are on their way, and those whose move waits for its turn.
    moving: BTreeSet<VmName>,
    waiting: BTreeSet<VmName>,
    /// VMs that are being started there, or are on their way to here.
    coming: usize,
    /// What keeps VMs there, as the scheduler last saw it.
    kept: Vec<WhyNot>,
}

impl Scene {
    fn of(tx: &Tx<'_>, id: TaskId, host: &HostName) -> Result<Self, ApiError> {
        let Entered { vms } = tx.task_request(id)?;
        let left: BTreeSet<VmName> = tx.running_on(host)?.into_iter().collect();
        let up = tx.host(host)?.is_some_and(|row| row.up);
        let mut scene = Self { began_with: vms, up, left, ..Self::default() };
        for task in tx.open_tasks()? {
            match (task.kind, task.vm_name) {
                (TaskKind::MigrateVm { from, .. }, Some(vm)) if from == *host => {
                    let way =
                        if task.state == TaskState::Waiting { &mut scene.waiting } else { &mut scene.moving };
                    way.insert(vm);
                }
                (TaskKind::MigrateVm { to, .. } | TaskKind::StartVm { host: to }, _) if to == *host => {
                    scene.coming += 1;
                }
                _ => {}
            }
        }
        let last = tx.last_balance()?;
        scene.kept = last.map(|last| last.outline.unmoved).unwrap_or_default();
        let Self { left, moving, waiting, kept, .. } = &mut scene;
        kept.retain(|why| left.contains(&why.vm) && !moving.contains(&why.vm) && !waiting.contains(&why.vm));
        Ok(scene)
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty() && self.moving.is_empty() && self.coming == 0
    }

    /// Such as `3 of 7 VMs have left, 2 move, web1 cannot leave: …`.
    fn describe(&self, host: &HostName) -> String {
        let all = self.began_with.max(self.left.len());
        let mut parts = vec![format!("{} of {} left {host}", all - self.left.len(), have(all))];
        for (vms, verb) in [(self.moving.len(), "move"), (self.waiting.len(), "wait for their turn")] {
            parts.extend((vms > 0).then(|| format!("{vms} {verb}")));
        }
        parts.extend((self.coming > 0).then(|| format!("{} still to arrive", count(self.coming))));
        if !self.up {
            parts.push(format!("{host} is not heard from, so nothing can be moved"));
        }
        let named =
            self.kept.iter().take(NAMED_MAX).map(|why| format!("{} cannot leave: {}", why.vm, reasons(why)));
        parts.extend(named);
        let more = self.kept.len().saturating_sub(NAMED_MAX);
        parts.extend((more > 0).then(|| format!("{} more cannot leave", count(more))));
        parts.join(", ")
    }
}

/// What speaks against each host.
fn reasons(why: &WhyNot) -> String {
    let reasons = why.reasons.iter().map(|(host, reason)| match host {
        Some(host) => format!("{host}: {reason}"),
        None => reason.clone(),
    });
    let reasons: Vec<String> = reasons.collect();
    if reasons.is_empty() { why.wrong.clone() } else { reasons.join("; ") }
}

fn count(vms: usize) -> String {
    if vms == 1 { "1 VM".to_owned() } else { format!("{vms} VMs") }
}

fn have(vms: usize) -> String {
    if vms == 1 { "1 VM has".to_owned() } else { format!("{vms} VMs have") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<VmName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn progress_counts_who_has_left_and_names_who_cannot() {
        let kept = WhyNot {
            vm: "db".parse().unwrap(),
            wrong: "a is to be emptied".into(),
            reasons: vec![("b".parse().ok(), "no memory".into())],
        };
        let scene = Scene {
            began_with: 7,
            up: true,
            left: names(&["db", "web1", "web2", "web3"]),
            moving: names(&["web1", "web2"]),
            waiting: names(&["web3"]),
            coming: 0,
            kept: vec![kept],
        };
        assert_eq!(
            scene.describe(&"a".parse().unwrap()),
            "3 of 7 VMs have left a, 2 move, 1 wait for their turn, db cannot leave: b: no memory"
        );
    }

    #[test]
    fn a_host_to_which_a_vm_is_still_on_its_way_is_not_empty() {
        assert!(Scene::default().is_empty());
        assert!(!Scene { coming: 1, ..Scene::default() }.is_empty());
        assert!(!Scene { moving: names(&["web1"]), ..Scene::default() }.is_empty());
    }
}
