//! Switching an empty host off, and on again when it is needed.
//!
//! ```text
//!   standby:  row `going`, task  (one transaction: from then on no VM comes to the host)
//!               |
//!               v   its driver is asked
//!             silent, and off as far as its driver can tell ------> row `off`, succeeded
//!               |  refused, it does not go in time, cancelled, and it is heard from
//!               '---------------------------------------------------> no row, failed: it takes VMs again
//!
//!   wake:     row `waking`, task
//!               |
//!               v   its driver is asked, and asked again
//!             heard from -------------------------------------------> no row, succeeded: it takes VMs
//!               |  it does not come in time, cancelled
//!               '---------------------------------------------------> row `off`, failed
//! ```
//!
//! A manager that was restarted asks the driver again: both requests change nothing where they are fulfilled.

use std::sync::Arc;
use std::time::Duration;

use godwit_types::host::{Standby, StandbyPhase};
use godwit_types::power::{PowerDriver, PowerState};
use godwit_types::task::{Task, TaskKind, TaskState};
use godwit_types::{ApiError, ErrorCode, HostName, TaskId};
use tokio::time::{Instant, sleep};

use super::{cancelled_error, host_task};
use crate::clock::now_unix_ms;
use crate::manager::{Manager, unknown_host};
use crate::power;
use crate::store::{HostRow, NewEvent, Tx};

/// How long a host may take to shut itself down.
const STANDBY_TIMEOUT: Duration = Duration::from_secs(300);
/// A host that is woken may take so many times as long as people say that it does, and at least so long.
const WAKE_PATIENCE: u32 = 3;
const WAKE_TIMEOUT_MIN: Duration = Duration::from_secs(120);
/// A driver is asked again after so long: a magic packet may be lost, a management controller busy.
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// `POST /v1/hosts/{host}/standby`.
pub(crate) async fn request_standby(manager: &Arc<Manager>, host: HostName) -> Result<Task, ApiError> {
    begin(manager, host, |tx, name, host| {
        if let Some(standby) = host.standby {
            return Err(under_way(name, standby));
        }
        power::require_empty(tx, name)?;
        Ok((TaskKind::SendToStandby { host: name.clone() }, StandbyPhase::Going, "is being switched off"))
    })
    .await
}

/// `POST /v1/hosts/{host}/wake`.
pub(crate) async fn request_wake(manager: &Arc<Manager>, host: HostName) -> Result<Task, ApiError> {
    begin(manager, host, |_, name, host| match host.standby {
        Some(Standby { phase: StandbyPhase::Off, .. }) => {
            Ok((TaskKind::WakeHost { host: name.clone() }, StandbyPhase::Waking, "is being woken"))
        }
        Some(standby) => Err(under_way(name, standby)),
        None if host.up => Err(ApiError::new(ErrorCode::Conflict, format!("{name} is on"))),
        // Whoever has switched it off, it may be switched on.
        None => Ok((TaskKind::WakeHost { host: name.clone() }, StandbyPhase::Waking, "is being woken")),
    })
    .await
}

fn under_way(name: &HostName, standby: Standby) -> ApiError {
    let is = match standby.phase {
        StandbyPhase::Going => "on its way to standby",
        StandbyPhase::Off => "in standby",
        StandbyPhase::Waking => "being woken",
    };
    let remedy = format!("see how it came there: godwit task show {}", standby.task);
    ApiError::new(ErrorCode::Conflict, format!("{name} is {is} already")).remedy(remedy)
}

