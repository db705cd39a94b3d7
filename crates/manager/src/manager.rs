//! What the API's handlers and the tasks' drivers share.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_api::{Client, Token};
use godwit_types::{ApiError, ErrorCode, HostName, TaskId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::now_unix_ms;
use crate::scheduling::Scheduling;
use crate::store::{HostRow, NewEvent, Store};

/// How often silent hosts are looked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How patient the manager is.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A host that is silent for longer is down. Its agent reports every 2 s.
    pub host_silence: Duration,
    /// How often a task asks an agent how it gets on.
    pub poll: Duration,
    /// How long a task waits for an agent that cannot be reached before it ends.
    pub patience: Duration,
    /// How often the scheduler looks at the cluster if nothing happens.
    pub round: Duration,
    /// How soon a VM that did not leave a host in maintenance is tried again; twice as late after each further failure.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            host_silence: Duration::from_secs(10),
            poll: Duration::from_millis(200),
            patience: Duration::from_secs(120),
            round: Duration::from_secs(60),
            retry: Duration::from_secs(15),
        }
    }
}

/// The manager, without its listener.
#[derive(Debug)]
pub(crate) struct Manager {
    pub store: Store,
    pub token: Token,
    /// Where power drivers find passwords and programs.
    pub power_dir: PathBuf,
    pub limits: Limits,
    /// Changes when somebody cancels a task; the task's row says which.
    pub cancels: watch::Sender<()>,
    /// Changes when it may be another migration's turn; the tasks' rows say which ones wait.
    pub queue: watch::Sender<()>,
    /// The tasks that wait and whose turn has come.
    pub called: watch::Sender<BTreeSet<TaskId>>,
    pub scheduling: Scheduling,
    /// Changes when the manager ends.
    pub stop: watch::Sender<()>,
    /// Whatever goes on beside the requests: the tasks' drivers, streams to clients.
    background: Mutex<JoinSet<()>>,
    agents: Mutex<HashMap<HostName, (SocketAddr, Client)>>,
}

impl Manager {
    pub(crate) fn new(store: Store, token: Token, power_dir: PathBuf, limits: Limits) -> Self {
        Self {
            store,
            token,
            power_dir,
            limits,
            cancels: watch::Sender::new(()),
            queue: watch::Sender::new(()),
            called: watch::Sender::default(),
            scheduling: Scheduling::default(),
            stop: watch::Sender::new(()),
            background: Mutex::default(),
            agents: Mutex::default(),
        }
    }

    /// Runs `work` until it ends or the manager does.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background.spawn(work);
    }

    /// Ends everything that was spawned, wherever it stands.
    pub(crate) async fn end_background(&self) {
        let mut background =
            std::mem::take(&mut *self.background.lock().unwrap_or_else(PoisonError::into_inner));
        background.shutdown().await;
    }

    /// A client of the agent on `host`, at the address it last reported.
    pub(crate) async fn agent(&self, host: &HostName) -> Result<Client, ApiError> {
        let name = host.clone();
        let row = self.store.read(move |tx| Ok(tx.host(&name)?)).await?;
        let address = row.ok_or_else(|| unknown_host(host.as_str()))?.agent;
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        match agents.get(host) {
            Some((known, client)) if *known == address => Ok(client.clone()),
            _ => {
                let client = Client::new(address, Some(self.token.clone()));
                agents.insert(host.clone(), (address, client.clone()));
                Ok(client)
            }
        }
    }

    /// Marks hosts down that are silent for too long. Never ends.
    pub(crate) async fn watch_hosts(&self) {
        // Nobody could be heard before the manager listened.
        let began = now_unix_ms();
        let mut tick = interval(WATCH_INTERVAL.min(self.limits.host_silence / 2));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence_ms = u64::try_from(self.limits.host_silence.as_millis()).unwrap_or(u64::MAX);
        loop {
            tick.tick().await;
            let silent = move |host: &HostRow| {
                host.up && now_unix_ms().saturating_sub(host.last_seen_unix_ms.max(began)) > silence_ms
            };
            let marked = self.store.note(move |tx| {
                for host in tx.hosts()?.into_iter().filter(silent) {
                    // Of one that is being switched off, or is, its task tells.
                    if host.standby.is_none() {
                        let message = format!("{} is down: not heard from for {silence_ms} ms", host.name);
                        tx.add_event(NewEvent::new("host.down", message).host(&host.name))?;
                    }
                    tx.put_host(&HostRow { up: false, ..host })?;
                }
                Ok(())
            });
            if let Err(error) = marked.await {
                tracing::error!("cannot look for silent hosts: {error}");
            }
        }
    }
}

pub(crate) fn unknown_vm(vm: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no VM '{vm}'")).remedy("list them: godwit vm ls")
}

pub(crate) fn unknown_host(host: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no host '{host}'"))
        .remedy("list them: godwit host ls")
}

pub(crate) fn unknown_task(task: TaskId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no task {task}")).remedy("list them: godwit task ls")
}
