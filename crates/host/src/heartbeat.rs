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
/// Time between looks at the memory that is kept, and at whether the host still has enough.
const KEPT_INTERVAL: Duration = Duration::from_secs(2);
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Least time between two reports, whatever changes.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// Pause after the first report that failed; doubles with each up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// Looks at something now and then until it is aborted. Returns what ends with the first look.
fn watch<Look: Future<Output = ()> + Send>(
    agent: &Arc<Agent>,
    interval: Duration,
    look: impl Fn(Arc<Agent>) -> Look + Send + 'static,
) -> oneshot::Receiver<()> {
    let (first, looked) = oneshot::channel();
    let watched = Arc::clone(agent);
    agent.spawn(async move {
        look(Arc::clone(&watched)).await;
        drop(first);
        loop {
            sleep(interval).await;
            look(Arc::clone(&watched)).await;
        }
    });
    looked
}

/// Reports until it is aborted.
pub(crate) async fn report_forever(agent: Arc<Agent>) {
    let datastores =
        watch(&agent, DATASTORES_INTERVAL, |agent| async move { agent.look_at_datastores().await });
    let vmm = watch(&agent, VMM_INTERVAL, |agent| async move { agent.look_at_vmm().await });
    drop(watch(&agent, KEPT_INTERVAL, |agent| async move { agent.tidy_kept_memory().await }));
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