type Beginning = (TaskKind, StandbyPhase, &'static str);

async fn begin(
    manager: &Arc<Manager>,
    name: HostName,
    judge: impl FnOnce(&Tx<'_>, &HostName, &HostRow) -> Result<Beginning, ApiError> + Send + 'static,
) -> Result<Task, ApiError> {
    let begun = manager.store.write(move |tx| {
        let host = tx.host(&name)?.ok_or_else(|| unknown_host(name.as_str()))?;
        if tx.host_settings(&name)?.driver == PowerDriver::None {
            return Err(power::no_driver(&name));
        }
        let (kind, phase, doing) = judge(tx, &name, &host)?;
        let task = host_task(kind, format!("{name} {doing}"));
        tx.add_task(&task, &())?;
        tx.set_standby(&name, &Standby { phase, since_unix_ms: task.started_unix_ms, task: task.id })?;
        let event = match phase {
            StandbyPhase::Waking => "host.waking",
            _ => "host.going_to_standby",
        };
        tx.add_event(NewEvent::new(event, task.message.clone()).host(&name).task(task.id))?;
        Ok(task)
    });
    let task = begun.await?;
    super::drive(manager, task.clone(), false);
    Ok(task)
}

/// Sees to it that the host is off, or on, or says why it is not.
pub(super) async fn run(manager: &Arc<Manager>, task: Task) -> Result<(), ApiError> {
    match task.kind {
        TaskKind::SendToStandby { host } => {
            let went = go(manager, task.id, &host).await?;
            manager.store.write(move |tx| settle_standby(tx, task.id, &host, went)).await
        }
        TaskKind::WakeHost { host } => {
            let came = come(manager, task.id, &host).await?;
            manager.store.write(move |tx| settle_wake(tx, task.id, &host, came)).await
        }
        _ => Ok(()),
    }
}

/// How it ended: an error of the host, its driver or people. One of the store is the outer one.
type Outcome = Result<(), ApiError>;

async fn go(manager: &Manager, task: TaskId, host: &HostName) -> Result<Outcome, ApiError> {
    let deadline = Instant::now() + STANDBY_TIMEOUT;
    if let Err(error) = power::standby(manager, host).await {
        return Ok(Err(error));
    }
    loop {
        let (row, cancelled) = look(manager, task, host).await?;
        let is_off = !row.up && !matches!(power::state(manager, host).await, Ok(PowerState::On));
        if is_off {
            return Ok(Ok(()));
        }
        if cancelled {
            return Ok(Err(cancelled_error(&format!("switching {host} off"))));
        }
        if Instant::now() >= deadline {
            let message = format!("{host} has not switched itself off in {} s", STANDBY_TIMEOUT.as_secs());
            let remedy = "look at its console, and at the log of its agent";
            return Ok(Err(ApiError::new(ErrorCode::Failed, message).remedy(remedy)));
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn come(manager: &Manager, task: TaskId, host: &HostName) -> Result<Outcome, ApiError> {
    let name = host.clone();
    let settings = manager.store.read(move |tx| Ok(tx.host_settings(&name)?)).await?;
    let expected = Duration::from_millis(settings.power.wake_ms);
    let limit = expected.saturating_mul(WAKE_PATIENCE).max(WAKE_TIMEOUT_MIN);
    let deadline = Instant::now() + limit;
    let mut asked: Option<Instant> = None;
    let mut refused = None;
    loop {
        let (row, cancelled) = look(manager, task, host).await?;
        if row.up {
            return Ok(Ok(()));
        }
        if cancelled {
            return Ok(Err(cancelled_error(&format!("waking {host}"))));
        }
        if Instant::now() >= deadline {
            let message = format!("{host} is not heard from {} s after it was woken", limit.as_secs());
            let remedy = "look at its console, and whether 'godwit host run' starts with it";
            return Ok(Err(refused.unwrap_or(ApiError::new(ErrorCode::Failed, message).remedy(remedy))));
        }
        if asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) {
            refused = power::wake(manager, host).await.err();
            if let Some(error) = &refused {
                tracing::warn!("{error}");
            }
            asked = Some(Instant::now());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The host, and whether somebody wants the task to end.
async fn look(manager: &Manager, task: TaskId, host: &HostName) -> Result<(HostRow, bool), ApiError> {
    let host = host.clone();
    let seen = manager.store.read(move |tx| {
        let row = tx.host(&host)?.ok_or_else(|| unknown_host(host.as_str()))?;
        let task = tx.task(task)?;
        Ok((row, task.is_none_or(|task| task.state != TaskState::Running)))
    });
    seen.await
}

fn settle_standby(tx: &Tx<'_>, id: TaskId, host: &HostName, went: Outcome) -> Result<(), ApiError> {
    match went {
        Ok(()) => {
            let off = Standby { phase: StandbyPhase::Off, since_unix_ms: now_unix_ms(), task: id };
            tx.set_standby(host, &off)?;
            let message = format!("{host} is in standby, until it is woken");
            tx.finish_task(id, TaskState::Succeeded, &message, None, None)?;
            tx.add_event(NewEvent::new("host.in_standby", message).host(host).task(id))?;
        }
        Err(error) => {
            tx.end_standby(host)?;
            fail(tx, id, host, &format!("{host} is not in standby: {error}"), &error)?;
        }
    }
    Ok(())
}

fn settle_wake(tx: &Tx<'_>, id: TaskId, host: &HostName, came: Outcome) -> Result<(), ApiError> {
    match came {
        Ok(()) => {
            tx.end_standby(host)?;
            let message = format!("{host} is on, and takes VMs");
            tx.finish_task(id, TaskState::Succeeded, &message, None, None)?;
            tx.add_event(NewEvent::new("host.left_standby", message).host(host).task(id))?;
        }
        Err(error) => {
            let off = Standby { phase: StandbyPhase::Off, since_unix_ms: now_unix_ms(), task: id };
            tx.set_standby(host, &off)?;
            fail(tx, id, host, &format!("{host} is not awake: {error}"), &error)?;
        }
    }
    Ok(())
}

fn fail(tx: &Tx<'_>, id: TaskId, host: &HostName, message: &str, error: &ApiError) -> Result<(), ApiError> {
    let state = if error.code == ErrorCode::Cancelled { TaskState::Cancelled } else { TaskState::Failed };
    tx.finish_task(id, state, message, None, Some(error))?;
    tx.add_event(NewEvent::new("host.not_switched", message.to_owned()).host(host).task(id))?;
    Ok(())
}
