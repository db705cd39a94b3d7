//! The source's vCPUs where they may be slowed: one that writes as long as it runs, and one that hardly does.
//!
//! ```text
//!   shares: none --slow--> some --slow--> others --slow(none), pause--> none
//! ```
//!
//! What must hold is looked at wherever shares change and wherever the guest runs on. That the log's end would lift them, too,
//! is nothing that the engine may rely on here.

use std::time::Duration;

use godwit_migration::VcpuActivity;

use super::{Violation, World};
use crate::rules::Protocol;

/// Parts of the whole.
const WHOLE: u64 = 1000;
/// The second vCPU writes one page for so many of the first: it is a reader.
const READS: u64 = 100;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vcpus {
    /// As the engine has told last, in permille.
    shares: Vec<u16>,
    activity: [VcpuActivity; 2],
}

impl Vcpus {
    pub(crate) fn is_slowed(&self) -> bool {
        !self.shares.is_empty()
    }

    pub(crate) fn activity(&self) -> Vec<VcpuActivity> {
        self.activity.to_vec()
    }

    /// They run for a while, each but for its share of it.
    fn run(&mut self, time: Duration, pages_per_ms: u64) {
        for (index, vcpu) in self.activity.iter_mut().enumerate() {
            let share = u64::from(self.shares.get(index).copied().unwrap_or(0));
            let pages_per_ms = if index == 0 { pages_per_ms } else { pages_per_ms / READS };
            let ran = time.as_millis() as u64 * (WHOLE - share);
            vcpu.written_pages += pages_per_ms * ran / WHOLE;
            vcpu.held += time.mul_f64(share as f64 / WHOLE as f64);
        }
    }
}

impl World {
    /// The guest goes on for as long: it writes more pages than there are.
    pub(crate) fn guest_goes_on(&mut self, time: Duration) -> Result<(), Violation> {
        let writes = self.rules.writes_pages_per_ms;
        let moves =
            self.source.as_mut().filter(|it| it.runs() && it.engine.is_some() && it.outcome.is_none());
        let Some(source) = moves.filter(|_| writes > 0 && !time.is_zero()) else { return Ok(()) };
        source.vcpus.run(time, writes.into());
        (1..self.guest.pages.len()).try_for_each(|page| self.guest_writes(page))
    }

    /// The engine has vCPUs held for these parts of the time.
    pub(crate) fn slow(&mut self, shares: Vec<u16>) -> Result<(), Violation> {
        let bound = u16::from(self.rules.slowdown_percent_max) * 10;
        let Some(source) = &mut self.source else { return Ok(()) };
        if shares.iter().any(|share| *share > bound) {
            return Err(Violation::SlowedTooMuch);
        }
        if shares.get(1).is_some_and(|reader| *reader > 0) {
            return Err(Violation::ReaderSlowed);
        }
        if !shares.is_empty() && !source.runs() {
            return Err(Violation::SlowedInBlackout);
        }
        if !shares.is_empty() || self.rules.protocol != Protocol::NeverLift {
            source.vcpus.shares = shares;
        }
        Ok(())
    }

    /// Those that stand are held no more.
    pub(crate) fn source_stands(&mut self) {
        if let Some(source) = self.source.as_mut().filter(|_| self.rules.protocol != Protocol::NeverLift) {
            source.vcpus.shares.clear();
        }
    }

    /// The guest runs on at the source, after a failure or without a migration: nobody is slowed for it any more.
    pub(crate) fn require_full_speed(&self) -> Result<(), Violation> {
        match &self.source {
            Some(source) if source.runs() && source.vcpus.is_slowed() => Err(Violation::SlowedForGood),
            _ => Ok(()),
        }
    }

    /// Whether a vCPU is slowed.
    pub fn is_slowed(&self) -> bool {
        self.source.as_ref().is_some_and(|it| it.vcpus.is_slowed())
    }
}
