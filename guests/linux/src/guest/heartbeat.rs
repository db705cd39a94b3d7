//! The guest's own sense of time: how long it did not run, by its own clock.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{State, count};

const BEAT: Duration = Duration::from_millis(1);
/// None of them may ever go back.
const CLOCKS: [ClockId; 2] = [ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_REALTIME];

/// Beats for ever.
pub(super) fn run(state: &State) {
    let mut last = CLOCKS.map(read_us);
    loop {
        thread::sleep(BEAT);
        let now = CLOCKS.map(read_us);
        state.max_gap_us.fetch_max(now[0].saturating_sub(last[0]), Relaxed);
        // Nobody sets a clock in this guest.
        let back = now.iter().zip(&last).filter(|(now, last)| now < last).count();
        state.clock_steps_back.fetch_add(back as u64, Relaxed);
        count(&state.beats);
        last = now;
    }
}

/// Microseconds since the guest's boot, by `CLOCK_MONOTONIC`.
pub(super) fn monotonic_us() -> u64 {
    read_us(ClockId::CLOCK_MONOTONIC)
}

fn read_us(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| Duration::from(time).as_micros() as u64)
}
