//! Godwit against each other engine: the median over the cases of the one's number by the other's. Below 1 is better.

use clap::ValueEnum;
use serde::Serialize;

use crate::engine::Engine;
use crate::row::{Row, rounded};
use crate::stats::median;

/// Losses below this are noise, and no measure for anything, in milliseconds.
const NOISE_MS: f64 = 1.0;

/// Godwit's numbers by those of one other engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Ratio {
    pub(crate) against: &'static str,
    /// Cases in which both converged: those that the ratios are over.
    pub(crate) cases: usize,
    /// Cases in which each converged, of those that both have run.
    pub(crate) godwit_converged: usize,
    pub(crate) other_converged: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blackout_ratio: Option<f64>,
    /// Over the cases in which the other lost anything worth counting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) brownout_ratio: Option<f64>,
}

/// One for each engine that the rows have beside Godwit.
pub(crate) fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let others = Engine::value_variants().iter().filter(|engine| **engine != Engine::Godwit);
    others.filter_map(|other| against(rows, other.name())).collect()
}

fn against(rows: &[Row], other: &'static str) -> Option<Ratio> {
    let of = |engine: &'static str| rows.iter().filter(move |row| row.engine == engine);
    let pairs: Vec<(&Row, &Row)> = of(Engine::Godwit.name())
        .filter_map(|ours| Some((ours, of(other).find(|theirs| theirs.case == ours.case)?)))
        .collect();
    let both: Vec<_> = pairs.iter().filter(|(ours, theirs)| ours.converged && theirs.converged).collect();
    let over = |value: fn(&Row) -> Option<f64>| {
        let parts = both.iter().filter_map(|(ours, theirs)| {
            Some(value(ours)?.max(0.0) / value(theirs).filter(|theirs| *theirs >= NOISE_MS)?)
        });
        rounded(median(&parts.collect::<Vec<_>>()))
    };
    (!pairs.is_empty()).then(|| Ratio {
        against: other,
        cases: both.len(),
        godwit_converged: pairs.iter().filter(|(ours, _)| ours.converged).count(),
        other_converged: pairs.iter().filter(|(_, theirs)| theirs.converged).count(),
        total_ratio: over(|row| row.total_ms),
        blackout_ratio: over(|row| row.blackout_ms),
        brownout_ratio: over(|row| row.brownout_lost_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, engine: Engine, converged: bool, ms: f64) -> Row {
        Row {
            case: case.into(),
            engine: engine.name().into(),
            converged,
            total_ms: Some(ms),
            blackout_ms: Some(ms / 10.0),
            brownout_lost_ms: Some(ms - 100.0),
            ..Row::default()
        }
    }

    #[test]
    fn only_cases_in_which_both_converged_are_compared() {
        let rows = [
            row("a", Engine::Godwit, true, 100.0),
            row("a", Engine::QemuDefault, true, 400.0),
            row("b", Engine::Godwit, true, 300.0),
            row("b", Engine::QemuDefault, true, 400.0),
            row("c", Engine::Godwit, true, 1.0),
            row("c", Engine::QemuDefault, false, 30_000.0),
        ];
        let expected = Ratio {
            against: "qemu-default",
            cases: 2,
            godwit_converged: 3,
            other_converged: 2,
            total_ratio: Some(0.5),
            blackout_ratio: Some(0.5),
            brownout_ratio: Some(0.33),
        };
        assert_eq!(ratios(&rows), [expected]);
    }

    #[test]
    fn engines_that_did_not_run_have_no_ratio() {
        assert_eq!(ratios(&[row("a", Engine::Godwit, true, 1.0)]), []);
        assert_eq!(ratios(&[row("a", Engine::QemuMultifd, true, 1.0)]), []);
    }
}
