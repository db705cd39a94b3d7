//! When each step of a migration happened, and the report made of it.

use std::time::Duration;

use godwit_types::migration::Blackout;

/// The source's clock at each step, since the migration began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The guest was asked to stop.
    pub stop: Duration,
    /// All vCPUs stood, device I/O was drained.
    pub paused: Duration,
    /// The destination had acknowledged the last pages.
    pub settled: Duration,
    /// PREPARED arrived.
    pub prepared: Duration,
    /// The commit was granted.
    pub granted: Duration,
    /// COMMITTED was sent.
    pub committed: Duration,
    /// RESUMED arrived.
    pub resumed: Duration,
}

impl Timeline {
    /// When the first vCPU ran, by the source's clock, if the destination took `took` from COMMITTED to that moment.
    ///
    /// What is left of the time between COMMITTED and RESUMED is the flight of both messages, half of it each way.
    pub fn running(&self, took: Duration) -> Duration {
        let both = self.resumed.saturating_sub(self.committed);
        let took = took.min(both);
        self.committed + took + (both - took) / 2
    }

    /// The blackout in its parts, which add up to the total, if the first vCPU ran at `running`.
    pub fn blackout(&self, running: Duration) -> Blackout {
        let marks = [self.stop, self.paused, self.settled, self.prepared, self.granted, running];
        let parts: Vec<f64> = marks.windows(2).map(|pair| ms(pair[1].saturating_sub(pair[0]))).collect();
        Blackout {
            total_ms: parts.iter().sum(),
            stop_ms: parts[0],
            last_pages_ms: parts[1],
            state_ms: parts[2],
            commit_ms: parts[3],
            resume_ms: parts[4],
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

    #[test]
    fn the_parts_add_up_and_the_flight_home_of_resumed_is_not_blackout() {
        let at = Duration::from_millis;
        let timeline = Timeline {
            stop: at(100),
            paused: at(101),
            settled: at(110),
            prepared: at(114),
            granted: at(117),
            committed: at(118),
            resumed: at(130),
        };
        let blackout = timeline.blackout(timeline.running(at(6)));
        assert_eq!(timeline.running(at(6)), at(127));
        let parts = [
            blackout.stop_ms,
            blackout.last_pages_ms,
            blackout.state_ms,
            blackout.commit_ms,
            blackout.resume_ms,
        ];
        assert!((parts.iter().sum::<f64>() - 27.0).abs() < 1e-9 && (blackout.total_ms - 27.0).abs() < 1e-9);
        assert_eq!(parts.map(f64::round), [1.0, 9.0, 4.0, 3.0, 10.0]);
    }

    #[test]
    fn a_destination_that_claims_more_time_than_passed_does_not_break_the_sum() {
        let at = Duration::from_millis;
        let timeline = Timeline { committed: at(5), resumed: at(9), ..Timeline::default() };
        assert_eq!(timeline.running(Duration::from_secs(3600)), at(9));
    }
}
