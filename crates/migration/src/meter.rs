//! How fast acknowledged bytes arrive, measured over busy time only.

use std::time::Duration;

/// Shortest busy time that makes a sample.
const SAMPLE_MIN: Duration = Duration::from_millis(50);
/// Fewest bytes that make a sample: fewer say more about latency than about the rate.
const SAMPLE_BYTES_MIN: u64 = 256 << 10;
/// Weight of the newest sample in the moving average.
const NEWEST_WEIGHT: f64 = 0.4;

/// A rate meter, fed with cumulative counts.
#[derive(Debug, Clone, Default)]
pub struct RateMeter {
    average: Option<f64>,
    /// When the current sample began, and the count then. None while nothing is on its way.
    began: Option<(Duration, u64)>,
}

impl RateMeter {
    /// Tells the meter that `settled` bytes had arrived at `now`, and whether more are on their way.
    pub fn observe(&mut self, now: Duration, settled: u64, busy: bool) {
        let Some((began, before)) = self.began else {
            self.began = busy.then_some((now, settled));
            return;
        };
        let (time, bytes) = (now.saturating_sub(began), settled.saturating_sub(before));
        let complete = (time >= SAMPLE_MIN || !busy) && bytes >= SAMPLE_BYTES_MIN;
        if complete && !time.is_zero() {
            let sample = bytes as f64 / time.as_secs_f64();
            self.average = Some(match self.average {
                Some(average) => average + NEWEST_WEIGHT * (sample - average),
                None => sample,
            });
            self.began = Some((now, settled));
        }
        if !busy {
            self.began = None;
        }
    }

    /// Bytes per second; none before the first sample.
    pub fn rate(&self) -> Option<f64> {
        self.average
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn idle_time_between_rounds_does_not_slow_the_measured_rate() {
        let mut meter = RateMeter::default();
        let mut settled = 0;
        for round in 0..4 {
            let start = round * 10_000;
            meter.observe(ms(start), settled, true);
            for step in 1..=10 {
                settled += 1_000_000;
                meter.observe(ms(start + step * 10), settled, step < 10);
            }
        }
        let rate = meter.rate().unwrap();
        assert!((rate - 1e8).abs() < 1e6, "{rate}");
    }

    #[test]
    fn a_few_bytes_are_no_measurement() {
        let mut meter = RateMeter::default();
        meter.observe(ms(0), 0, true);
        meter.observe(ms(200), 1000, false);
        assert_eq!(meter.rate(), None);
    }
}
