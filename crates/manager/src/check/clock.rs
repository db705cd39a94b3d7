//! How far two hosts' clocks are apart. The guest's clocks are carried over by the hosts' real time, so they are off
//! afterwards by as much, and so is what is said about the blackout.

use godwit_types::check::{Check, Finding};

use super::Case;

/// Clocks that differ for certain by more are warned of, in milliseconds.
pub(super) const SKEW_WARNED_MS: u64 = 100;
/// Clocks that differ for certain by more are refused, in milliseconds: leases and watchdogs of a guest and of those who
/// talk to it often last 10 s, and half of that is left to them.
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
        "the clock of {destination} is {} ms {way} that of {source} (measured within {error_ms} ms), and the guest's would jump by as much",
        ms.unsigned_abs()
    );
    let remedy = format!("check the time synchronisation of {source} and {destination}");
    if certain > SKEW_REFUSED_MS {
        Some(Finding::blocked(Check::Clock, reason, remedy))
    } else {
        (certain > SKEW_WARNED_MS).then(|| Finding::warning(Check::Clock, reason, remedy))
    }
}
