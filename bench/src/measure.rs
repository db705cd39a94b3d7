//! What a guest noticed of a migration, from its pulses alone: the same for every engine.
//!
//! ```text
//!   pulses    |    |    |    |    |         |    |    |    |    |    |    |
//!                  ^settled  ^request        (blackout)    ^ended         ^a second later
//!                  [-rate--->[-------------- disturbed ------------------>]
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use godwit_guest_contract::pulse::Pulse;

use crate::case::Load;

/// Of the undisturbed work: from here on a guest is as fast as before.
const FULL_SPEED: f64 = 0.9;

/// A pulse and when it arrived, by the clock of the listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) at: Duration,
    pub(crate) pulse: Pulse,
}

/// The guest when it is left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Undisturbed {
    /// Work done in a microsecond of the guest's clock.
    pub(crate) work_per_us: f64,
    /// Largest gap between two heartbeats, in ms: what this machine does to a guest anyway.
    pub(crate) gap_ms: f64,
}

/// The guest while it is moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Disturbed {
    /// Largest gap between two heartbeats, by the guest's own clock.
    pub(crate) blackout_ms: f64,
    /// Work that was not done, as the time that it takes undisturbed. Below zero if more was done than before.
    pub(crate) lost_ms: f64,
    /// From the first pulse after the blackout until nine tenths of the undisturbed work are done between two pulses, by the guest's
    /// own clock, as finely as it pulses; none if that is not so in all of the time.
    pub(crate) full_speed_ms: Option<f64>,
    /// How much less time has passed for the guest than for the listener: where its clock stands still in the blackout,
    /// the gap that it sees is that much too small.
    pub(crate) clock_lost_ms: f64,
}

/// The guest between two points in time before the migration. `None`: too few pulses.
pub(crate) fn undisturbed(heard: &[Heard], load: Load, from: Duration, to: Duration) -> Option<Undisturbed> {
    let (first, last) = window(heard, from, to)?;
    let us = last.pulse.now_us.checked_sub(first.pulse.now_us).filter(|us| *us > 0)?;
    let work_per_us = (work(&last.pulse, load) - work(&first.pulse, load)) as f64 / us as f64;
    Some(Undisturbed { work_per_us, gap_ms: largest_gap(heard, first, last)?.1 })
}

/// The guest from the request to some time after its end. `None`: too much was not heard.
pub(crate) fn disturbed(
    heard: &[Heard],
    load: Load,
    undisturbed: &Undisturbed,
    from: Duration,
    to: Duration,
) -> Option<Disturbed> {
    let (first, last) = window(heard, from, to)?;
    let us = last.pulse.now_us.checked_sub(first.pulse.now_us)? as f64;
    let done = (work(&last.pulse, load) - work(&first.pulse, load)) as f64;
    let lost_us = if undisturbed.work_per_us > 0.0 { us - done / undisturbed.work_per_us } else { 0.0 };
    let clock_lost_ms = last.at.saturating_sub(first.at).as_secs_f64() * 1e3 - us / 1e3;
    let (number, blackout_ms) = largest_gap(heard, first, last)?;
    Some(Disturbed {
        blackout_ms,
        full_speed_ms: full_speed_ms(heard, load, undisturbed, number..last.pulse.number + 1),
        lost_ms: lost_us / 1e3,
        clock_lost_ms,
    })
}

/// The last pulse heard up to `from`, and the first heard at `to` or later.
fn window(heard: &[Heard], from: Duration, to: Duration) -> Option<(&Heard, &Heard)> {
    let first = heard.iter().rev().find(|heard| heard.at <= from)?;
    let last = heard.iter().find(|heard| heard.at >= to)?;
    Some((first, last))
}

/// An idle guest's work is to be there every millisecond.
fn work(pulse: &Pulse, load: Load) -> i64 {
    (if load == Load::Idle { pulse.beats } else { pulse.written }).cast_signed()
}

/// The pulse before which the largest gap was, and its length in ms, over all after `first` up to `last`; `None` if nobody has
/// heard of one of their gaps.
fn largest_gap(heard: &[Heard], first: &Heard, last: &Heard) -> Option<(u64, f64)> {
    let mut gaps_us = BTreeMap::new();
    for Pulse { number, gaps_us: named, .. } in heard.iter().map(|heard| heard.pulse) {
        gaps_us.extend((0..).zip(named).filter_map(|(before, gap)| Some((number.checked_sub(before)?, gap))));
    }
    let mut largest = (last.pulse.number, 0);
    for number in first.pulse.number + 1..=last.pulse.number {
        let gap = *gaps_us.get(&number)?;
        if gap > largest.1 {
            largest = (number, gap);
        }
    }
    Some((largest.0, largest.1 as f64 / 1e3))
}

