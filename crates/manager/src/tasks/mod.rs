//! Tasks: each is driven by one future that knows nothing but the task's rows, so that a manager that was restarted
//! takes up where the last one stopped.
//!
//! ```text
//!  waiting -----------.          (migrations only, see `queue`)
//!     |                \ cancel
//!     v                 v
//!  running ---------> cancelling
//!     |                   |  (a cancel may come too late: then the task ends as it would have)
//!     v                   v
//!  succeeded | failed | cancelled
//! ```

mod maintenance;
mod migrate;
mod power;
mod queue;
mod start;
mod stop;
mod storage;

use std::sync::Arc;

use godwit_api::Client;
use godwit_types::migration::MigrationReport;
use godwit_types::task::{SetBandwidth, Task, TaskKind, TaskState};
use godwit_types::{ApiError, ErrorCode, HostName, TaskId, VmId, VmName};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::clock::now_unix_ms;
use crate::manager::{Manager, unknown_task};
use crate::moving::Wish;
use crate::store::{NewEvent, Power, StoreError, Tx, VmRow};

pub(crate) use maintenance::{enter as enter_maintenance, exit as exit_maintenance};
pub use migrate::settle;
pub(crate) use migrate::{Side, discard, remove_left, request as request_migration};
pub(crate) use power::{request_standby, request_wake};
pub(crate) use queue::usher;
pub(crate) use start::request as request_start;
pub(crate) use stop::request as request_stop;
pub(crate) use storage::{Word, request as request_storage_move, tell as tell_storage};

/// Drives the task `id` to its end, beside everything else.
fn drive(manager: &Arc<Manager>, task: Task, resumed: bool) {
    let manager = Arc::clone(manager);
    Arc::clone(&manager).spawn(async move {
        let id = task.id;
        let driven = match (task.vm, task.vm_name.clone()) {
            (Some(vm), Some(name)) => Driver { manager, task, vm, name, resumed }.run().await,
            _ => match task.kind {
                TaskKind::SendToStandby { .. } | TaskKind::WakeHost { .. } => {
                    power::run(&manager, task).await
                }
                _ => maintenance::run(&manager, task).await,
            },
        };
        if let Err(error) = driven {
            // Only the store can be the reason; the task stays open and is taken up after a restart.
            tracing::error!("task {id} stopped being driven: {error}");
        }
    });
}

/// Takes up the tasks that the last manager left open.
pub(crate) async fn resume(manager: &Arc<Manager>) -> Result<(), ApiError> {
    let tasks = manager.store.read(|tx| Ok(tx.tasks()?)).await?;
    for task in tasks.into_iter().filter(|task| !task.state.is_final()) {
        tracing::info!("taking up task {}", task.id);
        drive(manager, task, true);
    }
    Ok(())
}

/// Asks the task to end early.
pub(crate) async fn cancel(manager: &Manager, id: TaskId) -> Result<Task, ApiError> {
    let task = manager
        .store
        .write(move |tx| {
            let cancelled = tx.cancel_task(id)?;
            let task = tx.task(id)?.ok_or_else(|| unknown_task(id))?;
            if !cancelled && task.state.is_final() {
                let message = format!("task {id} has ended already: {}", task.message);
                return Err(ApiError::new(ErrorCode::Conflict, message));
            }
            Ok(task)
        })
        .await?;
    manager.cancels.send_replace(());
    manager.queue.send_replace(());
    Ok(task)
}

