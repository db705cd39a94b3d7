//! Why a budget is not met, and which would be: each tried before it is told.

use std::time::Duration;

use godwit_types::forecast::Outlook;
use godwit_types::migration::Budget;
use godwit_types::{Bytes, PAGE_SIZE_BYTES};

use super::curve::Curve;
use super::imagined::Imagined;
use super::{Case, Circumstances, ms};

/// The longest deadline that is proposed.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// More than expected, so that it holds although forecasts are not exact.
const MARGIN: f64 = 1.25;
/// Blackouts that are tried, each twice the one before.
const BLACKOUTS_TRIED: u32 = 4;
/// Slow-downs that are tried, in percent.
const SLOWDOWNS_TRIED: [u8; 5] = [20, 40, 60, 80, 90];

/// Why the budget is not met for sure, with the numbers of the case in which it is not.
pub(super) fn reason(
    circumstances: &Circumstances<'_>,
    runs: &[Imagined; 3],
    outlook: Outlook,
) -> Option<String> {
    let budget = circumstances.budget;
    let (run, how) = match outlook {
        Outlook::Met => return None,
        Outlook::Likely => (&runs[2], "at worst"),
        Outlook::Unlikely | Outlook::Missed => (&runs[1], "as expected"),
    };
    let handoff_ms = circumstances.link.handoff_ms.expected;
    if handoff_ms > f64::from(budget.blackout_ms_max) {
        return Some(format!(
            "handing over takes {handoff_ms:.0} ms here without any memory, against {} ms of blackout that are allowed",
            budget.blackout_ms_max
        ));
    }
    let fresh =
        Curve::new(circumstances.survey, Case::Expected).map_or(0.0, |curve| curve.fresh_pages_per_s());
    let seen = circumstances.survey.readings.last()?;
    let slowed = match budget.slowdown_percent_max {
        0 => String::new(),
        percent => format!(", although its writers may lose {percent} % of their speed"),
    };
    Some(format!(
        "the guest wrote {} in {:.0} ms, towards the end {}/s that it had not written before, the link carries {}/s: {how} \
         it is stopped after {:.1} s, for {:.0} ms{slowed}, against {:.1} s and {} ms that are allowed",
        Bytes(seen.distinct_pages * PAGE_SIZE_BYTES),
        seen.at_ms,
        Bytes((fresh * PAGE_SIZE_BYTES as f64) as u64),
        Bytes(circumstances.rate()),
        run.total.saturating_sub(run.blackout).as_secs_f64(),
        ms(run.blackout),
        Duration::from_millis(budget.deadline_ms).as_secs_f64(),
        budget.blackout_ms_max
    ))
}

/// Budgets that are expected to be met, in the words of the command line.
pub(super) fn remedies(circumstances: &Circumstances<'_>, run: &Imagined) -> Vec<String> {
    let budget = circumstances.budget;
    let mut remedies = Vec::new();
    let blackouts = (0..BLACKOUTS_TRIED).map(|doubled| round_up(ms(run.blackout) * MARGIN) << doubled);
    remedies.extend(blackouts.filter(|tried| *tried > budget.blackout_ms_max).find_map(|blackout_ms_max| {
        let told = format!("--max-blackout {blackout_ms_max}ms");
        circumstances.propose(told, Budget { blackout_ms_max, ..budget.clone() })
    }));
    let patient = Budget { deadline_ms: DEADLINE_MAX.as_millis() as u64, ..budget.clone() };
    if let Ok(run) = circumstances.imagine(Case::Expected, &patient)
        && run.meets(&patient)
    {
        let seconds = round_up(run.total.as_secs_f64() * MARGIN);
        let deadline_ms = u64::from(seconds) * 1000;
        if deadline_ms > budget.deadline_ms {
            remedies.extend(
                circumstances
                    .propose(format!("--deadline {seconds}s"), Budget { deadline_ms, ..budget.clone() }),
            );
        }
    }
    let mut slower = SLOWDOWNS_TRIED.into_iter().filter(|percent| *percent > budget.slowdown_percent_max);
    remedies.extend(slower.find_map(|slowdown_percent_max| {
        let told = format!("--max-slowdown {slowdown_percent_max}%");
        circumstances.propose(told, Budget { slowdown_percent_max, ..budget.clone() })
    }));
    if budget.bandwidth_bytes_per_s_max.is_some() {
        let uncapped = Budget { bandwidth_bytes_per_s_max: None, ..budget.clone() };
        remedies.extend(circumstances.propose("no --max-bandwidth".to_owned(), uncapped));
    }
    remedies
}

impl Circumstances<'_> {
    fn propose(&self, told: String, budget: Budget) -> Option<String> {
        let run = self.imagine(Case::Expected, &budget).ok().filter(|run| run.meets(&budget))?;
        Some(format!("{told}: blackout {:.0} ms after {:.1} s", ms(run.blackout), run.total.as_secs_f64()))
    }

    /// Bytes per second that are expected of the link, under the cap.
    fn rate(&self) -> u64 {
        let cap = self.budget.bandwidth_bytes_per_s_max.unwrap_or(u64::MAX);
        cap.min(self.link.bytes_per_s.expected as u64)
    }
}

/// The next number of at most two digits and zeros.
fn round_up(value: f64) -> u32 {
    let value = value.ceil().clamp(1.0, f64::from(u32::MAX >> BLACKOUTS_TRIED)) as u32;
    let unit = 10u32.pow(value.ilog10().saturating_sub(1));
    value.div_ceil(unit) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_are_round_and_never_less() {
        for (value, round) in
            [(0.2, 1), (9.1, 10), (43.2, 44), (101.0, 110), (1234.0, 1300), (99_001.0, 100_000)]
        {
            assert_eq!(round_up(value), round, "{value}");
        }
    }
}
