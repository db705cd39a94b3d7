//! What a migration would cost, before it begins.
//!
//! ```text
//!   Survey (what the guest writes) --> curve.rs --+
//!   Link (what moves before this took) -----------+--> imagined.rs: the source's engine itself, on an imagined network
//!   Budget ---------------------------------------+       |  three times: at the good end, as expected, at the bad end
//!                                                         v
//!                                                     Forecast: outlook, ranges, reason, remedies
//! ```
//!
//! Nothing here decides when a guest is stopped: the engine and its policy do, as they will when it is real. So the
//! forecast cannot drift from them.

mod advice;
mod curve;
mod imagined;

use std::time::Duration;

use godwit_types::forecast::{Basis, Estimate, Forecast, Link, Outlook, Survey};
use godwit_types::migration::{Budget, OnDeadline};
use godwit_types::{Bytes, PAGE_SIZE_BYTES};

use curve::Curve;
pub use imagined::observed_bytes_per_s;
use imagined::{Imagined, World};

/// A migration that takes longer is not worth planning.
const TOTAL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// What the guest loses by its first write to a page in a round: the fault by which the dirty log sees it. From a
/// processor that does it to a host that is virtual itself.
const WRITE_FAULT: [Duration; 3] =
    [Duration::from_micros(1), Duration::from_micros(3), Duration::from_micros(8)];
/// CPU time that sending a byte takes, encryption included.
const SEND_S_PER_BYTE: f64 = 0.3e-9;
/// Of that, what the guest loses if there is no idle core for it.
const SEND_LOST: [f64; 3] = [0.0, 0.5, 1.0];

/// Everything that a forecast is made from.
#[derive(Debug, Clone)]
pub struct Circumstances<'a> {
    pub survey: &'a Survey,
    /// What the disks hold that move along. How the guest writes them is not surveyed.
    pub disks: Bytes,
    pub link: &'a Link,
    /// Cores of the source that no vCPU keeps busy if all of them run; below 0 if there are more vCPUs than cores.
    pub spare_cores: i64,
    pub budget: &'a Budget,
}

/// Why there can be no forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unforeseeable {
    #[error("the guest was not watched long enough to say how it writes")]
    NothingSeen,
    /// One round of all memory alone would.
    #[error("the migration would take more than {} days", TOTAL_MAX.as_secs() / 86_400)]
    TooLong,
    #[error("the engine gave the migration up although nothing had failed")]
    GivenUp,
}

/// One end of all ranges, or their middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Good,
    Expected,
    Bad,
}

impl Case {
    const ALL: [Self; 3] = [Self::Good, Self::Expected, Self::Bad];

    /// The value for this case of three that are ordered from good to bad.
    fn of<T: Copy>(self, values: [T; 3]) -> T {
        values[self as usize]
    }
}

/// Forecasts a migration.
pub fn forecast(circumstances: &Circumstances<'_>) -> Result<Forecast, Unforeseeable> {
    let Circumstances { survey, link, budget, .. } = circumstances;
    let [good, expected, bad] = Case::ALL.map(|case| circumstances.imagine(case, budget));
    let runs = [good?, expected?, bad?];
    let outlook = match runs.map(|run| run.meets(budget)) {
        [_, true, _] if runs[2].keeps(budget) => Outlook::Met,
        [_, true, _] => Outlook::Likely,
        [true, false, _] => Outlook::Unlikely,
        [false, false, _] => Outlook::Missed,
    };
    let range = |value: &dyn Fn(Case, &Imagined) -> f64| {
        Estimate::around(Case::ALL.map(|case| value(case, &runs[case as usize])))
    };
    let curve = Curve::new(survey, Case::Expected)?;
    Ok(Forecast {
        outlook,
        total_ms: range(&|_, run| ms(run.total)),
        blackout_ms: range(&|_, run| ms(run.blackout)),
        rounds: range(&|_, run| f64::from(run.rounds)),
        sent_bytes: range(&|case, run| circumstances.sent_bytes(case, run)),
        lost_ms: range(&|case, run| circumstances.lost_ms(case, run)),
        slowdown_percent: range(&|_, run| run.slowdown_percent),
        reason: advice::reason(circumstances, &runs, outlook),
        remedies: if outlook.is_expected() { Vec::new() } else { advice::remedies(circumstances, &runs[1]) },
        basis: Basis {
            memory: survey.memory,
            zero: Bytes((survey.memory.0 as f64 * zero_part(survey)) as u64),
            sample_ms: curve.watched_ms(),
            written: Bytes(curve.seen_pages() * PAGE_SIZE_BYTES),
            fresh_bytes_per_s: curve.fresh_pages_per_s() * PAGE_SIZE_BYTES as f64,
            link: (*link).clone(),
        },
    })
}

