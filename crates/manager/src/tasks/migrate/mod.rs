//! Moving a VM.
//!
//! ```text
//!  task, `waiting` if a host is busy: see `queue`     (after the preflight)
//!      |
//!      v
//!  migration `preparing`                              (in the transaction in which its turn comes)
//!      |  destination builds its machine
//!      v
//!  `running` -> source is told -> polled until it ends or is out of reach: settle.rs judges
//!      |                                |                          |
//!      |  cancel, failure               |  arbiter: `committed`    |  `claimed`
//!      v                                v                          v
//!  `aborted` in the store       too late to cancel; the      moved: the report is the source's
//!  -> both sides are told       destination's word counts
//! ```

mod bandwidth;
mod follow;
mod left;
mod prepare;
pub mod settle;

pub(crate) use left::remove_left;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use godwit_types::agent::{LocalState, LocalVm, Outgoing};
use godwit_types::api::Empty;
use godwit_types::check::{HostCheck, Verdict, refuse};
use godwit_types::forecast::Predicted;
use godwit_types::migration::{Comparison, MigrateVm, MigrationReport};
use godwit_types::task::{Task, TaskKind, TaskState};
use godwit_types::{ApiError, ErrorCode, HostName, MigrationId, TaskId, VmId};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Driver, Ending, cancelled_error, drive, new_task, queue, told};
use crate::arbiter::{Migration, MigrationState};
use crate::manager::{Manager, unknown_host, unknown_task};
use crate::moving::Wish;
use crate::preflight::{self, Probe, Situation};
use crate::store::{HostRow, NewEvent, Power, Tx, VmRow};

/// How long an agent may take to say how it gets on, or to discard.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a source may take to let go of an attempt that was aborted, and how often it is asked.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(5);
const LET_GO_POLL: Duration = Duration::from_millis(50);

/// `POST /v1/vms/{vm}/migrate`.
pub(crate) async fn request(manager: &Arc<Manager>, vm: String, asked: MigrateVm) -> Result<Task, ApiError> {
    let wish = Wish { budget: asked.budget, move_disks: asked.move_disks };
    let to = asked.to;
    let probe = preflight::ask(manager, &vm, Some(&to), wish.move_disks.as_ref()).await?;
    let task = manager.store.write(move |tx| plan(tx, &vm, &to, &wish, &probe)).await?;
    drive(manager, task.clone(), false);
    Ok(task)
}

fn plan(tx: &Tx<'_>, vm: &str, to: &HostName, wish: &Wish, probe: &Probe) -> Result<Task, ApiError> {
    let situation = Situation::of(tx, vm)?;
    let destination = tx.host(to)?.ok_or_else(|| unknown_host(to.as_str()))?;
    let warnings = require_possible(&situation, &destination, probe, wish)?;
    let Situation { vm, owned, .. } = situation;
    let (from, to) = (owned.ok_or_else(|| no_owner(&vm))?.owner, destination.name);
    let kind = TaskKind::MigrateVm { from: from.clone(), to: to.clone() };
    let task = Task { state: TaskState::Waiting, ..new_task(&vm, kind, String::new()) };
    tx.add_task(&task, wish)?;
    for warning in warnings {
        tx.add_event(NewEvent::new("vm.migration_warning", warning).vm(&vm.name).task(task.id))?;
    }
    match queue::enter(tx, task.id)? {
        None => begin(tx, task.id, wish, probe)?,
        Some(waits) => {
            let message = format!("the move of {} from {from} to {to} {waits}", vm.name);
            tx.add_event(
                NewEvent::new("vm.migration_waiting", message).vm(&vm.name).host(&from).task(task.id),
            )?;
        }
    }
    tx.task(task.id)?.ok_or_else(|| unknown_task(task.id))
}

/// Begins the migration of a task whose turn has come, unless it was cancelled.
pub(super) fn begin(tx: &Tx<'_>, id: TaskId, wish: &Wish, probe: &Probe) -> Result<(), ApiError> {
    let task = tx.task(id)?.ok_or_else(|| unknown_task(id))?;
    let (TaskKind::MigrateVm { from, to }, Some(vm)) = (task.kind, task.vm) else { return Ok(()) };
    let situation = Situation::of(tx, &vm.to_string())?;
    // It is busy with this very task.
    let situation = Situation { busy: None, ..situation };
    let destination = tx.host(&to)?.ok_or_else(|| unknown_host(to.as_str()))?;
    require_possible(&situation, &destination, probe, wish)?;
    let moving = situation.moving(&destination, wish);
    let Situation { vm, owned, .. } = situation;
    let owned = owned.ok_or_else(|| no_owner(&vm))?;
    if !tx.begin_task(id, &format!("{to} builds the machine"))? {
        return Ok(());
    }
    let migration = MigrationId(Uuid::new_v4());
    tx.add_migration(&Migration {
        id: migration,
        task: id,
        vm: vm.id,
        source: from.clone(),
        destination: to.clone(),
        epoch: owned.epoch,
        state: MigrationState::Preparing,
        taken_over: false,
    })?;
    if !moving.disks.is_empty() {
        tx.add_moving(migration, &moving)?;
    }
    let message = format!("{} begins to move from {from} to {to}", vm.name);
    Ok(tx.add_event(NewEvent::new("vm.migrating", message).vm(&vm.name).host(&from).task(id))?)
}