/// Changes what a migration may send, which its driver sees to.
pub(crate) async fn set_bandwidth(
    manager: &Manager,
    id: TaskId,
    asked: SetBandwidth,
) -> Result<Task, ApiError> {
    if asked.bytes_per_s_max == Some(0) {
        return Err(ApiError::new(ErrorCode::Invalid, "a bandwidth cap of 0 lets nothing through"));
    }
    let set = manager.store.write(move |tx| {
        let task = tx.task(id)?.ok_or_else(|| unknown_task(id))?;
        if task.state.is_final() {
            let message = format!("task {id} has ended already: {}", task.message);
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
        if !matches!(task.kind, TaskKind::MigrateVm { .. }) {
            return Err(ApiError::new(ErrorCode::Invalid, format!("task {id} is no migration")));
        }
        let mut wish: Wish = tx.task_request(id)?;
        wish.budget.bandwidth_bytes_per_s_max = asked.bytes_per_s_max;
        tx.set_task_request(id, &wish)?;
        Ok(task)
    });
    set.await
}

/// A task that begins now.
pub(crate) fn new_task(vm: &VmRow, kind: TaskKind, message: String) -> Task {
    Task { vm: Some(vm.id), vm_name: Some(vm.name.clone()), ..host_task(kind, message) }
}

/// One that is about a host, and no VM's.
fn host_task(kind: TaskKind, message: String) -> Task {
    Task {
        id: TaskId(Uuid::new_v4()),
        kind,
        vm: None,
        vm_name: None,
        state: TaskState::Running,
        message,
        started_unix_ms: now_unix_ms(),
        finished_unix_ms: None,
        turn: None,
        progress: None,
        storage: None,
        forecast: None,
        report: None,
        error: None,
    }
}

/// Refuses when another task is busy with the VM.
fn require_idle(tx: &Tx<'_>, vm: &VmRow) -> Result<(), ApiError> {
    let Some(task) = tx.open_task(vm.id)? else { return Ok(()) };
    let (reason, remedy) = busy(&task);
    Err(ApiError::new(ErrorCode::Conflict, reason).remedy(remedy))
}

/// That the task is busy with its VM, and what to do about it.
pub(crate) fn busy(task: &Task) -> (String, String) {
    let doing = match &task.kind {
        TaskKind::MigrateVm { from, to } if task.state == TaskState::Waiting => {
            format!("waiting to migrate from {from} to {to}")
        }
        TaskKind::StartVm { host } => format!("being started on {host}"),
        TaskKind::StopVm { .. } => "being stopped".to_owned(),
        TaskKind::MigrateVm { from, to } => format!("migrating from {from} to {to}"),
        TaskKind::MoveStorage { to, .. } => format!("moving disks to '{to}'"),
        TaskKind::EnterMaintenance { .. } => "entering maintenance".to_owned(),
        TaskKind::SendToStandby { .. } => "going to standby".to_owned(),
        TaskKind::WakeHost { .. } => "being woken".to_owned(),
    };
    let remedy = format!("wait for it, or cancel it: godwit task cancel {}", task.id);
    (format!("{} is {doing} already: task {}", task.subject(), task.id), remedy)
}

/// How a task ended.
#[derive(Debug)]
struct Ending {
    state: TaskState,
    message: String,
    /// The event's kind, such as `vm.started`.
    event: &'static str,
    /// What the VM is known to be now, if that changed. A running one is confirmed by its owner.
    power: Option<Power>,
    report: Option<MigrationReport>,
    error: Option<ApiError>,
}

impl Ending {
    fn succeeded(event: &'static str, power: Power, message: String) -> Self {
        Self { state: TaskState::Succeeded, message, event, power: Some(power), report: None, error: None }
    }

    fn failed(event: &'static str, message: String, error: ApiError) -> Self {
        let state = if error.code == ErrorCode::Cancelled { TaskState::Cancelled } else { TaskState::Failed };
        Self { state, message, event, power: None, report: None, error: Some(error) }
    }
}

/// One open task of a VM on its way.
struct Driver {
    manager: Arc<Manager>,
    task: Task,
    /// The VM that it is about.
    vm: VmId,
    name: VmName,
    /// Whether an earlier manager has driven it.
    resumed: bool,
}

impl Driver {
    async fn run(mut self) -> Result<(), ApiError> {
        let ending = match self.task.kind.clone() {
            TaskKind::StartVm { host } => start::run(&mut self, &host).await?,
            TaskKind::StopVm { .. } => stop::run(&mut self).await?,
            TaskKind::MigrateVm { .. } => migrate::run(&mut self).await?,
            TaskKind::MoveStorage { .. } => storage::run(&mut self).await?,
            // They are no VM's, and have drivers of their own.
            TaskKind::EnterMaintenance { .. }
            | TaskKind::SendToStandby { .. }
            | TaskKind::WakeHost { .. } => {
                return Ok(());
            }
        };
        let (id, vm, name) = (self.task.id, self.vm, self.name);
        let finished = self.manager.store.write(move |tx| Ok(finish(tx, id, (vm, &name), ending)?)).await;
        self.manager.queue.send_replace(());
        finished
    }

    /// Shows `message` as what the task is doing.
    async fn say(&mut self, message: impl Into<String>) -> Result<(), ApiError> {
        let message = message.into();
        if self.task.message != message {
            self.task.message.clone_from(&message);
            let id = self.task.id;
            self.manager.store.note(move |tx| Ok(tx.set_task_message(id, &message)?)).await?;
        }
        Ok(())
    }

    /// Completes when somebody has cancelled the task.
    async fn cancelled(&self) -> Result<(), ApiError> {
        let (id, mut cancels) = (self.task.id, self.manager.cancels.subscribe());
        loop {
            let task = self.manager.store.read(move |tx| Ok(tx.task(id)?)).await?;
            if task.is_some_and(|task| task.state == TaskState::Cancelling) {
                return Ok(());
            }
            // The sender lives in the manager, which this task holds.
            let _ = cancels.changed().await;
        }
    }

    /// `work`'s result, or `None` once the task is cancelled. A request that was sent has still been sent.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<Option<T>, ApiError> {
        tokio::select! {
            done = work => Ok(Some(done)),
            cancelled = self.cancelled() => cancelled.map(|()| None),
        }
    }

    async fn agent(&self, host: &HostName) -> Result<Client, ApiError> {
        self.manager.agent(host).await
    }

    /// Waits a little before the next question to an agent.
    async fn pause(&self) {
        sleep(self.manager.limits.poll).await;
    }
}

