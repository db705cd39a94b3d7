//! How far two hosts' clocks are apart. The migration measures that again and takes it off, so that the guest's clock goes on by the
//! time that has passed; but the guest's CMOS clock is its host's, and hosts whose clocks are not kept right may go on to drift.

use godwit_types::check::{Check, Finding};

use super::Case;

/// Clocks that differ for certain by more are warned of, in milliseconds.
pub(super) const SKEW_WARNED_MS: u64 = 100;
/// Clocks that differ for certain by more are refused, in milliseconds: one of them is not synchronised at all. Leases and watchdogs
/// of a guest that goes by its CMOS clock often last 10 s, and half of that is left to them.
pub(super) const SKEW_REFUSED_MS: u64 = 5_000;

/// The destination's clock against the source's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Skew {
    /// How far it is ahead, in milliseconds.
    pub ms: i64,
    /// How far the measurement may be off, in milliseconds.
    pub error_ms: u64,
}

pub(super) fn findings(case: &Case<'_>) -> Option<Finding> {
    let (source, destination) = (&case.source?.name, &case.destination.name);
    let Skew { ms, error_ms } = case.answers.skew;
    // What may be the measurement's own error is held against nobody.
    let certain = ms.unsigned_abs().saturating_sub(error_ms);
    let way = if ms < 0 { "behind" } else { "ahead of" };
    let reason = format!(
        "the clock of {destination} is {} ms {way} that of {source} (measured within {error_ms} ms), so that one of them is wrong, and the guest's CMOS clock would jump by as much",
        ms.unsigned_abs()
    );
    let remedy = format!(
        "let both follow the same time by NTP or PTP: look at 'chronyc tracking', or 'timedatectl', on {source} and {destination}"
    );
    if certain > SKEW_REFUSED_MS {
        Some(Finding::blocked(Check::Clock, reason, remedy))
    } else {
        (certain > SKEW_WARNED_MS).then(|| Finding::warning(Check::Clock, reason, remedy))
    }
}