fn full_speed_ms(heard: &[Heard], load: Load, undisturbed: &Undisturbed, numbers: Range<u64>) -> Option<f64> {
    let after: Vec<&Pulse> =
        heard.iter().map(|heard| &heard.pulse).filter(|pulse| numbers.contains(&pulse.number)).collect();
    let fast = |pair: &&[&Pulse]| {
        let us = pair[1].now_us.saturating_sub(pair[0].now_us) as f64;
        (work(pair[1], load) - work(pair[0], load)) as f64 >= FULL_SPEED * undisturbed.work_per_us * us
    };
    let first = after.windows(2).find(fast)?[0];
    Some(first.now_us.saturating_sub(after.first()?.now_us) as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Ten pulses a second by a guest that does `per_ms` pages a ms, but for 200 ms in its third second.
    fn moved(per_ms: u64) -> Vec<Heard> {
        let mut gaps = [0; 3];
        let mut heard = Vec::new();
        for number in 0..60 {
            let blackout = if number >= 31 { 200 } else { 0 };
            gaps.rotate_right(1);
            gaps[0] = if number == 31 { 201_000 } else { 1_000 };
            let now_ms = number * 100 + blackout;
            let (beats, written) = (number * 100, number * 100 * per_ms);
            let pulse =
                Pulse { number, now_us: now_ms * 1000, beats, written, sweeps: 0, errors: 0, gaps_us: gaps };
            heard.push(Heard { at: Duration::from_millis(now_ms) + 4 * MS, pulse });
        }
        heard
    }

    fn noticed(heard: &[Heard], load: Load) -> Option<Disturbed> {
        let before = undisturbed(heard, load, 1000 * MS, 2500 * MS)?;
        assert_eq!(before.gap_ms, 1.0);
        disturbed(heard, load, &before, 2500 * MS, 5000 * MS)
    }

    #[test]
    fn the_blackout_is_the_gap_and_the_work_lost_in_it() {
        for load in [Load::Idle, Load::Hot, Load::Rewrite] {
            let noticed = noticed(&moved(7), load).unwrap();
            assert_eq!(noticed.blackout_ms, 201.0);
            assert!((noticed.lost_ms - 200.0).abs() < 0.01, "{noticed:?}");
            assert!(noticed.clock_lost_ms.abs() < 0.01, "{noticed:?}");
        }
    }

    #[test]
    fn full_speed_is_reached_when_nine_tenths_of_the_work_are_done_again() {
        assert_eq!(noticed(&moved(10), Load::Hot).unwrap().full_speed_ms, Some(0.0));
        let mut heard = moved(10);
        // After the blackout, three pulses with half of the work.
        for (index, heard) in heard.iter_mut().enumerate().skip(31) {
            heard.pulse.written -= 500 * (index as u64 - 31).min(3);
        }
        assert_eq!(noticed(&heard, Load::Hot).unwrap().full_speed_ms, Some(300.0));
    }

    #[test]
    fn two_torn_pulses_hide_nothing_and_more_are_not_guessed() {
        let without = |numbers: &[u64]| {
            let mut heard = moved(1);
            heard.retain(|heard| !numbers.contains(&heard.pulse.number));
            noticed(&heard, Load::Hot)
        };
        assert_eq!(without(&[31, 32]).unwrap().blackout_ms, 201.0);
        assert_eq!(without(&[31, 32, 33]), None);
    }

    #[test]
    fn a_clock_that_stood_still_is_told() {
        let mut heard = moved(1);
        for heard in &mut heard[31..] {
            heard.pulse.now_us -= 200_000;
        }
        assert!((noticed(&heard, Load::Hot).unwrap().clock_lost_ms - 200.0).abs() < 0.01);
    }

    #[test]
    fn silence_is_no_measurement() {
        assert_eq!(noticed(&moved(1)[..40], Load::Hot), None);
        assert_eq!(undisturbed(&[], Load::Hot, MS, 2 * MS), None);
    }
}
