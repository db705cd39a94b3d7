//! The verbs of `task`, and waiting for one.

use std::time::Duration;

use godwit_types::task::{SetBandwidth, Task, TaskKind, TaskState};
use godwit_types::{ApiError, Bytes, ErrorCode, TaskId};
use jiff::Timestamp;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Session, storage};
use crate::cli::TaskVerb;
use crate::output::{Format, fields, note, table};
use crate::{forecast, report};

/// How often a task that is waited for is looked at.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// After how long a quiet wait is explained.
const EXPLAIN_AFTER_POLLS: u32 = 10;

pub(crate) async fn run(session: &Session, verb: TaskVerb) -> Result<(), ApiError> {
    match verb {
        TaskVerb::Ls => ls(session).await,
        TaskVerb::Show { task } => {
            let task = get(session, task).await?;
            session.format.print(&task, describe)
        }
        TaskVerb::Cancel { task } => {
            let task = cancel(session, task).await?;
            session.format.print(&task, describe)
        }
        TaskVerb::SetBandwidth { task, rate } => {
            let asked = SetBandwidth { bytes_per_s_max: rate.0.map(|rate| rate.0) };
            let task: Task = session.client.post(&format!("/v1/tasks/{task}/bandwidth"), &asked).await?;
            session.format.print(&task, |task| match asked.bytes_per_s_max {
                Some(rate) => format!("{} may send {}/s", task.subject(), Bytes(rate)),
                None => format!("{} may send as much as its hosts allow", task.subject()),
            })
        }
    }
}

/// Waits for a task's end, showing each new message, and prints how it ended.
pub(crate) async fn finish(session: &Session, task: Task) -> Result<(), ApiError> {
    let mut polls = 0;
    let mut shown = String::new();
    let task = wait(session, task, |task| {
        polls += 1;
        if polls > EXPLAIN_AFTER_POLLS && shown != task.message {
            note(&task.message);
            shown.clone_from(&task.message);
        }
    })
    .await?;
    conclude(session, &task, |task| task.message.clone())
}

/// Looks at a task until it has ended. `look` sees every state on the way.
pub(crate) async fn wait(
    session: &Session,
    mut task: Task,
    mut look: impl FnMut(&Task),
) -> Result<Task, ApiError> {
    while !task.state.is_final() {
        look(&task);
        tokio::time::sleep(POLL_EVERY).await;
        task = get(session, task.id).await?;
    }
    Ok(task)
}

/// Waits for a task's end, and prints how it ended. `look` sees every state on the way, and is gone before anything is printed.
/// Ctrl-C cancels the task, and another one leaves it to the manager.
pub(crate) async fn follow(session: &Session, task: Task, look: impl FnMut(&Task)) -> Result<(), ApiError> {
    let task = wait_or_cancel(session, task, look).await?;
    if !task.state.is_final() {
        return session.format.print(&task, |task| format!("task {} goes on without this terminal", task.id));
    }
    conclude(session, &task, |task| task.message.clone())
}

async fn wait_or_cancel(
    session: &Session,
    mut task: Task,
    mut look: impl FnMut(&Task),
) -> Result<Task, ApiError> {
    // One for all the time: a signal between two polls must not be lost.
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| ApiError::new(ErrorCode::Failed, format!("Ctrl-C cannot be caught: {error}")))?;
    let mut cancelled = false;
    while !task.state.is_final() {
        look(&task);
        tokio::select! {
            () = tokio::time::sleep(POLL_EVERY) => {}
            _ = interrupts.recv() => {
                if cancelled {
                    return Ok(task);
                }
                cancelled = true;
                if let Err(error) = cancel(session, task.id).await {
                    note(error.message);
                }
                note("cancelling; Ctrl-C again leaves it to the manager");
            }
        }
        task = get(session, task.id).await?;
    }
    Ok(task)
}

/// Shows each new message of a task to people.
pub(crate) fn new_messages(session: &Session) -> impl FnMut(&Task) + use<> {
    let (is_text, mut shown) = (session.format == Format::Text, String::new());
    move |task| {
        if is_text && shown != task.message {
            note(&task.message);
            shown.clone_from(&task.message);
        }
    }
}

