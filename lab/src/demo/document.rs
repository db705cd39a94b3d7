//! The demo's result, as it is printed with `--json`.

use godwit_types::HostName;
use godwit_types::migration::{Blackout, BytesByKind, MigrationReport};
use serde::Serialize;

use super::{Choice, DemoOptions};
use crate::cluster::{GuestOptions, Setting};
use crate::guest::Guest;
use crate::load::Noticed;

/// What the demo showed.
#[derive(Debug, Clone, Serialize)]
pub struct DemoReport {
    pub setting: Setting,
    /// Why this setting.
    pub why: String,
    pub guest: Guest,
    pub vcpus: u8,
    pub memory_bytes: u64,
    pub working_set_bytes: u64,
    pub moves: Vec<Move>,
}

/// One migration: what the engine reports, and what was seen from outside.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    pub from: HostName,
    pub to: HostName,
    pub total_ms: f64,
    pub blackout_ms: f64,
    pub predicted_blackout_ms: f64,
    pub blackout: Blackout,
    /// The longest time without an echo from the guest, as the client saw it.
    pub network_silence_ms: f64,
    /// The longest gap between two heartbeats by the guest's own clock.
    pub guest_gap_ms: f64,
    pub rounds: u32,
    pub bytes_sent: u64,
    pub zero_pages: u64,
    pub bytes: BytesByKind,
    pub goodput_bytes_per_s: u64,
    pub requests_answered: u64,
    pub requests_failed: u64,
    /// Acknowledged records that were looked for on the disk.
    pub writes_checked: u64,
    pub writes_lost: u64,
    /// Records that the guest itself read back wrong.
    pub disk_errors: u64,
    pub memory_errors: u64,
}

impl DemoReport {
    pub(super) fn new(choice: Choice, options: &DemoOptions, guest: &GuestOptions, moves: Vec<Move>) -> Self {
        Self {
            setting: choice.setting,
            why: choice.why,
            guest: options.guest,
            vcpus: guest.vcpus,
            memory_bytes: guest.memory.0,
            working_set_bytes: guest.working_set.0,
            moves,
        }
    }

    /// Whether nobody noticed anything.
    pub fn is_clean(&self) -> bool {
        self.moves.iter().all(|one| one.failures() == 0)
    }
}

impl Move {
    pub(super) fn new(from: &HostName, to: &HostName, report: MigrationReport, noticed: &Noticed) -> Self {
        Self {
            from: from.clone(),
            to: to.clone(),
            total_ms: rounded(report.total_ms),
            blackout_ms: rounded(report.blackout.total_ms),
            predicted_blackout_ms: rounded(report.predicted_blackout_ms),
            network_silence_ms: rounded(noticed.network_silence.as_secs_f64() * 1e3),
            guest_gap_ms: rounded(noticed.guest_gap.as_secs_f64() * 1e3),
            rounds: report.rounds,
            bytes_sent: report.bytes.sent,
            zero_pages: report.bytes.zero_pages,
            goodput_bytes_per_s: report.goodput_bytes_per_s,
            requests_answered: noticed.requests_answered,
            requests_failed: noticed.requests_failed,
            writes_checked: noticed.writes.expected,
            writes_lost: noticed.writes.lost,
            disk_errors: noticed.disk_errors,
            memory_errors: noticed.memory_errors,
            blackout: rounded_parts(&report.blackout),
            bytes: report.bytes,
        }
    }

    /// Everything that must be zero.
    pub fn failures(&self) -> u64 {
        self.requests_failed + self.writes_lost + self.disk_errors + self.memory_errors
    }
}

fn rounded_parts(blackout: &Blackout) -> Blackout {
    Blackout {
        total_ms: rounded(blackout.total_ms),
        stop_ms: rounded(blackout.stop_ms),
        drain_ms: rounded(blackout.drain_ms),
        last_pages_ms: rounded(blackout.last_pages_ms),
        state_ms: rounded(blackout.state_ms),
        commit_ms: rounded(blackout.commit_ms),
        claim_ms: rounded(blackout.claim_ms),
        locks_ms: rounded(blackout.locks_ms),
        resume_ms: rounded(blackout.resume_ms),
        first_packet_ms: blackout.first_packet_ms.map(rounded),
    }
}

/// Microseconds are as fine as these clocks are worth.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
