//! Switching this host off, once no VM is on it.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_types::agent::LocalState;
use godwit_types::{ApiError, ErrorCode};
use tokio::process::Command;
use tokio::time::timeout;

use crate::agent::Agent;

/// How long the command may take. One that switches the host off has returned before it is off.
const TIMEOUT: Duration = Duration::from_secs(8);
/// For so long after the order no VM is taken in. A host that is suspended and woken takes in VMs again.
const LEAVING: Duration = Duration::from_secs(60);

/// When this host was last ordered to standby.
#[derive(Debug, Default)]
pub(crate) struct Leaving(Mutex<Option<Instant>>);

impl Leaving {
    fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn is_set(&self) -> bool {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < LEAVING)
    }
}

/// `POST /v1/host/standby`.
pub(crate) async fn order(agent: Arc<Agent>) -> Result<(), ApiError> {
    let name = &agent.config.name;
    // Whoever is being admitted is here afterwards, and whoever comes later finds that the host leaves.
    let admission = agent.admission.lock().await;
    let is_gone = |state| matches!(state, LocalState::Stopped | LocalState::Crashed);
    let here = agent.vms.report().into_iter().find(|local| !is_gone(local.state));
    if let Some(local) = here {
        let message = format!("{name} is not switched off: {} is on it", local.name);
        return Err(ApiError::new(ErrorCode::Refused, message).remedy("move it to another host first"));
    }
    if agent.vms.memory_promised().0 > 0 {
        let message = format!("{name} is not switched off: a VM is being started on it");
        return Err(ApiError::new(ErrorCode::Refused, message).remedy("move it to another host first"));
    }
    if !agent.copies.is_empty() {
        let message = format!("{name} is not switched off: it copies disks to another datastore");
        return Err(ApiError::new(ErrorCode::Refused, message).remedy("wait for it to end: godwit task ls"));
    }
    agent.leaving.set(Some(Instant::now()));
    drop(admission);
    tracing::info!("this host is switched off: {}", agent.config.standby.join(" "));
    run(&agent.config.standby).await.map_err(|why| {
        agent.leaving.set(None);
        ApiError::new(ErrorCode::Failed, format!("{name} is not switched off: {why}")).remedy(format!(
            "let its agent run a command that works: godwit host run --standby-command, on {name}"
        ))
    })
}

async fn run(command: &[String]) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("it has no command for that")?;
    let running = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(ended) = timeout(TIMEOUT, running).await else {
        return Err(format!("{program} had not ended after {} s", TIMEOUT.as_secs()));
    };
    let ended = ended.map_err(|error| format!("{program} cannot be run: {error}"))?;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("{program} failed ({}): {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim()))
}

impl Agent {
    /// Refuses VMs while this host is being switched off.
    pub(crate) fn require_staying(&self) -> Result<(), ApiError> {
        if !self.leaving.is_set() {
            return Ok(());
        }
        let message = format!("{} is being switched off, and takes in no VM", self.config.name);
        Err(ApiError::new(ErrorCode::Refused, message)
            .remedy("choose another host, or wait until it was woken"))
    }
}
