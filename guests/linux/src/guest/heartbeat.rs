//! The guest's own sense of time: how long it did not run, by its own clock.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{State, count};

const BEAT: Duration = Duration::from_millis(1);

/// Beats for ever.
pub(super) fn run(state: &State) {
    let mut last = monotonic_us();
    loop {
        thread::sleep(BEAT);
        let now = monotonic_us();
        state.max_gap_us.fetch_max(now - last, Relaxed);
        count(&state.beats);
        last = now;
    }
}

/// Microseconds since the guest's boot, by `CLOCK_MONOTONIC`.
pub(super) fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_micros() as u64)
}
