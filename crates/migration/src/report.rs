//! When each step of a migration happened, and the report made of it.

use std::time::Duration;

use godwit_types::migration::Blackout;

use crate::wire::Resumed;

/// The source's clock at each step, since the migration began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The guest was asked to stop.
    pub stop: Duration,
    /// All vCPUs stood, device I/O was drained.
    pub paused: Duration,
    /// How long the draining took, up to `paused`.
    pub drain: Duration,
    /// The destination had acknowledged the last pages.
    pub settled: Duration,
    /// PREPARED arrived.
    pub prepared: Duration,
    /// The commit was granted.
    pub granted: Duration,
    /// COMMITTED was sent.
    pub committed: Duration,
    /// RESUMED would have arrived, had it been sent as soon as the first vCPU ran.
    resumed: Duration,
    /// The destination's own account of the time between.
    there: There,
}

/// What the destination did after COMMITTED, each part from the end of the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct There {
    /// All of it, up to the first vCPU running.
    took: Duration,
    claim: Duration,
    locks: Duration,
    /// After all of it.
    first_packet: Option<Duration>,
}

impl Timeline {
    /// RESUMED arrived.
    pub fn resumed(&mut self, now: Duration, message: Resumed) {
        self.resumed = now.saturating_sub(Duration::from_micros(message.ago_us));
        self.there = There {
            took: Duration::from_micros(message.took_us),
            claim: Duration::from_micros(message.claim_us),
            locks: Duration::from_micros(message.locks_us),
            first_packet: message.first_packet_us.map(Duration::from_micros),
        };
    }

    /// When the first vCPU ran, by the source's clock.
    ///
    /// What is left of the time between COMMITTED and RESUMED is the flight of both messages, half of it each way.
    pub fn running(&self) -> Duration {
        let both = self.resumed.saturating_sub(self.committed);
        let took = self.there.took.min(both);
        self.committed + took + (both - took) / 2
    }

    /// The blackout in its parts, which add up to the total, if the first vCPU ran at `running`.
    pub fn blackout(&self, running: Duration) -> Blackout {
        // The destination may claim to have taken any time.
        let claimed = running.saturating_sub(self.there.took).saturating_add(self.there.claim).min(running);
        let locked = claimed.saturating_add(self.there.locks).min(running);
        let stood = self.paused.saturating_sub(self.drain).max(self.stop);
        let marks = [
            self.stop,
            stood,
            self.paused,
            self.settled,
            self.prepared,
            self.granted,
            claimed.max(self.granted),
            locked.max(self.granted),
            running,
        ];
        let parts: Vec<f64> = marks.windows(2).map(|pair| ms(pair[1].saturating_sub(pair[0]))).collect();
        Blackout {
            total_ms: parts.iter().sum(),
            stop_ms: parts[0],
            drain_ms: parts[1],
            last_pages_ms: parts[2],
            state_ms: parts[3],
            commit_ms: parts[4],
            claim_ms: parts[5],
            locks_ms: parts[6],
            resume_ms: parts[7],
            first_packet_ms: self.there.first_packet.map(ms),
        }
    }
}

/// A duration in milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn resumed(took_ms: u64, claim_ms: u64, locks_ms: u64) -> Resumed {
        let [took_us, claim_us, locks_us] = [took_ms, claim_ms, locks_ms].map(|ms| ms * 1000);
        Resumed { took_us, claim_us, locks_us, ..Resumed::default() }
    }

    fn timeline(message: Resumed) -> Timeline {
        let mut timeline = Timeline {
            stop: at(100),
            paused: at(103),
            drain: at(2),
            settled: at(110),
            prepared: at(114),
            granted: at(117),
            committed: at(118),
            ..Timeline::default()
        };
        timeline.resumed(at(130), message);
        timeline
    }

    fn parts(blackout: &Blackout) -> [f64; 8] {
        let Blackout { total_ms: _, stop_ms, drain_ms, last_pages_ms, state_ms, commit_ms, .. } = blackout;
        let Blackout { claim_ms, locks_ms, resume_ms, .. } = blackout;
        [*stop_ms, *drain_ms, *last_pages_ms, *state_ms, *commit_ms, *claim_ms, *locks_ms, *resume_ms]
    }

    #[test]
    fn the_parts_add_up_and_the_flight_home_of_resumed_is_not_blackout() {
        let timeline = timeline(resumed(6, 3, 1));
        assert_eq!(timeline.running(), at(127));
        let blackout = timeline.blackout(timeline.running());
        let parts = parts(&blackout);
        assert!((parts.iter().sum::<f64>() - 27.0).abs() < 1e-9 && (blackout.total_ms - 27.0).abs() < 1e-9);
        assert_eq!(parts.map(f64::round), [1.0, 2.0, 7.0, 4.0, 3.0, 7.0, 1.0, 2.0]);
    }

    #[test]
    fn time_spent_on_waiting_for_the_first_packet_is_not_blackout() {
        let mut waited = timeline(resumed(6, 3, 1));
        let late = Resumed { ago_us: 40_000, first_packet_us: Some(2500), ..resumed(6, 3, 1) };
        waited.resumed(at(170), late);
        assert_eq!(waited.running(), at(127));
        let blackout = waited.blackout(waited.running());
        assert!((blackout.total_ms - 27.0).abs() < 1e-9);
        assert_eq!(blackout.first_packet_ms, Some(2.5));
    }

    #[test]
    fn a_destination_that_claims_more_time_than_passed_does_not_break_the_sum() {
        for message in [resumed(3_600_000, 9, 9), resumed(6, 3_600_000, 1), resumed(6, 1, u64::MAX / 1000)] {
            let timeline = timeline(message);
            let running = timeline.running();
            assert!(running >= at(118) && running <= at(130));
            let blackout = timeline.blackout(running);
            let sum: f64 = parts(&blackout).iter().sum();
            assert!((sum - ms(running - at(100))).abs() < 1e-6, "{blackout:?}");
        }
    }
}
