//! `vm move-storage`: moves a VM's disks to another datastore of its host, and shows how they get on.

use std::time::{Duration, Instant};

use godwit_types::ApiError;
use godwit_types::storage::{MoveStorage, StoragePhase, StorageProgress};
use godwit_types::task::{Task, TaskState};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Session, task};
use crate::cli::VmMoveStorage;
use crate::output::note;
use crate::report::rate;

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
    let mut view = View::new();
    task::follow(session, begun, move |task| view.show(task)).await
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
