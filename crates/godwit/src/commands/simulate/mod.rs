//! `simulate`: what the scheduler would do with a cluster over days.

mod axis;
mod chart;
mod html;
mod read;
mod text;

use std::path::Path;
use std::time::{Duration, Instant};

use godwit_scheduler::planner::plan;
use godwit_scheduler::policy::Policy;
use godwit_simulator::{Report, Simulation};
use godwit_types::{ApiError, ErrorCode};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::simulate::Simulate;
use crate::output::{Format, note};

/// What takes no longer shows no progress; where there is no bar, a line is written so often.
const QUIET: Duration = Duration::from_secs(2);
const LINE_EVERY: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Simulate, format: Format) -> Result<(), ApiError> {
    let trace = read::trace(options)?;
    let policy = options.policy.as_deref().map_or_else(|| Ok(Policy::default()), read::policy)?;
    let simulation = Simulation::new(trace, policy, options.seed)
        .map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    let began = Instant::now();
    let report = simulate(simulation)?;
    if let Some(folder) = &options.report {
        write(folder, &report)?;
        note(format_args!("written: {}", folder.join("report.html").display()));
    }
    format.print(&report, |report| text::summary(report, began.elapsed()))
}

/// All steps, with progress on standard error.
fn simulate(mut simulation: Simulation) -> Result<Report, ApiError> {
    let mut progress = Progress::new();
    while simulation.step(&mut plan).is_some() {
        progress.show(simulation.progress());
    }
    if !simulation.is_sound() {
        let lost =
            "the simulation has lost a VM, or filled a host with more than it has: this is a fault of Godwit";
        return Err(ApiError::new(ErrorCode::Internal, lost));
    }
    Ok(simulation.report())
}

fn write(folder: &Path, report: &Report) -> Result<(), ApiError> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Failed, format!("cannot write {}: {error}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let json = serde_json::to_string_pretty(report).map_err(|error| failed(folder, &error))?;
    for (name, contents) in [("report.json", json), ("report.html", html::page(report))] {
        let path = folder.join(name);
        std::fs::write(&path, contents).map_err(|error| failed(&path, &error))?;
    }
    Ok(())
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    began: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { began: Instant::now(), bar: None, last_line: Instant::now() }
    }

    fn show(&mut self, (done, all): (usize, usize)) {
        if self.began.elapsed() < QUIET {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(all as u64);
            // The template is a constant that indicatif accepts; the default style would do as well.
            if let Ok(style) = ProgressStyle::with_template("{bar:24} step {pos} of {len}, {eta} left") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_position(done as u64);
        if bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            note(format_args!("step {done} of {all}"));
            self.last_line = Instant::now();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
