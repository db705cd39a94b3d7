//! How well a migration was foretold: what Godwit's planner said before it, held against what its engine measured.

use godwit_types::migration::MigrationReport;
use serde::Serialize;

use crate::row::Row;
use crate::run::Run;

/// A forecast is good if what happened is off it by at most this part of what happened.
const GOOD: f64 = 0.25;

/// How many forecasts were good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Foresight {
    /// Migrations that had a forecast, and ended well.
    pub(crate) forecasts: usize,
    pub(crate) good_totals: usize,
    pub(crate) good_blackouts: usize,
}

impl Foresight {
    pub(crate) fn of_runs(runs: &[&Run]) -> Self {
        let foretold = runs.iter().filter_map(|run| {
            let reported = run.reported?;
            Some((reported.foretold?, reported))
        });
        let pairs = foretold.map(|(foretold, reported)| {
            ((foretold.total_ms, reported.total_ms), (foretold.blackout_ms, reported.blackout_ms))
        });
        Self::count(pairs)
    }

    pub(crate) fn of_reports(reports: &[MigrationReport]) -> Self {
        let foretold = reports.iter().filter_map(|report| Some((report, report.predicted.as_ref()?)));
        let pairs = foretold.map(|(report, foretold)| {
            let blackout = (foretold.blackout_ms.expected, report.blackout.total_ms);
            ((foretold.total_ms.expected, report.total_ms), blackout)
        });
        Self::count(pairs)
    }

    /// Of pairs of what was foretold and what happened: total times and blackouts.
    fn count(pairs: impl Iterator<Item = ((f64, f64), (f64, f64))>) -> Self {
        pairs.fold(Self::default(), |count, (total, blackout)| Self {
            forecasts: count.forecasts + 1,
            good_totals: count.good_totals + usize::from(is_good(total.0, total.1)),
            good_blackouts: count.good_blackouts + usize::from(is_good(blackout.0, blackout.1)),
        })
    }

    /// Over all rows; none if nothing was foretold.
    pub(crate) fn of_rows(rows: &[Row]) -> Option<Self> {
        let sum = rows.iter().fold(Self::default(), |sum, row| Self {
            forecasts: sum.forecasts + row.foresight.forecasts,
            good_totals: sum.good_totals + row.foresight.good_totals,
            good_blackouts: sum.good_blackouts + row.foresight.good_blackouts,
        });
        Some(sum).filter(|sum| sum.forecasts > 0)
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        let Self { forecasts, good_totals, good_blackouts } = self;
        let percent = GOOD * 100.0;
        format!(
            "foretold within {percent:.0} %: the total of {good_totals} and the blackout of {good_blackouts} of {forecasts} moves"
        )
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.forecasts == 0
    }
}

/// What was said of one run before and after it, if both was said.
pub(crate) fn account(run: &Run) -> String {
    let told = run.reported.and_then(|said| Some((said, said.foretold?)));
    told.map_or_else(String::new, |(said, foretold)| {
        format!(
            "; it says {:.0} and {:.1}, and foretold {:.0} and {:.1}",
            said.total_ms, said.blackout_ms, foretold.total_ms, foretold.blackout_ms
        )
    })
}

fn is_good(foretold: f64, happened: f64) -> bool {
    (foretold - happened).abs() <= GOOD * happened
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Foretold, Reported};
    use crate::measure::Disturbed;

    fn run(foretold: Option<(f64, f64)>) -> Run {
        let foretold = foretold.map(|(total_ms, blackout_ms)| Foretold { total_ms, blackout_ms });
        Run {
            converged: true,
            total_ms: 1000.0,
            noticed: Disturbed { blackout_ms: 40.0, lost_ms: 1.0, full_speed_ms: None, clock_lost_ms: 0.0 },
            undisturbed_gap_ms: 1.0,
            bytes_sent: 10,
            reported: Some(Reported { total_ms: 1000.0, blackout_ms: 40.0, foretold }),
        }
    }

    #[test]
    fn a_forecast_counts_if_it_is_at_most_a_quarter_off_and_a_run_without_one_does_not() {
        let runs = [run(Some((1250.0, 29.0))), run(Some((1251.0, 31.0))), run(None)];
        let foresight = Foresight::of_runs(&runs.each_ref());
        assert_eq!(foresight, Foresight { forecasts: 2, good_totals: 1, good_blackouts: 1 });
        let rows = [Row { foresight, ..Row::default() }, Row::default()];
        assert_eq!(Foresight::of_rows(&rows), Some(foresight));
        assert_eq!(Foresight::of_rows(&rows[1..]), None);
    }
}