impl Circumstances<'_> {
    /// Goes through the migration with another budget in one case.
    fn imagine(&self, case: Case, budget: &Budget) -> Result<Imagined, Unforeseeable> {
        let rate = |estimate: Estimate| case.of([estimate.high, estimate.expected, estimate.low]);
        let time = |estimate: Estimate| case.of([estimate.low, estimate.expected, estimate.high]);
        let cap = budget.bandwidth_bytes_per_s_max.map_or(f64::INFINITY, |cap| cap as f64);
        let took = self.survey.readings.iter().map(|reading| reading.took_ms).fold(0.0, f64::max);
        let (ram, disks) = (self.survey.memory.pages(), self.disks.pages());
        let raw = raw_part(self.survey, case) * ram as f64 + disks as f64;
        let world = World {
            curve: Curve::new(self.survey, case)?,
            raw_part: raw / (ram + disks).max(1) as f64,
            bytes_per_s: [self.link.bytes_per_s, self.link.later_bytes_per_s].map(rate),
            cap_bytes_per_s: cap,
            sync: from_ms(took),
            handoff: from_ms(time(self.link.handoff_ms)),
            pages: ram + disks,
            writers: writers(self.survey),
        };
        if world.first_round() > TOTAL_MAX {
            return Err(Unforeseeable::TooLong);
        }
        // What happens at the deadline is for the outlook to say; the numbers are those of a move.
        imagined::imagine(world, Budget { on_deadline: OnDeadline::Switch, ..budget.clone() })
    }

    /// What goes over the wire: in the first round not what is there from before.
    fn sent_bytes(&self, case: Case, run: &Imagined) -> f64 {
        let kept = self.link.kept_part;
        let contents = raw_part(self.survey, case) * self.survey.memory.0 as f64;
        (run.sent_bytes as f64 - contents * case.of([kept.high, kept.expected, kept.low])).max(0.0)
    }

    /// What the guest loses while it runs on, in milliseconds of vCPU time.
    fn lost_ms(&self, case: Case, run: &Imagined) -> f64 {
        let faults = ms(case.of(WRITE_FAULT)) * run.written_pages as f64;
        // The sending thread takes what the vCPUs leave over first.
        let crowded = (1 - self.spare_cores).clamp(0, 1) as f64;
        let sending = run.sent_bytes as f64 * SEND_S_PER_BYTE * 1e3;
        faults + sending * crowded * case.of(SEND_LOST) + ms(run.held)
    }
}

/// The part of all writes that is each vCPU's.
fn writers(survey: &Survey) -> Vec<f64> {
    let all: u64 = survey.vcpu_pages.iter().sum();
    // A release that does not tell them apart has a guest of one vCPU.
    if all == 0 {
        return vec![1.0];
    }
    survey.vcpu_pages.iter().map(|pages| *pages as f64 / all as f64).collect()
}

/// The part of RAM that is not zeros; the sample leaves twice its standard error open.
fn raw_part(survey: &Survey, case: Case) -> f64 {
    let raw = 1.0 - zero_part(survey);
    let error = (raw * (1.0 - raw) / survey.sampled_pages.max(1) as f64).sqrt();
    (raw + error * case.of([-2.0, 0.0, 2.0])).clamp(0.0, 1.0)
}

fn zero_part(survey: &Survey) -> f64 {
    (survey.zero_pages as f64 / survey.sampled_pages.max(1) as f64).min(1.0)
}

fn from_ms(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::ZERO)
}

fn ms(duration: Duration) -> f64 {
    crate::report::ms(duration)
}

#[cfg(test)]
#[path = "planner/tests.rs"]
mod tests;
