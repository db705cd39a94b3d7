//! How much time there is, and how a temperature falls meanwhile.

use std::fs;
use std::time::{Duration, Instant};

/// How time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    Wall,
    /// The processor time of each thread: what passes on a machine that does nothing else.
    Processor,
}

/// So much time by a clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) clock: Clock,
    pub(super) time: Duration,
}

impl Limit {
    pub(super) fn part(self, part: f64) -> Self {
        Self { time: self.time.mul_f64(part), ..self }
    }
}

/// From a temperature down to another one, evenly by the clock: so many times lower in each part of the time.
#[derive(Debug)]
pub(super) struct Cooling {
    limit: Limit,
    began: Instant,
    ran: Duration,
    temperature: f64,
    progress: f64,
}

impl Cooling {
    pub(super) fn new(from: f64, limit: Limit) -> Self {
        Self { limit, began: Instant::now(), ran: processor_time(), temperature: from, progress: 0.0 }
    }

    /// The progress, from 0 to 1, and the temperature now, on the way to one that may be another each time; none at the end.
    pub(super) fn advance(&mut self, hottest: f64, coldest: f64) -> Option<(f64, f64)> {
        let passed = match self.limit.clock {
            Clock::Wall => self.began.elapsed(),
            Clock::Processor => processor_time() - self.ran,
        };
        let progress = passed.as_secs_f64() / self.limit.time.as_secs_f64();
        if progress >= 1.0 {
            return None;
        }
        self.temperature = self.temperature.min(hottest);
        let end = coldest.min(self.temperature);
        let part = (progress - self.progress) / (1.0 - self.progress);
        self.temperature *= (end / self.temperature).powf(part);
        self.progress = progress;
        Some((progress, self.temperature))
    }
}

/// What this thread has been running for; the kernel counts it in nanoseconds.
fn processor_time() -> Duration {
    let counted = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ran = counted.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
    // Kernels have counted it for every thread since 2.6.
    Duration::from_nanos(ran.expect("/proc/thread-self/schedstat"))
}