/// Writes how a task ended: in its row, in the VM's, and as an event.
fn finish(tx: &Tx<'_>, id: TaskId, (vm, name): (VmId, &VmName), ending: Ending) -> Result<(), StoreError> {
    let Ending { state, message, event, power, report, error } = ending;
    tx.finish_task(id, state, &message, report.as_ref(), error.as_ref())?;
    let owned = tx.ownership(vm)?.map(|(owned, _)| owned);
    let mut event = NewEvent::new(event, message).vm(name).task(id);
    if let Some(power) = power {
        tx.set_power(vm, power)?;
    }
    if let Some(mut owned) = owned {
        event = event.host(&owned.owner);
        if power == Some(Power::Running) && !owned.claimed {
            owned.claimed = true;
            tx.put_ownership(&owned)?;
        }
    }
    tx.add_event(event)
}

/// How long an agent has been out of reach.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
}

impl Silence {
    /// Takes note of an answer or of its absence.
    fn heard<T>(&mut self, answer: &Result<T, ApiError>) {
        match answer {
            Err(error) if error.code == ErrorCode::Unreachable => {
                self.since.get_or_insert_with(Instant::now);
            }
            _ => self.since = None,
        }
    }

    fn outlasts(&self, patience: std::time::Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= patience)
    }
}

fn cancelled_error(what: &str) -> ApiError {
    ApiError::new(ErrorCode::Cancelled, format!("{what} was cancelled"))
}

/// The error's text with its remedy, for a task's message.
fn told(error: &ApiError) -> String {
    match &error.remedy {
        Some(remedy) => format!("{}; {remedy}", error.message),
        None => error.message.clone(),
    }
}
