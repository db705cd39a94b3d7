//! `vm move-storage`: moves a running VM's disks to another datastore of its host, and shows how they get on.

use std::time::{Duration, Instant};

use godwit_types::storage::{MoveStorage, StoragePhase, StorageProgress};
use godwit_types::task::{Task, TaskState};
use godwit_types::{ApiError, ErrorCode};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::{Session, task};
use crate::cli::VmMoveStorage;
use crate::output::note;
use crate::report::rate;

/// How often the task is looked at.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// Where standard error is no terminal, progress is a line this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn run(session: &Session, options: VmMoveStorage) -> Result<(), ApiError> {
    let asked = MoveStorage {
        to: options.to,
        disks: options.disks,
        bandwidth_bytes_per_s_max: options.max_bandwidth.map(|rate| rate.0),
    };
    let path = format!("/v1/vms/{}/move-storage", options.vm);
    let begun: Task = session.client.post(&path, &asked).await?;
    if options.detach {
        return session
            .format
            .print(&begun, |task| format!("task {} moves the disks of {}", task.id, task.subject()));
    }
    let ended = wait(session, begun).await?;
    if !ended.state.is_final() {
        return session
            .format
            .print(&ended, |task| format!("task {} goes on without this terminal", task.id));
    }
    task::conclude(session, &ended, |task| task.message.clone())
}

/// Waits until the task has ended. Ctrl-C cancels it, and another one leaves it to the manager.
async fn wait(session: &Session, mut task: Task) -> Result<Task, ApiError> {
    let mut view = View::new();
    // One for all the time: a signal between two polls must not be lost.
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| ApiError::new(ErrorCode::Failed, format!("Ctrl-C cannot be caught: {error}")))?;
    let mut cancelled = false;
    while !task.state.is_final() {
        view.show(&task);
        tokio::select! {
            () = tokio::time::sleep(POLL_EVERY) => {}
            _ = interrupts.recv() => {
                if cancelled {
                    return Ok(task);
                }
                cancelled = true;
                if let Err(error) = task::cancel(session, task.id).await {
                    note(error.message);
                }
                note("cancelling; Ctrl-C again leaves it to the manager");
            }
        }
        task = task::get(session, task.id).await?;
    }
    Ok(task)
}

/// A bar on a terminal, a line now and then elsewhere.
struct View {
    bar: ProgressBar,
    last_line: Option<Instant>,
}

impl View {
    fn new() -> Self {
        let bar = ProgressBar::new(1000);
        // The template is a constant that indicatif accepts; the default style would do as well.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style);
        }
        Self { bar, last_line: None }
    }

    fn show(&mut self, task: &Task) {
        let shown = task.storage.as_ref().filter(|_| task.state == TaskState::Running);
        let text = shown.map_or_else(|| task.message.clone(), progress);
        if !self.bar.is_hidden() {
            self.bar.set_position(task.storage.as_ref().map_or(0, permille));
            self.bar.set_message(text);
        } else if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            note(text);
            self.last_line = Some(Instant::now());
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How disks that move get on, on one line.
pub(crate) fn progress(progress: &StorageProgress) -> String {
    match progress.phase {
        StoragePhase::Copying => format!(
            "copying: {} copied, {} left, {}",
            progress.copied,
            progress.remaining,
            rate(progress.bytes_per_s)
        ),
        StoragePhase::Settling => format!("{} copied, and being made durable", progress.copied),
        StoragePhase::InSync | StoragePhase::Held => format!("{} copied, in sync", progress.copied),
        StoragePhase::Switched => format!("{} copied, moved", progress.copied),
    }
}

fn permille(progress: &StorageProgress) -> u64 {
    let all = progress.copied.0.saturating_add(progress.remaining.0);
    (u128::from(progress.copied.0) * 1000 / u128::from(all.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use godwit_types::Bytes;

    use super::*;

    #[test]
    fn a_copy_tells_what_is_left_and_how_fast_it_goes() {
        let copying = StorageProgress {
            phase: StoragePhase::Copying,
            copied: Bytes::mib(30),
            remaining: Bytes::mib(10),
            bytes_per_s: 100 << 20,
            elapsed_ms: 300,
        };
        let text = progress(&copying);
        assert!(text.contains("10MiB left") && text.contains("100"), "{text}");
        assert_eq!(permille(&copying), 750);
        let nothing = StorageProgress { copied: Bytes(0), remaining: Bytes(0), ..copying };
        assert_eq!(permille(&nothing), 0);
    }
}