/// The preflight refuses a VM that no host owns, since it is not running.
fn no_owner(vm: &VmRow) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("{} runs and has no owner", vm.name))
}

/// Refuses with all reasons, or returns what to warn of.
fn require_possible(
    situation: &Situation,
    destination: &HostRow,
    probe: &Probe,
    wish: &Wish,
) -> Result<BTreeSet<String>, ApiError> {
    let HostCheck { host, findings, .. } = situation.judge(destination, probe, wish);
    let deed = format!("{} cannot move to {host}", situation.vm.name);
    refuse(&deed, &findings).map_err(|error| {
        // Whoever waits for the other task can ask again.
        let code = if situation.busy.is_some() { ErrorCode::Conflict } else { error.code };
        ApiError { code, ..error }
    })?;
    let warnings = findings.into_iter().filter(|finding| finding.verdict == Verdict::Warning);
    Ok(warnings.map(|finding| finding.reason).collect())
}

/// Drives the task to its end.
pub(super) async fn run(driver: &mut Driver) -> Result<Ending, ApiError> {
    let id = driver.task.id;
    if driver.task.state == TaskState::Waiting {
        if let Some(Err(refused)) = driver.unless_cancelled(queue::await_turn(driver)).await?.transpose()? {
            return Ok(not_begun(driver, refused));
        }
        // Whichever manager has put it into the queue, this one has begun it.
        driver.resumed = false;
    }
    let Some(m) = driver.manager.store.read(move |tx| Ok(tx.migration_of(id)?)).await? else {
        return Ok(not_begun(driver, cancelled_error("the migration")));
    };
    let mut attempt = Attempt { driver, m, told: None };
    if attempt.m.state == MigrationState::Preparing
        && let Err(error) = attempt.prepare().await?
        && let Some(ending) = attempt.abort(error).await?
    {
        return Ok(ending);
    }
    let mut ending = attempt.follow().await?;
    if let Some(report) = &mut ending.report {
        let task = driver.manager.store.read(move |tx| Ok(tx.task(id)?)).await?;
        report.predicted = task.and_then(|task| task.forecast).as_ref().map(Predicted::from);
    }
    Ok(ending)
}

/// How a migration ends that never began.
fn not_begun(driver: &Driver, error: ApiError) -> Ending {
    let cancelled = error.code == ErrorCode::Cancelled;
    let event = if cancelled { "vm.migration_cancelled" } else { "vm.migration_failed" };
    let message = format!("{} has not begun to move: {}", driver.name, told(&error));
    Ending::failed(event, message, error)
}

/// One side of a migration, in the agents' paths.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Incoming,
    Outgoing,
}

fn path(vm: VmId, side: Side) -> String {
    match side {
        Side::Incoming => format!("/v1/vms/{vm}/incoming"),
        Side::Outgoing => format!("/v1/vms/{vm}/outgoing"),
    }
}

/// Tells one side that a migration is aborted. One that cannot be reached is told when it asks the arbiter, or when
/// it reports a machine that still waits.
pub(crate) async fn discard(
    manager: &Manager,
    host: &HostName,
    vm: VmId,
    side: Side,
    migration: MigrationId,
) {
    let tell = async {
        let agent = manager.agent(host).await?.with_timeout(ASK_TIMEOUT);
        agent.delete::<Empty>(&format!("{}/{migration}", path(vm, side))).await
    };
    match tell.await {
        Err(error) if error.code != ErrorCode::NotFound => {
            tracing::info!("{host} was not told that migration {migration} is aborted: {error}");
        }
        _ => {}
    }
}

/// One migration on its way.
struct Attempt<'a> {
    driver: &'a mut Driver,
    m: Migration,
    told: bandwidth::Told,
}

