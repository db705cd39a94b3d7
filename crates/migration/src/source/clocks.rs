//! How wrong the guest's clock is after the move.
//!
//! The destination lets the guest's clock go on by the real time that has passed since the source saved it, so that whatever the two
//! hosts' real-time clocks differ by becomes an error of the guest's. That difference is estimated from heartbeats, as NTP does
//! (RFC 5905, section 8): the destination's time is taken to be of the middle between question and answer, and the quickest
//! answer is the best one.

use std::time::Duration;

use godwit_types::migration::GuestClock;

/// What is known of both hosts' clocks.
#[derive(Debug, Clone, Default)]
pub(super) struct Clocks {
    best: Option<Skew>,
    /// What the destination says: how far the guest's clock is ahead by both hosts' real time, in nanoseconds.
    pub(super) error_ns: Option<i64>,
}

/// How far the destination's real-time clock is ahead.
#[derive(Debug, Clone, Copy)]
struct Skew {
    ns: i128,
    round_trip: Duration,
}

impl Clocks {
    /// A heartbeat was sent and its answer came at these times of this host; in between it was `there` at the destination.
    pub(super) fn echo(&mut self, sent: Duration, came: Duration, there: Duration) {
        let round_trip = came.saturating_sub(sent);
        if self.best.is_some_and(|best| best.round_trip <= round_trip) {
            return;
        }
        let ns = there.as_nanos() as i128 - (sent + round_trip / 2).as_nanos() as i128;
        self.best = Some(Skew { ns, round_trip });
    }

    /// Nothing if either part of the error is not known.
    pub(super) fn report(&self) -> Option<GuestClock> {
        let (Skew { ns, round_trip }, error_ns) = (self.best?, self.error_ns?);
        let error_ms = (ns + i128::from(error_ns)) as f64 / 1e6;
        Some(GuestClock { error_ms, within_ms: round_trip.as_secs_f64() * 1e3 / 2.0 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Duration = Duration::from_secs(1_800_000_000);

    proptest! {
        #[test]
        fn the_true_error_lies_within_what_is_said(
            skew_us in -5_000_000i64..5_000_000,
            error_us in -1_000i64..1_000,
            flights in prop::collection::vec((0u64..50_000, 0u64..50_000), 1..9),
        ) {
            let mut clocks = Clocks { error_ns: Some(error_us * 1000), ..Clocks::default() };
            let mut now = EPOCH;
            for (there, back) in flights {
                let arrives = now + Duration::from_micros(there);
                let shows = arrives.as_micros() as i64 + skew_us;
                let came = arrives + Duration::from_micros(back);
                clocks.echo(now, came, Duration::from_micros(shows as u64));
                now = came + Duration::from_millis(500);
            }
            let GuestClock { error_ms, within_ms } = clocks.report().unwrap();
            let truth_ms = (skew_us + error_us) as f64 / 1e3;
            prop_assert!((error_ms - truth_ms).abs() <= within_ms + 1e-6, "{error_ms} +- {within_ms} for {truth_ms}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_reported() {
        let mut clocks = Clocks::default();
        clocks.echo(EPOCH, EPOCH, EPOCH);
        assert_eq!(clocks.report(), None);
        assert_eq!(Clocks { error_ns: Some(1), ..Clocks::default() }.report(), None);
    }
}
