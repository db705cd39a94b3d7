//! How wrong the guest's clock is after the move.
//!
//! The destination lets the guest's clock go on by the real time that has passed since the source saved it, so that whatever the two
//! hosts' real-time clocks differ by would become an error of the guest's. That difference is estimated from heartbeats, as NTP does
//! (RFC 5905, section 8): the destination's time is taken to be of the middle between question and answer, and the quickest
//! answer is the best one. The source saves the clock as of a time by the destination's clock, as well as it is known then; clocks
//! that may be the same, as far as that can be told, are left as they are.

use std::time::Duration;

use godwit_types::migration::GuestClock;

/// What is known of both hosts' clocks.
#[derive(Debug, Clone, Default)]
pub(super) struct Clocks {
    best: Option<Skew>,
    /// What the saved state was corrected by, in nanoseconds.
    carried_ns: i64,
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

    /// The guest's clock is saved now: how far the destination's is ahead for certain, in nanoseconds.
    pub(super) fn carry(&mut self) -> i64 {
        let certain = |skew: &Skew| skew.ns.unsigned_abs() > skew.round_trip.as_nanos() / 2;
        // A clock that is centuries off counts as unknown.
        let ahead = self.best.filter(certain).and_then(|skew| i64::try_from(skew.ns).ok());
        self.carried_ns = ahead.unwrap_or(0);
        self.carried_ns
    }

    /// Nothing if either part of the error is not known.
    pub(super) fn report(&self) -> Option<GuestClock> {
        let (Skew { ns, round_trip }, error_ns) = (self.best?, self.error_ns?);
        let error_ns = ns - i128::from(self.carried_ns) + i128::from(error_ns);
        Some(GuestClock {
            error_ms: error_ns as f64 / 1e6,
            within_ms: round_trip.as_secs_f64() * 1e3 / 2.0,
            hosts_differ_ms: ns as f64 / 1e6,
        })
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
            saved_after in 0usize..9,
        ) {
            let mut clocks = Clocks { error_ns: Some(error_us * 1000), ..Clocks::default() };
            let mut now = EPOCH;
            let (mut carried_ns, mut bound_us) = (0, u64::MAX);
            for (index, (there, back)) in flights.into_iter().enumerate() {
                if index == saved_after {
                    carried_ns = clocks.carry();
                    // Off by no more than the quickest round trip, and by nothing that was not measured.
                    let off_us = (skew_us - carried_ns / 1000).unsigned_abs();
                    prop_assert!(index == 0 || off_us <= bound_us + 1, "{carried_ns} for {skew_us} us");
                }
                bound_us = bound_us.min(there + back);

                let arrives = now + Duration::from_micros(there);
                let shows = arrives.as_micros() as i64 + skew_us;
                let came = arrives + Duration::from_micros(back);
                clocks.echo(now, came, Duration::from_micros(shows as u64));
                now = came + Duration::from_millis(500);
            }
            let GuestClock { error_ms, within_ms, hosts_differ_ms } = clocks.report().unwrap();
            let truth_ms = (skew_us + error_us) as f64 / 1e3 - carried_ns as f64 / 1e6;
            prop_assert!((hosts_differ_ms - skew_us as f64 / 1e3).abs() <= within_ms + 1e-6);
            prop_assert!((error_ms - truth_ms).abs() <= within_ms + 1e-6, "{error_ms} +- {within_ms} for {truth_ms}");
        }
    }

    #[test]
    fn clocks_that_may_be_the_same_are_left_as_they_are() {
        let at = |us: i64| {
            EPOCH.saturating_add(Duration::from_micros(1_000_000)) + Duration::from_micros(us as u64)
        };
        for (ahead_us, carried_us) in [(400, 0), (700, 700)] {
            let mut clocks = Clocks::default();
            assert_eq!(clocks.carry(), 0, "nothing is known yet");
            // A millisecond there and back: the error is half of that at most.
            clocks.echo(at(0), at(1000), at(500 + ahead_us));
            assert_eq!(clocks.carry(), carried_us * 1000);
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