impl Attempt<'_> {
    /// Aborts in the store, then tells both sides. `None`: it is committed already.
    async fn abort(&mut self, reason: ApiError) -> Result<Option<Ending>, ApiError> {
        let id = self.m.id;
        let aborted = self.driver.manager.store.write(move |tx| {
            let aborted = tx.abort_migration(id, &reason)?;
            Ok(aborted.then_some(tx.abort_reason(id)?.unwrap_or(reason)))
        });
        let Some(reason) = aborted.await? else {
            self.reload().await?;
            return Ok(None);
        };
        let (manager, m) = (&self.driver.manager, &self.m);
        tokio::join!(
            discard(manager, &m.source, m.vm, Side::Outgoing, m.id),
            discard(manager, &m.destination, m.vm, Side::Incoming, m.id)
        );
        self.source_lets_go().await;
        let power = self.ended_at_source().await;
        Ok(Some(Ending { power, ..self.failed(reason, power) }))
    }

    /// How the VM ended at its source, if it did: the attempt may have failed for no other reason.
    async fn ended_at_source(&self) -> Option<Power> {
        let agent = self.driver.manager.agent(&self.m.source).await.ok()?.with_timeout(ASK_TIMEOUT);
        let local: LocalVm = agent.get(&format!("/v1/vms/{}", self.m.vm)).await.ok()?;
        match local.state {
            _ if local.epoch != self.m.epoch => None,
            LocalState::Crashed => Some(Power::Crashed),
            LocalState::Stopped => Some(Power::Stopped),
            _ => None,
        }
    }

    /// Waits a moment until the source is done with the attempt: before, it would refuse the next one.
    async fn source_lets_go(&self) {
        let Ok(agent) = self.driver.manager.agent(&self.m.source).await else { return };
        let agent = agent.with_timeout(ASK_TIMEOUT);
        let path = format!("{}/{}", self.path(Side::Outgoing), self.m.id);
        let works = async || matches!(agent.get::<Outgoing>(&path).await, Ok(Outgoing { outcome: None, .. }));
        let done = async {
            while works().await {
                sleep(LET_GO_POLL).await;
            }
        };
        // One that takes longer is settled by its agent; the next attempt is then refused with that reason.
        let _ = timeout(LET_GO_TIMEOUT, done).await;
    }

    fn path(&self, side: Side) -> String {
        path(self.m.vm, side)
    }

    fn moved(&self, report: Option<MigrationReport>, runs: bool) -> Ending {
        let (name, from, to) = (&self.driver.name, &self.m.source, &self.m.destination);
        let power = if runs { Power::Running } else { Power::Stopped };
        if self.m.taken_over {
            let message = format!(
                "{to} took {name} over: {from} died in the switchover, when {to} had everything and {name} stood still"
            );
            return Ending::succeeded("vm.taken_over", power, message);
        }
        let verified = report.as_ref().and_then(|report| report.verified.as_deref());
        let compared = verified.map(|verified| verified.memory);
        if compared == Some(Comparison::Different) {
            let message = format!(
                "{name} moved from {from} to {to}, and ITS MEMORY IS NOT WHAT IT WAS: restart {name}"
            );
            return Ending { report, ..Ending::succeeded("vm.memory_differs", power, message) };
        }
        let proof = if compared == Some(Comparison::Same) { ", memory verified" } else { "" };
        let numbers = match &report {
            Some(r) => format!(
                "blackout {:.1} ms, {:.0} ms in all, {} rounds{proof}",
                r.blackout.total_ms, r.total_ms, r.rounds
            ),
            None => format!("{from} could not say what it measured"),
        };
        let ending =
            Ending::succeeded("vm.migrated", power, format!("{name} moved from {from} to {to}: {numbers}"));
        Ending { report, ..ending }
    }

    fn failed(&self, error: ApiError, power: Option<Power>) -> Ending {
        let Migration { source, destination, state, .. } = &self.m;
        let name = &self.driver.name;
        let message = match state {
            MigrationState::Committed | MigrationState::Claimed => {
                format!("{name} belongs to {destination}, and is not known to run there: {}", told(&error))
            }
            _ => match power {
                Some(Power::Crashed) => format!("{name} crashed on {source}: {}", told(&error)),
                Some(Power::Stopped) => format!("{name} ended on {source}: {}", told(&error)),
                _ => format!("{name} stays on {source}: {}", told(&error)),
            },
        };
        let cancelled = error.code == ErrorCode::Cancelled;
        let event = if cancelled { "vm.migration_cancelled" } else { "vm.migration_failed" };
        Ending::failed(event, message, error)
    }
}
