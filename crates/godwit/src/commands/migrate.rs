//! `vm migrate`: starts one or several migrations, shows how they get on, ends with their reports.

mod view;

use std::time::Duration;

use godwit_types::migration::{Budget, Comparison, MigrateVm, MoveDisks};
use godwit_types::task::{Task, TaskState, VmMove};
use godwit_types::vm::Vm;
use godwit_types::{ApiError, Bytes, ErrorCode, VmName};
use tokio::signal::unix::{SignalKind, signal};

use self::view::View;
use super::{Session, plan, task};
use crate::cli::VmMigrate;
use crate::output::{note, table};
use crate::report;

/// How often the tasks are looked at.
const POLL_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(session: &Session, options: VmMigrate) -> Result<(), ApiError> {
    let request = MigrateVm {
        to: options.to,
        budget: Budget {
            blackout_ms_max: u32::try_from(options.max_blackout.ms).unwrap_or(u32::MAX),
            deadline_ms: options.deadline.ms,
            on_deadline: options.on_deadline,
            bandwidth_bytes_per_s_max: options.max_bandwidth.map(|rate| rate.0),
            plain: options.plain,
            post_copy: options.post_copy,
            verify: options.verify,
            slowdown_percent_max: options.max_slowdown,
        },
        move_disks: options.move_disks.map(|datastore| MoveDisks { datastore }),
    };
    if options.plan {
        let [vm] = options.vms.as_slice() else {
            let message = "a plan is about one VM: what several cost depends on how they go together";
            return Err(ApiError::new(ErrorCode::Invalid, message).remedy("ask for a plan of each"));
        };
        let sample_ms = u32::try_from(options.sample.ms).unwrap_or(u32::MAX);
        return plan::run(session, vm, request, sample_ms).await;
    }
    let mut moves = Vec::new();
    for vm in options.vms {
        moves.push(Move::start(session, vm, &request).await);
    }
    if !options.detach {
        wait(session, &mut moves).await?;
    }
    conclude(session, moves, options.detach)
}

/// A VM that is to move.
struct Move {
    memory: Bytes,
    shown: VmMove,
}

impl Move {
    async fn start(session: &Session, vm: VmName, request: &MigrateVm) -> Self {
        let begin = async {
            let found: Vm = session.client.get(&format!("/v1/vms/{vm}")).await?;
            let task: Task = session.client.post(&format!("/v1/vms/{vm}/migrate"), request).await?;
            Ok((found.spec.memory, task))
        };
        match begin.await {
            Ok((memory, task)) => Self { memory, shown: VmMove { vm, task: Some(task), error: None } },
            Err(error) => Self { memory: Bytes(0), shown: VmMove { vm, task: None, error: Some(error) } },
        }
    }
}

/// That it has moved, and not as it was.
fn damage(task: &Task) -> Option<ApiError> {
    let verified = task.report.as_ref()?.verified.as_ref()?;
    let error = || ApiError::new(ErrorCode::Failed, task.message.clone());
    (verified.memory == Comparison::Different)
        .then(|| error().remedy("restart the VM, and report both digests"))
}

/// Why it did not move as it was, if it has ended.
fn failure(VmMove { task, error, .. }: &VmMove) -> Option<ApiError> {
    let ended = task.as_ref().filter(|task| task.state.is_final() && task.state != TaskState::Succeeded);
    error.clone().or_else(|| ended.map(task::failure)).or_else(|| task.as_ref().and_then(damage))
}

/// How it stands, on one line.
fn row(VmMove { vm, task, error }: &VmMove) -> Vec<String> {
    let (state, message) = match (task, error) {
        (Some(task), _) => (task::state(task.state), task.message.clone()),
        (None, error) => ("refused", error.as_ref().map(|error| error.message.clone()).unwrap_or_default()),
    };
    vec![vm.to_string(), state.into(), message]
}

/// Waits until all have ended. Ctrl-C cancels them, and another one leaves them to the manager.
async fn wait(session: &Session, moves: &mut [Move]) -> Result<(), ApiError> {
    let mut view = View::new(moves.iter().map(|one| (&one.shown.vm, one.memory)));
    // One for all the time: a signal between two polls must not be lost.
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| ApiError::new(ErrorCode::Failed, format!("Ctrl-C cannot be caught: {error}")))?;
    let mut cancelled = false;
    loop {
        let mut open = false;
        for (index, one) in moves.iter_mut().enumerate() {
            let Some(task) = one.shown.task.as_mut().filter(|task| !task.state.is_final()) else { continue };
            *task = task::get(session, task.id).await?;
            view.show(index, task);
            open |= !task.state.is_final();
        }
        if !open {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_EVERY) => {}
            _ = interrupts.recv() => {
                if cancelled {
                    return Ok(());
                }
                cancelled = true;
                cancel_all(session, moves).await;
            }
        }
    }
}

/// Leaving would not stop the migrations, and whoever types Ctrl-C wants them stopped.
async fn cancel_all(session: &Session, moves: &[Move]) {
    // From the last on, so that none begins because one before it has ended.
    for task in
        moves.iter().rev().filter_map(|one| one.shown.task.as_ref()).filter(|task| !task.state.is_final())
    {
        if let Err(error) = task::cancel(session, task.id).await {
            note(error.message);
        }
    }
    note("cancelling; Ctrl-C again leaves it to the manager");
}

/// Prints how they ended: of one VM its task, of several a list.
fn conclude(session: &Session, moves: Vec<Move>, detached: bool) -> Result<(), ApiError> {
    let moves: Vec<VmMove> = moves.into_iter().map(|one| one.shown).collect();
    match moves.as_slice() {
        [VmMove { error: Some(error), .. }] => return Err(error.clone()),
        [VmMove { task: Some(task), .. }] if task.state.is_final() => {
            task::conclude(session, task, describe)?;
            return damage(task).map_or(Ok(()), Err);
        }
        [VmMove { task: Some(task), .. }] => {
            return session.format.print(task, |task| going_on(task, detached));
        }
        _ => {}
    }
    session.format.print(&moves, |moves| table(&["VM", "STATE", "MESSAGE"], moves.iter().map(row)))?;
    let failures: Vec<(&VmName, ApiError)> =
        moves.iter().filter_map(|one| Some((&one.vm, failure(one)?))).collect();
    let Some((_, first)) = failures.first() else { return Ok(()) };
    // A script can tell that all were refused from that some were.
    let alike = failures.len() == moves.len() && failures.iter().all(|(_, error)| error.code == first.code);
    let names: Vec<&str> = failures.iter().map(|(vm, _)| vm.as_str()).collect();
    let message =
        format!("{} of {} VMs did not move as they were: {}", names.len(), moves.len(), names.join(", "));
    let error = ApiError::new(if alike { first.code } else { ErrorCode::Failed }, message);
    Err(error.remedy("see why: godwit task ls"))
}

fn describe(task: &Task) -> String {
    task.report.as_ref().map_or_else(|| task.message.clone(), report::report)
}

fn going_on(task: &Task, detached: bool) -> String {
    if detached {
        format!("task {} migrates {}", task.id, task.subject())
    } else {
        format!("task {} goes on without this terminal", task.id)
    }
}
