//! So many units of work a second.

const UNIT: u64 = 1_000_000;
/// Work that was missed is caught up for no longer than this many microseconds, lest a burst follow a blackout.
pub const BURST_US: u64 = 50_000;

/// Hands out work at a steady rate.
#[derive(Debug, Clone)]
pub struct Pacer {
    per_second: u64,
    burst_us: u64,
    last_us: u64,
    /// Millionths of a unit.
    credit: u64,
}

impl Pacer {
    /// So many units a second, from now on. Times are in microseconds of any one clock.
    pub const fn new(per_second: u64, now_us: u64) -> Self {
        Self { per_second, burst_us: BURST_US, last_us: now_us, credit: 0 }
    }

    /// Catches up for so many microseconds at most.
    pub const fn with_burst(self, burst_us: u64) -> Self {
        Self { burst_us, ..self }
    }

    /// How many units are due now, up to `most`.
    pub fn take(&mut self, now_us: u64, most: u64) -> u64 {
        let earned = now_us.saturating_sub(self.last_us).min(UNIT) * self.per_second;
        self.last_us = now_us;
        self.credit = (self.credit + earned).min(self.burst_us.saturating_mul(self.per_second).max(UNIT));
        let due = (self.credit / UNIT).min(most);
        self.credit -= due * UNIT;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_however_often_it_is_asked() {
        for (per_second, interval_us) in [(1, 7), (3, 1000), (1000, 1), (1000, 333), (25_600, 1000)] {
            let mut pacer = Pacer::new(per_second, 500);
            let seconds = 10;
            let asked = (1..=seconds * UNIT / interval_us).map(|i| 500 + i * interval_us);
            let done: u64 = asked.map(|now_us| pacer.take(now_us, u64::MAX)).sum();
            let wanted = per_second * seconds;
            assert!(done.abs_diff(wanted) <= 1, "{done} of {wanted} at intervals of {interval_us} us");
        }
    }

    #[test]
    fn a_blackout_is_not_followed_by_a_burst() {
        let mut pacer = Pacer::new(1000, 0);
        assert_eq!(pacer.take(10 * UNIT, u64::MAX), 50);
        assert_eq!(pacer.take(10 * UNIT + 1000, u64::MAX), 1);
    }

    #[test]
    fn who_is_kept_from_its_work_catches_up_no_more_than_it_may() {
        let mut pacer = Pacer::new(1000, 0).with_burst(3_000);
        assert_eq!([pacer.take(10_000, 16), pacer.take(12_000, 16)], [3, 2]);
    }

    #[test]
    fn what_is_not_taken_now_is_left_for_later() {
        let mut pacer = Pacer::new(1000, 0);
        assert_eq!([pacer.take(20_000, 16), pacer.take(20_000, 16), pacer.take(20_000, 16)], [16, 4, 0]);
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut pacer = Pacer::new(1000, 1_000_000);
        assert_eq!(pacer.take(0, 16), 0);
        assert_eq!(pacer.take(2_000, 16), 2);
    }
}