/// Prints a task that has ended; one that failed becomes the command's error.
pub(crate) fn conclude(
    session: &Session,
    task: &Task,
    text: impl FnOnce(&Task) -> String,
) -> Result<(), ApiError> {
    if task.state == TaskState::Succeeded {
        return session.format.print(task, text);
    }
    if session.format == Format::Json {
        session.format.print(task, |_| String::new())?;
    }
    Err(failure(task))
}

/// Why a task has not succeeded.
pub(crate) fn failure(task: &Task) -> ApiError {
    let fallback = match task.state {
        TaskState::Cancelled => ErrorCode::Cancelled,
        _ => ErrorCode::Failed,
    };
    task.error.clone().unwrap_or_else(|| ApiError::new(fallback, task.message.clone()))
}

/// Asks the manager to cancel a task.
pub(crate) async fn cancel(session: &Session, task: TaskId) -> Result<Task, ApiError> {
    session.client.post(&format!("/v1/tasks/{task}/cancel"), &json!({})).await
}

pub(crate) async fn get(session: &Session, task: TaskId) -> Result<Task, ApiError> {
    session.client.get(&format!("/v1/tasks/{task}")).await
}

async fn ls(session: &Session) -> Result<(), ApiError> {
    let tasks: Vec<Task> = session.client.get("/v1/tasks").await?;
    session.format.print(&tasks, |tasks| {
        let row = |task: &Task| {
            vec![
                task.id.to_string(),
                time(task.started_unix_ms),
                task.subject().to_owned(),
                kind(&task.kind),
                state(task.state).into(),
                task.message.clone(),
            ]
        };
        table(&["TASK", "STARTED", "OF", "WHAT", "STATE", "MESSAGE"], tasks.iter().map(row))
    })
}

fn describe(task: &Task) -> String {
    let mut rows = vec![
        ("task", task.id.to_string()),
        ("of", task.subject().to_owned()),
        ("what", kind(&task.kind)),
        ("state", state(task.state).into()),
        ("message", task.message.clone()),
        ("started", time(task.started_unix_ms)),
    ];
    rows.extend(task.finished_unix_ms.map(|at| ("finished", time(at))));
    if let Some(progress) = task.progress.as_ref().filter(|_| !task.state.is_final()) {
        rows.push(("progress", report::progress(progress)));
    }
    if let Some(progress) = task.storage.as_ref().filter(|_| !task.state.is_final()) {
        rows.push(("progress", storage::progress(progress)));
    }
    // Once it has moved, the report tells it beside what became of it.
    if let Some(told) = task.forecast.as_ref().filter(|_| task.report.is_none()) {
        rows.push(("forecast", forecast::line(told).replace('\n', "; ")));
    }
    if let Some(error) = &task.error {
        rows.push(("error", error.message.clone()));
        rows.extend(error.remedy.iter().map(|remedy| ("remedy", remedy.clone())));
    }
    let mut text = fields(&rows);
    if let Some(done) = &task.report {
        text.push_str("\n\n");
        text.push_str(&report::report(done));
    }
    text
}

/// A time of the manager's clock, in UTC.
pub(crate) fn time(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| unix_ms.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

fn kind(kind: &TaskKind) -> String {
    match kind {
        TaskKind::StartVm { host } => format!("start on {host}"),
        TaskKind::StopVm { force: true } => "stop at once".into(),
        TaskKind::StopVm { force: false } => "stop".into(),
        TaskKind::MigrateVm { from, to } => format!("migrate {from} -> {to}"),
        TaskKind::MoveStorage { host, to } => format!("move disks on {host} to {to}"),
        TaskKind::EnterMaintenance { .. } => "enter maintenance".into(),
        TaskKind::SendToStandby { .. } => "send to standby".into(),
        TaskKind::WakeHost { .. } => "wake".into(),
    }
}

pub(crate) const fn state(state: TaskState) -> &'static str {
    match state {
        TaskState::Waiting => "waiting",
        TaskState::Running => "running",
        TaskState::Cancelling => "cancelling",
        TaskState::Succeeded => "succeeded",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    }
}
