//! How migrations get on: bars on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use godwit_types::task::Task;
use godwit_types::{Bytes, VmName};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::note;
use crate::{forecast, report};

/// Where standard error is no terminal, progress is a line for each VM this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// One line for each VM, named if there are several.
pub(super) struct View {
    all: MultiProgress,
    rows: Vec<Row>,
}

struct Row {
    name: Option<VmName>,
    memory: Bytes,
    bar: ProgressBar,
    last_line: Option<Instant>,
    /// Whether the forecast was shown.
    told: bool,
}

impl View {
    /// Of VMs with so much memory.
    pub(super) fn new<'a>(vms: impl ExactSizeIterator<Item = (&'a VmName, Bytes)>) -> Self {
        let (all, several) = (MultiProgress::new(), vms.len() > 1);
        let rows = vms.map(|(vm, memory)| {
            let bar = all.add(ProgressBar::new(1000));
            // The templates are constants that indicatif accepts; the default style would do as well.
            let template = if several { "{prefix:12} {bar:16} {msg}" } else { "{bar:24} {msg}" };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(vm.to_string());
            Row { name: several.then(|| vm.clone()), memory, bar, last_line: None, told: false }
        });
        Self { rows: rows.collect(), all }
    }

    /// Shows how the VM of that index gets on.
    pub(super) fn show(&mut self, index: usize, task: &Task) {
        let Some(row) = self.rows.get_mut(index) else { return };
        if let Some(told) = task.forecast.as_ref().filter(|_| !row.told) {
            row.told = true;
            self.all.suspend(|| note(row.named(&forecast::line(told))));
        }
        let shown = task.progress.as_ref().filter(|_| !task.state.is_final());
        let text = shown.map_or_else(|| task.message.clone(), report::progress);
        if row.bar.is_hidden() {
            let due = row.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
            if due && !task.state.is_final() {
                note(row.named(&text));
                row.last_line = Some(Instant::now());
            }
            return;
        }
        if let Some(progress) = &task.progress {
            row.bar.set_position(report::permille(progress, row.memory));
        }
        row.bar.set_message(text);
    }
}

impl Row {
    fn named(&self, text: &str) -> String {
        self.name.as_ref().map_or_else(|| text.to_owned(), |name| format!("{name}: {text}"))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.rows.iter().for_each(|row| row.bar.finish_and_clear());
    }
}
