//! A row of the result: one engine at one case, over all its runs.

use serde::Serialize;

use crate::case::Case;
use crate::engine::Engine;
use crate::foresight::Foresight;
use crate::run::Run;
use crate::stats::{median, p99};

/// Times in milliseconds; medians where there were several runs.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) engine: String,
    pub(crate) runs: usize,
    /// Whether every run ended within its bound. If not, the numbers are those of the runs that did; if none did, the
    /// total is the time until they were given up.
    pub(crate) converged: bool,
    pub(crate) converged_runs: usize,
    /// From the request to the end of the migration with the VM at the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_ms_p99: Option<f64>,
    /// The largest gap that the guest saw, by its own clock, from the request to a second after the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blackout_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blackout_ms_p99: Option<f64>,
    /// Guest work that was not done in that time, as the time that it takes when nothing moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) brownout_lost_ms: Option<f64>,
    /// From the end of the blackout until the guest is as fast as before, nearly: nine tenths. As finely as it pulses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_speed_ms: Option<f64>,
    /// The guest's filled memory over the total time; of the machine's own rows, what went through TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goodput_bytes_per_s: Option<f64>,
    /// What the source's host sent, all headers included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_sent: Option<f64>,
    /// What the engine itself says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reported_blackout_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reported_total_ms: Option<f64>,
    /// What it said before it began, to be held against the two above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) foretold_blackout_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) foretold_total_ms: Option<f64>,
    #[serde(skip_serializing_if = "Foresight::is_empty")]
    pub(crate) foresight: Foresight,
    /// The largest gap just before the request: what this machine does to a guest anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) undisturbed_gap_ms: Option<f64>,
    /// How much less time passed for the guest than outside. Where it is more than jitter, the blackout is that much longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest_clock_lost_ms: Option<f64>,
    /// What went wrong with runs that are not counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<String>,
}

impl Row {
    /// Sums up the runs; `errors` are those that gave no numbers.
    pub(crate) fn new(case: &Case, engine: Engine, runs: &[Run], errors: Vec<String>) -> Self {
        let converged: Vec<&Run> = runs.iter().filter(|run| run.converged).collect();
        let counted: Vec<&Run> = if converged.is_empty() { runs.iter().collect() } else { converged.clone() };
        let all =
            |value: fn(&Run) -> Option<f64>| counted.iter().filter_map(|run| value(run)).collect::<Vec<_>>();
        // A run that was given up has had no blackout.
        let blackouts: Vec<f64> = converged.iter().map(|run| run.noticed.blackout_ms).collect();
        let totals = all(|run| Some(run.total_ms));
        let several = runs.len() > 1;
        let goodputs: Vec<f64> =
            converged.iter().map(|run| case.working_set().0 as f64 * 1e3 / run.total_ms).collect();
        Self {
            case: case.name.to_owned(),
            engine: engine.name().to_owned(),
            runs: runs.len() + errors.len(),
            converged: !runs.is_empty() && converged.len() == runs.len() && errors.is_empty(),
            converged_runs: converged.len(),
            total_ms: rounded(median(&totals)),
            total_ms_p99: rounded(p99(&totals).filter(|_| several)),
            blackout_ms: rounded(median(&blackouts)),
            blackout_ms_p99: rounded(p99(&blackouts).filter(|_| several)),
            brownout_lost_ms: rounded(median(&all(|run| Some(run.noticed.lost_ms)))),
            full_speed_ms: rounded(median(&all(|run| run.noticed.full_speed_ms))),
            goodput_bytes_per_s: rounded(median(&goodputs)),
            bytes_sent: median(&all(|run| Some(run.bytes_sent as f64))),
            reported_blackout_ms: rounded(median(&all(|run| Some(run.reported?.blackout_ms)))),
            reported_total_ms: rounded(median(&all(|run| Some(run.reported?.total_ms)))),
            foretold_blackout_ms: rounded(median(&all(|run| Some(run.reported?.foretold?.blackout_ms)))),
            foretold_total_ms: rounded(median(&all(|run| Some(run.reported?.foretold?.total_ms)))),
            foresight: Foresight::of_runs(&counted),
            undisturbed_gap_ms: rounded(median(&all(|run| Some(run.undisturbed_gap_ms)))),
            guest_clock_lost_ms: rounded(median(&all(|run| Some(run.noticed.clock_lost_ms)))),
            errors,
        }
    }

    /// What the machine can do by itself.
    pub(crate) fn machine(case: &str, engine: &str, goodput_bytes_per_s: f64) -> Self {
        Self {
            case: case.to_owned(),
            engine: engine.to_owned(),
            runs: 1,
            converged: true,
            converged_runs: 1,
            goodput_bytes_per_s: rounded(Some(goodput_bytes_per_s)),
            ..Self::default()
        }
    }
}

/// Hundredths are finer than anything here is worth.
pub(crate) fn rounded(value: Option<f64>) -> Option<f64> {
    value.map(|value| (value * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;
    use crate::measure::Disturbed;

    fn run(converged: bool, total_ms: f64) -> Run {
        Run {
            converged,
            total_ms,
            noticed: Disturbed {
                blackout_ms: total_ms / 100.0,
                lost_ms: 1.0,
                full_speed_ms: None,
                clock_lost_ms: 0.0,
            },
            undisturbed_gap_ms: 1.0,
            bytes_sent: 10,
            reported: None,
        }
    }

    #[test]
    fn runs_that_were_given_up_are_counted_and_not_mixed_in() {
        let row = Row::new(
            &CASES[0],
            Engine::Godwit,
            &[run(true, 100.0), run(false, 900.0), run(true, 300.0)],
            vec![],
        );
        assert_eq!((row.converged, row.converged_runs, row.runs), (false, 2, 3));
        assert_eq!((row.total_ms, row.total_ms_p99), (Some(200.0), Some(300.0)));
        assert_eq!((row.blackout_ms, row.blackout_ms_p99), (Some(2.0), Some(3.0)));
    }

    #[test]
    fn without_any_that_converged_there_is_the_time_so_far_and_no_blackout() {
        let row = Row::new(&CASES[0], Engine::QemuDefault, &[run(false, 900.0)], vec![]);
        assert_eq!((row.total_ms, row.blackout_ms, row.goodput_bytes_per_s), (Some(900.0), None, None));
        let printed = serde_json::to_value(&row).unwrap();
        assert_eq!(printed["converged"], false);
        assert!(printed.get("blackout_ms").is_none() && printed.get("total_ms_p99").is_none());
    }

    #[test]
    fn a_run_that_went_wrong_is_no_success() {
        let row = Row::new(&CASES[0], Engine::Godwit, &[run(true, 100.0)], vec!["broken".into()]);
        assert_eq!((row.converged, row.runs), (false, 2));
    }
}
