//! What the workloads count, and the report made of it.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;

use godwit_guest_contract::report::{DiskReport, MemoryReport, Report};

use super::{count, heartbeat};

/// Counters of all workloads. Each is written by one thread, and read by whoever asks for the report.
#[derive(Debug, Default)]
pub struct State {
    pub beats: AtomicU64,
    pub max_gap_us: AtomicU64,
    pub clock_steps_back: AtomicU64,
    pub requests: AtomicU64,
    pub memory: Memory,
    pub disk: Disk,
}

/// The memory workload's counters.
#[derive(Debug, Default)]
pub struct Memory {
    pub working_set_bytes: AtomicU64,
    pub passes: AtomicU64,
    pub pages_checked: AtomicU64,
    pub faults: Faults,
}

/// The disk workload's counters.
#[derive(Debug, Default)]
pub struct Disk {
    pub acked: AtomicU64,
    pub read_back: AtomicU64,
    pub faults: Faults,
}

/// Errors by number, with the first of them in words.
#[derive(Debug, Default)]
pub struct Faults {
    count: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Faults {
    pub fn add(&self, what: impl FnOnce() -> String) {
        if count(&self.count) == 1 {
            let text = what();
            eprintln!("guest: {text}");
            *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
    }
}

impl Disk {
    /// The workload's end, which is always an error: it runs for ever.
    pub fn end(&self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.faults.add(|| format!("disk: {error}"));
        }
    }
}

impl State {
    /// The guest's report as JSON.
    pub fn report(&self) -> String {
        let (memory_error, disk_error) = (first(&self.memory.faults), first(&self.disk.faults));
        let report = Report {
            guest: "linux",
            uptime_us: heartbeat::monotonic_us(),
            beats: self.beats.load(Relaxed),
            max_gap_us: self.max_gap_us.load(Relaxed),
            vcpus: vcpus(),
            memory: MemoryReport {
                working_set_bytes: self.memory.working_set_bytes.load(Relaxed),
                passes: self.memory.passes.load(Relaxed),
                pages_checked: self.memory.pages_checked.load(Relaxed),
                errors: self.memory.faults.count.load(Relaxed),
                first_error: memory_error.as_deref(),
            },
            disk: DiskReport {
                acked: self.disk.acked.load(Relaxed),
                read_back: self.disk.read_back.load(Relaxed),
                errors: self.disk.faults.count.load(Relaxed),
                first_error: disk_error.as_deref(),
            },
            ticks: &[],
            ipis: &[],
            clock_steps_back: self.clock_steps_back.load(Relaxed),
            disruptions: None,
        };
        report.to_string()
    }
}

/// How many vCPUs are online.
pub(super) fn vcpus() -> u64 {
    thread::available_parallelism().map_or(1, NonZero::get) as u64
}

fn first(faults: &Faults) -> Option<String> {
    faults.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
