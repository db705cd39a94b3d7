//! Keeps all page streams of a migration together to a rate, which may change at any time.
//!
//! ```text
//!   sending adds its bytes to the debt; time takes the rate off it, down to a small credit
//!   a stream that has sent waits until there is no debt, at whatever rate holds meanwhile
//! ```

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far the streams may run ahead of their rate after a pause.
const BURST: Duration = Duration::from_millis(20);

/// A rate that threads share.
#[derive(Debug)]
pub(super) struct Pace {
    bucket: Mutex<Bucket>,
    changed: Condvar,
}

impl Pace {
    /// In bytes per second; none is no limit.
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bucket: Mutex::new(Bucket::new(bytes_per_s, Instant::now())), changed: Condvar::new() }
    }

    /// The rate now.
    pub(super) fn bytes_per_s(&self) -> Option<u64> {
        self.lock().bytes_per_s
    }

    /// Whether there was ever a limit.
    pub(super) fn was_limited(&self) -> bool {
        self.lock().was_limited
    }

    /// Changes the rate, also for those that wait.
    pub(super) fn set(&self, bytes_per_s: Option<u64>) {
        self.lock().set(bytes_per_s, Instant::now());
        self.changed.notify_all();
    }

    /// Waits after `bytes` were sent, until more may be; no longer once `stopped` holds, of which [`Self::wake`] tells.
    pub(super) fn after(&self, bytes: u64, stopped: impl Fn() -> bool) {
        let mut bucket = self.lock();
        bucket.spend(bytes, Instant::now());
        loop {
            let wait = bucket.wait(Instant::now());
            if wait.is_zero() || stopped() {
                return;
            }
            let waited = self.changed.wait_timeout(bucket, wait);
            (bucket, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has all that wait look whether they still should.
    pub(super) fn wake(&self) {
        // Whoever is about to wait has looked before this, or holds the lock until it waits.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The debt at a time.
#[derive(Debug)]
struct Bucket {
    bytes_per_s: Option<u64>,
    was_limited: bool,
    /// Bytes sent before their time; below zero for what may be sent at once.
    debt: f64,
    at: Instant,
}

impl Bucket {
    fn new(bytes_per_s: Option<u64>, now: Instant) -> Self {
        Self { bytes_per_s, was_limited: bytes_per_s.is_some(), debt: 0.0, at: now }
    }

    fn set(&mut self, bytes_per_s: Option<u64>, now: Instant) {
        self.settle(now);
        self.bytes_per_s = bytes_per_s;
        self.was_limited |= bytes_per_s.is_some();
        if bytes_per_s.is_none() {
            self.debt = 0.0;
        }
    }

    fn spend(&mut self, bytes: u64, now: Instant) {
        self.settle(now);
        if self.bytes_per_s.is_some() {
            self.debt += bytes as f64;
        }
    }

    /// How long until there is no debt.
    fn wait(&mut self, now: Instant) -> Duration {
        self.settle(now);
        match self.bytes_per_s {
            // Less than a byte is the rounding of clocks.
            Some(rate) if self.debt >= 1.0 => {
                Duration::try_from_secs_f64(self.debt / rate.max(1) as f64).unwrap_or(Duration::MAX)
            }
            _ => Duration::ZERO,
        }
    }

    fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        if let Some(rate) = self.bytes_per_s {
            let credit = rate as f64 * BURST.as_secs_f64();
            self.debt = (self.debt - passed * rate as f64).max(-credit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    /// Bytes sent in records of `record` bytes from `now` on, for `time`.
    fn sent(bucket: &mut Bucket, now: &mut Instant, time: Duration, record: u64) -> u64 {
        let (end, mut sent) = (*now + time, 0);
        while *now < end {
            bucket.spend(record, *now);
            sent += record;
            *now += bucket.wait(*now).max(Duration::from_nanos(1));
        }
        sent
    }

    fn near(found: u64, expected: u64) -> bool {
        found.abs_diff(expected) <= expected / 20
    }

    #[test]
    fn a_changed_rate_holds_from_the_moment_of_its_change_and_idle_time_is_not_saved_up() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(Some(1_000_000), now);
        let second = Duration::from_secs(1);
        let at_first = sent(&mut bucket, &mut now, second, 10_000);
        assert!(near(at_first, 1_000_000), "{at_first}");
        bucket.set(Some(4_000_000), now);
        let raised = sent(&mut bucket, &mut now, second, 10_000);
        assert!(near(raised, 4_000_000), "{raised}");
        bucket.set(Some(500_000), now);
        let lowered = sent(&mut bucket, &mut now, second, 10_000);
        assert!(near(lowered, 500_000), "{lowered}");
        now += 60 * second;
        let after_a_rest = sent(&mut bucket, &mut now, second, 10_000);
        assert!(near(after_a_rest, 500_000), "{after_a_rest}");
    }

    #[test]
    fn what_was_sent_too_early_is_owed_at_the_rate_that_holds_now() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Some(1000), now);
        bucket.spend(10_000, now);
        assert_eq!(bucket.wait(now), Duration::from_secs(10));
        bucket.set(Some(100_000), now);
        assert_eq!(bucket.wait(now), Duration::from_millis(100));
        bucket.set(None, now);
        bucket.spend(1 << 40, now);
        assert!(bucket.wait(now).is_zero());
        bucket.set(Some(1000), now);
        assert!(bucket.wait(now).is_zero(), "what went without a cap is not owed");
    }

    #[test]
    fn whoever_waits_goes_on_when_the_cap_is_lifted_or_all_is_stopped() {
        for lift in [true, false] {
            let pace = Arc::new(Pace::new(Some(1)));
            let stopped = Arc::new(AtomicBool::new(false));
            let waiter = {
                let (pace, stopped) = (Arc::clone(&pace), Arc::clone(&stopped));
                std::thread::spawn(move || pace.after(1 << 40, || stopped.load(Relaxed)))
            };
            if lift {
                pace.set(None);
            } else {
                stopped.store(true, Relaxed);
                pace.wake();
            }
            waiter.join().unwrap();
        }
    }
}
