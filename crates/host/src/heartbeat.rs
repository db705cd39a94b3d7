//! Telling the manager how this host is: every two seconds, and whenever something changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;

/// Time between reports when nothing changes.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time between looks at the datastores and at the VMM, and how long the first may keep the first report waiting.
const DATASTORES_INTERVAL: Duration = Duration::from_secs(5);
const VMM_INTERVAL: Duration = Duration::from_secs(60);
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Least time between two reports, whatever changes.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// Pause after the first report that failed; doubles with each up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// Looks at the datastores until it is aborted.
async fn watch_datastores(agent: Arc<Agent>, first: oneshot::Sender<()>) {
    agent.look_at_datastores().await;
    drop(first);
    loop {
        sleep(DATASTORES_INTERVAL).await;
        agent.look_at_datastores().await;
    }
}

/// Asks the VMM until it is aborted.
async fn watch_vmm(agent: Arc<Agent>, first: oneshot::Sender<()>) {
    agent.look_at_vmm().await;
    agent.changed.notify_one();
    drop(first);
    loop {
        sleep(VMM_INTERVAL).await;
        agent.look_at_vmm().await;
    }
}

/// Reports until it is aborted.
pub(crate) async fn report_forever(agent: Arc<Agent>) {
    let (first, datastores) = oneshot::channel();
    agent.spawn(watch_datastores(Arc::clone(&agent), first));
    let (first, vmm) = oneshot::channel();
    agent.spawn(watch_vmm(Arc::clone(&agent), first));
    // The report goes out either way.
    let _ = timeout(FIRST_LOOK, async { tokio::join!(datastores, vmm) }).await;
    let mut pause = PAUSE_MIN;
    let mut heard = None;
    loop {
        let report = agent.report();
        match agent.manager.report(&report).await {
            Ok(()) => {
                if heard.replace(true) != Some(true) {
                    tracing::info!("the manager hears this host");
                }
                agent.vms.acknowledge(&report.vms);
                if agent.vms.all_live().iter().any(|machine| machine.state(|state| state.migrating())) {
                    agent.manager.warm_arbiter().await;
                }
                pause = PAUSE_MIN;
                sleep(INTERVAL_MIN).await;
                // Either way it is time for the next report.
                let _ = timeout(INTERVAL, agent.changed.notified()).await;
            }
            Err(error) => {
                if heard.replace(false) != Some(false) {
                    let remedy = error.remedy.as_deref().unwrap_or("look at the manager's log");
                    tracing::warn!("the manager does not hear this host: {error}; {remedy}");
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
