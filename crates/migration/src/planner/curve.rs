//! How many distinct pages the guest writes within a time: what one round of pre-copy leaves to the next.
//!
//! ```text
//!  pages |                    . . . . .   at most: as a logarithm
//!        |               . .  _______
//!        |          __----------------   expected: as its rise has fallen off so far
//!        |      _---    |. . . . . . .   at least: no more
//!        |   _/         | end of the sample
//!        +--------------------------------- time
//! ```
//!
//! A guest that writes at random into a part of its memory comes to an end exponentially; one that goes through its
//! memory page by page rises straight on, in all cases but the good one.

use std::time::Duration;

use godwit_types::forecast::{Reading, Survey};

use super::{Case, Unforeseeable};

/// Intervals between readings that are shorter say more about the scheduler than about the guest, in milliseconds.
const STEADY_MS_MIN: f64 = 50.0;
/// How far the guest's writing is thought to vary at least, and at most.
const SWAY_MIN: f64 = 1.1;
const SWAY_MAX: f64 = 2.0;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    /// Milliseconds and pages, from the origin on.
    points: Vec<(f64, f64)>,
    /// Pages for each millisecond between the last two points.
    slope: f64,
    /// By what part that rise falls with each millisecond.
    decay: f64,
    case: Case,
    /// How much more, or less, than in the sample.
    sway: f64,
    pages_max: f64,
}

impl Curve {
    pub(super) fn new(survey: &Survey, case: Case) -> Result<Self, Unforeseeable> {
        let seen = survey.readings.iter().map(|reading| (reading.at_ms, reading.distinct_pages as f64));
        let mut points = vec![(0.0, 0.0)];
        points.extend(seen);
        if points.len() < 2 || !points.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(Unforeseeable::NothingSeen);
        }
        let (slope, decay) = rise(&points);
        let pages_max = survey.memory.pages() as f64;
        let mut curve = Self { points, slope, decay, case, sway: 1.0, pages_max };
        let sway = curve.sway(&survey.readings);
        curve.sway = case.of([1.0 / sway, 1.0, sway]);
        Ok(curve)
    }

    /// Distinct pages written within a time.
    pub(super) fn pages(&self, within: Duration) -> u64 {
        let pages = self.at(within.as_secs_f64() * 1e3) * self.sway;
        pages.clamp(0.0, self.pages_max).round() as u64
    }

    /// How long the guest was watched, in milliseconds.
    pub(super) fn watched_ms(&self) -> f64 {
        self.end().0
    }

    /// Distinct pages that it wrote in that time.
    pub(super) fn seen_pages(&self) -> u64 {
        self.end().1 as u64
    }

    /// Pages that it wrote for the first time at the end, per second.
    pub(super) fn fresh_pages_per_s(&self) -> f64 {
        self.slope * 1e3
    }

    fn end(&self) -> (f64, f64) {
        self.points.last().copied().unwrap_or_default()
    }

    fn at(&self, ms: f64) -> f64 {
        let (end_ms, seen) = self.end();
        if ms >= end_ms {
            return seen + self.beyond(ms, end_ms);
        }
        let after = self.points.partition_point(|(at, _)| *at <= ms);
        let ((from_ms, before), (to_ms, then)) = (self.points[after - 1], self.points[after]);
        before + (then - before) * (ms - from_ms) / (to_ms - from_ms)
    }

    /// What is written for the first time from the end of the sample on.
    fn beyond(&self, ms: f64, end_ms: f64) -> f64 {
        if self.slope == 0.0 || self.case == Case::Good {
            return 0.0;
        }
        let (before_ms, _) = self.points[self.points.len() - 2];
        // The slope is that of the middle between the last two points.
        let slope = self.slope * (-self.decay * (end_ms - before_ms) / 2.0).exp();
        let expected = match self.decay {
            0.0 => slope * (ms - end_ms),
            decay => slope / decay * -(-decay * (ms - end_ms)).exp_m1(),
        };
        match self.case {
            Case::Bad => expected.max(self.slope * end_ms * (ms / end_ms).ln()),
            _ => expected,
        }
    }

    /// How unlike each other equally long times are: each interval is a sample of its own, which the curve should
    /// tell.
    fn sway(&self, readings: &[Reading]) -> f64 {
        let off = readings.windows(2).filter_map(|pair| {
            let length_ms = pair[1].at_ms - pair[0].at_ms;
            let (told, seen) = (self.at(length_ms), pair[1].written_pages as f64);
            (length_ms >= STEADY_MS_MIN && told > 0.0 && seen > 0.0).then(|| (seen / told).max(told / seen))
        });
        off.fold(SWAY_MIN, f64::max).min(SWAY_MAX)
    }
}

/// The slope between the last two points, and by what part it has fallen with each millisecond since the two before.
fn rise(points: &[(f64, f64)]) -> (f64, f64) {
    let slopes = points.windows(2).map(|pair| {
        let ((from_ms, before), (to_ms, after)) = (pair[0], pair[1]);
        (f64::midpoint(from_ms, to_ms), (after - before) / (to_ms - from_ms))
    });
    match slopes.collect::<Vec<_>>()[..] {
        [.., (earlier_ms, earlier), (ms, slope)] if slope > 0.0 => {
            (slope, ((earlier / slope).ln() / (ms - earlier_ms)).max(0.0))
        }
        [.., (_, slope)] => (slope.max(0.0), 0.0),
        [] => (0.0, 0.0),
    }
}
