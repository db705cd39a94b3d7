//! Migrations that wait for their turn: [`admission`](crate::admission) decides, the tasks' rows say so, drivers are called.
//!
//! ```text
//!   request --- a slot at both hosts: begins at once
//!      |                                                called            judged again
//!      '------- task `waiting` <--- the usher looks ------------> driver ------------> begins, or is refused
//!                     turn, message <-'  (a move begins, ends or is cancelled; a host's limits change)
//! ```
//!
//! The rows are the queue, so it outlives the manager. Who was called and has not begun keeps its slots: nobody else is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use godwit_types::host::MigrationLimits;
use godwit_types::task::{FullHost, Task, TaskKind, TaskState, Turn};
use godwit_types::{ApiError, ErrorCode, HostName, TaskId};
use tokio::time::timeout;

use super::migrate;
use crate::admission::{self, Move, Place};
use crate::manager::Manager;
use crate::moving::Wish;
use crate::preflight;
use crate::store::{StoreError, Tx};
use crate::tasks::Driver;

/// Migrations that may wait; more are refused.
const WAITING_MAX: usize = 256;
/// Hosts' limits are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Writes down whose turn it is whenever that may have changed. Never ends.
pub(crate) async fn usher(manager: Arc<Manager>) {
    let mut changed = manager.queue.subscribe();
    loop {
        match manager.store.note(|tx| Ok(look(tx)?)).await {
            Ok(called) => drop(manager.called.send_replace(called)),
            Err(error) => tracing::error!("cannot look whose turn it is to migrate: {error}"),
        }
        // Either way it is time to look again.
        let _ = timeout(LOOK_AGAIN, changed.changed()).await;
    }
}

/// Whose turn it is; the others are told what they wait for.
fn look(tx: &Tx<'_>) -> Result<BTreeSet<TaskId>, StoreError> {
    let mut called = BTreeSet::new();
    for (task, turn) in waiting(tx)? {
        match turn {
            None => drop(called.insert(task.id)),
            Some(turn) if task.turn.as_ref() == Some(&turn) => {}
            Some(turn) => tx.set_task_turn(task.id, &describe(&turn), &turn)?,
        }
    }
    Ok(called)
}

/// The tasks that wait, oldest first, each with its turn; none if that has come.
fn waiting(tx: &Tx<'_>) -> Result<Vec<(Task, Option<Turn>)>, StoreError> {
    let open = tx.open_migrations()?;
    if open.iter().all(|(_, begun)| *begun) {
        return Ok(Vec::new());
    }
    let limits = limits(tx)?;
    let moves = open.iter().map(|(task, begun)| match &task.kind {
        TaskKind::MigrateVm { from, to } => Move::between(from, to, *begun),
        // There is nothing that it needs.
        _ => Move { places: Vec::new(), under_way: *begun },
    });
    let turns = admission::turns(&moves.collect::<Vec<_>>(), |place| slots(&limits, place));
    let waiting = open.into_iter().zip(turns).filter(|((_, begun), _)| !begun);
    Ok(waiting.map(|((task, _), turn)| (task, shown(&limits, turn))).collect())
}

fn limits(tx: &Tx<'_>) -> Result<BTreeMap<HostName, MigrationLimits>, StoreError> {
    Ok(tx.hosts()?.into_iter().map(|host| (host.name, host.facts.migration)).collect())
}

fn slots(limits: &BTreeMap<HostName, MigrationLimits>, place: &Place) -> u32 {
    let (Place::Out(host) | Place::In(host)) = place;
    limits.get(host).copied().unwrap_or_default().moves_max
}

fn shown(limits: &BTreeMap<HostName, MigrationLimits>, turn: admission::Turn) -> Option<Turn> {
    let admission::Turn::Wait { position, full } = turn else { return None };
    let full = full.into_iter().map(|place| {
        let moves_max = slots(limits, &place);
        match place {
            Place::Out(host) => FullHost { host, incoming: false, moves_max },
            Place::In(host) => FullHost { host, incoming: true, moves_max },
        }
    });
    Some(Turn { position, full: full.collect() })
}

/// What a task waits for, in words.
fn describe(turn: &Turn) -> String {
    let full = turn.full.iter().map(|FullHost { host, incoming, moves_max }| {
        let (way, moves) =
            (if *incoming { "to" } else { "from" }, if *moves_max == 1 { "move" } else { "moves" });
        format!("{moves_max} {moves} {way} {host} at once")
    });
    let full: Vec<String> = full.collect();
    format!("waits, at position {}: no more than {}", turn.position, full.join(" and "))
}

/// After a task was added: what it waits for, in words, or none if its turn is now.
pub(super) fn enter(tx: &Tx<'_>, task: TaskId) -> Result<Option<String>, ApiError> {
    let waiting = waiting(tx)?;
    if waiting.len() > WAITING_MAX {
        let message = format!("{WAITING_MAX} migrations wait already");
        return Err(ApiError::new(ErrorCode::Refused, message)
            .remedy("ask again when some have ended: godwit task ls"));
    }
    let Some(turn) = waiting.into_iter().find(|(other, _)| other.id == task).and_then(|(_, turn)| turn)
    else {
        return Ok(None);
    };
    let message = describe(&turn);
    tx.set_task_turn(task, &message, &turn)?;
    Ok(Some(message))
}

/// Waits until the task's migration has begun. The inner error is why it cannot any more.
pub(super) async fn await_turn(driver: &Driver) -> Result<Result<(), ApiError>, ApiError> {
    let (id, manager) = (driver.task.id, &driver.manager);
    let mut called = manager.called.subscribe();
    loop {
        // The sender lives in the manager, which the driver holds.
        let _ = called.wait_for(|called| called.contains(&id)).await;
        let rows = manager.store.read(move |tx| Ok((tx.task(id)?, tx.task_request(id)?)));
        let (task, wish): (_, Wish) = rows.await?;
        let Some(Task { state: TaskState::Waiting, kind: TaskKind::MigrateVm { to, .. }, .. }) = task else {
            return Ok(Ok(()));
        };
        // What was well when it was asked for may have changed since.
        let probe = match preflight::ask(manager, &driver.vm.to_string(), Some(&to), wish.move_disks.as_ref())
            .await
        {
            Ok(probe) => probe,
            Err(error) => return Ok(Err(error)),
        };
        let begun = manager.store.write(move |tx| {
            let is_called = waiting(tx)?.iter().any(|(task, turn)| task.id == id && turn.is_none());
            if is_called {
                migrate::begin(tx, id, &wish, &probe)?;
            }
            Ok(is_called)
        });
        match begun.await {
            Ok(true) => return Ok(Ok(())),
            // A host's limit was lowered meanwhile, or it was cancelled.
            Ok(false) => drop(called.changed().await),
            Err(refused) => return Ok(Err(refused)),
        }
    }
}
