//! What a long-running process holds: descriptors, threads, memory.

use std::fs;
use std::path::Path;

use godwit_lab::{LabError, Result};
use nix::unistd::Pid;

/// Of one process, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    pub descriptors: usize,
    pub threads: usize,
    pub resident_kib: u64,
}

impl Footprint {
    /// Reads it from `/proc`.
    pub fn of(pid: Pid) -> Result<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        let count = |what: &str| -> Result<usize> {
            let dir = proc.join(what);
            Ok(fs::read_dir(&dir).map_err(LabError::io(format!("read {}", dir.display())))?.count())
        };
        let status = proc.join("status");
        let text = fs::read_to_string(&status).map_err(LabError::io(format!("read {}", status.display())))?;
        let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let resident_kib = resident.and_then(|number| number.parse().ok()).unwrap_or_default();
        Ok(Self { descriptors: count("fd")?, threads: count("task")?, resident_kib })
    }

    /// Fails if this is more than it was before, beyond what caches and pools may come to hold.
    pub fn assert_no_leak(&self, before: &Self, who: &str) -> Result<()> {
        let more = |now: usize, then: usize, slack: usize| now > then + slack;
        if more(self.descriptors, before.descriptors, SLACK_DESCRIPTORS)
            || more(self.threads, before.threads, SLACK_THREADS)
            || self.resident_kib > before.resident_kib + SLACK_KIB
        {
            return Err(LabError::Broken(format!("the {who} leaks: {before:?}, then {self:?}")));
        }
        Ok(())
    }
}

/// Connections that are kept open for the next request, on both ends.
const SLACK_DESCRIPTORS: usize = 8;
/// Workers of the thread pool for what blocks, which end by themselves when they idle.
const SLACK_THREADS: usize = 8;
/// What allocators keep.
const SLACK_KIB: u64 = 16 << 10;
