//! `vm migrate`: starts the migration, draws its progress, ends with its report.

use std::time::Duration;

use godwit_types::ApiError;
use godwit_types::Bytes;
use godwit_types::migration::{Budget, MigrateVm};
use godwit_types::task::Task;
use godwit_types::vm::Vm;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Session, plan, task};
use crate::cli::VmMigrate;
use crate::output::note;
use crate::{forecast, report};

/// Where standard error is no terminal, progress is a line this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

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
        },
    };
    if options.plan {
        let sample_ms = u32::try_from(options.sample.ms).unwrap_or(u32::MAX);
        return plan::run(session, &options.vm, request, sample_ms).await;
    }
    let vm: Vm = session.client.get(&format!("/v1/vms/{}", options.vm)).await?;
    let started: Task = session.client.post(&format!("/v1/vms/{}/migrate", options.vm), &request).await?;
    if options.detach {
        return session.format.print(&started, |task| format!("task {} migrates {}", task.id, task.vm_name));
    }
    let mut view = View::new(vm.spec.memory);
    let task_id = started.id;
    let waiting = task::wait(session, started.clone(), |task| view.show(task));
    tokio::pin!(waiting);
    let ended = tokio::select! {
        ended = &mut waiting => ended?,
        _ = tokio::signal::ctrl_c() => {
            // Leaving would not stop the migration, and whoever types Ctrl-C wants it stopped.
            match task::cancel(session, task_id).await {
                Ok(_) => note("cancelling; Ctrl-C again leaves it to the manager"),
                Err(error) => note(format!("{}; Ctrl-C again stops waiting", error.message)),
            }
            tokio::select! {
                ended = &mut waiting => ended?,
                _ = tokio::signal::ctrl_c() => {
                    return session.format.print(&started, |task| format!("task {} goes on without this terminal", task.id));
                }
            }
        }
    };
    task::conclude(session, &ended, |task| match &task.report {
        Some(done) => report::report(done),
        None => task.message.clone(),
    })
}

/// A bar on a terminal, a line now and then elsewhere.
struct View {
    memory: Bytes,
    bar: ProgressBar,
    last_line: Option<std::time::Instant>,
    /// Whether the forecast was shown.
    told: bool,
}

impl View {
    fn new(memory: Bytes) -> Self {
        let bar = ProgressBar::new(1000);
        // The template is a constant that indicatif accepts; the default style would do as well.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style);
        }
        Self { memory, bar, last_line: None, told: false }
    }

    fn show(&mut self, task: &Task) {
        if let Some(told) = task.forecast.as_ref().filter(|_| !self.told) {
            self.told = true;
            self.bar.suspend(|| note(forecast::line(told)));
        }
        let text = task.progress.as_ref().map_or_else(|| task.message.clone(), report::progress);
        if self.bar.is_hidden() {
            if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
                note(text);
                self.last_line = Some(std::time::Instant::now());
            }
            return;
        }
        if let Some(progress) = &task.progress {
            self.bar.set_position(report::permille(progress, self.memory));
        }
        self.bar.set_message(text);
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
