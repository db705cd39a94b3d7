//! Looking at the cluster: every minute, when something has happened, and when people ask; never twice at a time.

use std::sync::Arc;
use std::time::Duration;

use godwit_scheduler::planner::Goal;
use godwit_scheduler::record::Ran;
use godwit_types::ApiError;
use godwit_types::event::Event;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::record::record;
use super::settle::settle;
use super::snapshot::{Inventory, demands, left_alone, of_inventory};
use super::{Look, Terms, decide, execute};
use crate::clock::now_unix_ms;
use crate::manager::Manager;

/// Events after which the cluster is another than the last plan was made for.
const TRIGGERS: [&str; 17] = [
    "host.joined",
    "host.up",
    "host.down",
    "host.entering_maintenance",
    "host.in_standby",
    "host.left_maintenance",
    "host.left_standby",
    "host.not_switched",
    crate::rulebook::CHANGED,
    "vm.crashed",
    "vm.deleted",
    "vm.migrated",
    "vm.migration_cancelled",
    "vm.migration_failed",
    "vm.started",
    "vm.stopped",
    "vm.taken_over",
];
/// How long to wait after a look that failed.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// Most events that are read at a time.
const EVENTS_AT_ONCE: u64 = 1_000;

/// Looks whenever it is time. Never ends.
pub(crate) async fn follow(manager: Arc<Manager>) {
    let mut news = manager.store.last_event();
    let mut seen = *news.borrow_and_update();
    let mut tick = interval(manager.limits.round);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let cause = tokio::select! {
            _ = tick.tick() => Ok(Some("time has passed".to_owned())),
            _ = news.changed() => trigger(&manager, &mut seen).await,
            () = no_longer_left_alone(&manager) => Ok(Some("a VM is no longer left alone".to_owned())),
        };
        let looked = match cause {
            Ok(Some(cause)) => look(&manager, &cause, Goal::Balance, Wanted::ByItself).await.map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = looked {
            tracing::error!("the scheduler could not look at the cluster: {error}");
            sleep(AFTER_ERROR).await;
        }
    }
}

/// Waits until a VM that was left alone in the last look may be moved again.
async fn no_longer_left_alone(manager: &Manager) {
    let again = manager.scheduling.last.borrow().and_then(|last| last.again_unix_ms);
    match again {
        Some(unix_ms) => sleep(Duration::from_millis(unix_ms.saturating_sub(now_unix_ms()))).await,
        None => std::future::pending().await,
    }
}

/// What of the news since `seen` calls for a new plan.
async fn trigger(manager: &Manager, seen: &mut u64) -> Result<Option<String>, ApiError> {
    let after = *seen;
    let events: Vec<Event> =
        manager.store.read(move |tx| Ok(tx.events_after(after, EVENTS_AT_ONCE)?)).await?;
    *seen = events.last().map_or(after, |last| last.sequence);
    let last = events.into_iter().rfind(|event| TRIGGERS.contains(&event.kind.as_str()));
    Ok(last.map(|event| event.message))
}

/// Who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    ByItself,
    /// People, and it is recorded whatever it says.
    ByPeople,
    /// People who only want to be told.
    ToTell,
}

/// One round: what became of steps, a new plan, and what of it can be done now.
pub(super) async fn look(
    manager: &Arc<Manager>,
    cause: &str,
    goal: Goal,
    wanted: Wanted,
) -> Result<Ran, ApiError> {
    let _alone = manager.scheduling.alone.lock().await;
    let limits = manager.limits.clone();
    let scene = manager.store.note(move |tx| {
        let now = now_unix_ms();
        settle(tx)?;
        let inventory = Inventory::of(tx)?;
        tx.note_demand(now, &demands(&inventory))?;
        let terms = Terms::of(tx, &limits)?;
        let alone = left_alone(tx, &terms, &inventory, now)?;
        let again_unix_ms = alone.iter().map(|alone| alone.until_unix_ms).min();
        Ok((of_inventory(tx, &terms, &inventory, &alone, None, now)?, terms.policy, again_unix_ms))
    });
    let (snapshot, policy, again_unix_ms) = scene.await?;
    manager.scheduling.last.send_replace(Some(Look { unix_ms: snapshot.at_unix_ms, again_unix_ms }));
    let decision = decide(snapshot, policy, goal).await?;
    let plan = decision.plan.clone();
    if wanted == Wanted::ToTell {
        return Ok(Ran { decision: None, plan });
    }
    let cause = cause.to_owned();
    let recorded = manager.store.write(move |tx| record(tx, &cause, &decision, wanted == Wanted::ByPeople));
    let decision = recorded.await?;
    execute::execute(manager).await?;
    Ok(Ran { decision, plan })
}
