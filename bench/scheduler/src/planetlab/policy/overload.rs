//! When a host counts as overloaded: the policies of Beloglazov and Buyya (CCPE 2012), as CloudSim 3.0.3 has them.

use super::super::world::HISTORY;

/// A policy that looks at a host's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Overload {
    /// More than 80 % is wanted.
    Thr,
    /// More than all, less 1.5 times the interquartile range of what was used.
    Iqr,
    /// More than all, less 2.5 times the median absolute deviation of what was used.
    Mad,
    /// 1.2 times what a line through the last ten rounds comes to is all or more.
    Lr,
}

/// Of a policy that has not seen enough yet.
const FALLBACK: f64 = 0.7;
/// Rounds that a regression looks at, and how far it looks ahead: one round, in which every migration ends.
const REGRESSION: usize = 10;
const AHEAD: f64 = 1.0;
/// Rounds from which a deviation means something.
const DEVIATION_MIN: usize = 12;

impl Overload {
    /// Whether a host is that is asked for `wanted` of what it has, and whose VMs used `history` of it, the latest first.
    pub(super) fn is(self, wanted: f64, history: &[f64; HISTORY]) -> bool {
        // What was before the first load is not known.
        let known = history.iter().rposition(|used| *used != 0.0).map_or(1, |last| last + 1);
        let history = &history[..known];
        match self {
            Self::Thr => wanted > 0.8,
            Self::Iqr | Self::Mad if known < DEVIATION_MIN => wanted > FALLBACK,
            Self::Iqr => wanted > 1.0 - 1.5 * interquartile_range(history),
            Self::Mad => wanted > 1.0 - 2.5 * deviation(history),
            Self::Lr if known < REGRESSION => wanted > FALLBACK,
            Self::Lr => 1.2 * extrapolated(&history[..REGRESSION]) >= 1.0,
        }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn interquartile_range(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let quarter = |quarters: f64| (quarters * 0.25 * (sorted.len() + 1) as f64 + 0.5).floor() as usize - 1;
    sorted[quarter(3.0)] - sorted[quarter(1.0)]
}

/// The median of distances from the median.
fn deviation(values: &[f64]) -> f64 {
    let middle = median(values);
    median(&values.iter().map(|value| (middle - value).abs()).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        sorted[half - 1] + 0.5 * (sorted[half] - sorted[half - 1])
    }
}

/// The value of the least-squares line one round ahead. The latest value comes first. The released simulator computes weights
/// (tricube, and bisquare for LRR) and does not use them, so its LR and LRR are both this line.
fn extrapolated(latest_first: &[f64]) -> f64 {
    let count = latest_first.len() as f64;
    let points = || latest_first.iter().rev().enumerate().map(|(index, y)| ((index + 1) as f64, *y));
    let mean_x = (count + 1.0) / 2.0;
    let mean_y = latest_first.iter().sum::<f64>() / count;
    let slope = points().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>()
        / points().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
    mean_y + slope * (count + AHEAD - mean_x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(values: &[f64]) -> [f64; HISTORY] {
        std::array::from_fn(|index| values.get(index).copied().unwrap_or(0.0))
    }

    #[test]
    fn a_line_goes_on_where_it_was_going() {
        let rising: Vec<f64> = (0..10).map(|round| 0.80 - 0.02 * f64::from(round)).collect();
        assert!((extrapolated(&rising) - 0.82).abs() < 1e-12);
        // 1.2 * 0.82 is below 1, and 1.2 * 0.84 is not.
        assert!(!Overload::Lr.is(0.8, &history(&rising)));
        let higher: Vec<f64> = rising.iter().map(|used| used + 0.02).collect();
        assert!(Overload::Lr.is(0.8, &history(&higher)));
    }

    #[test]
    fn whoever_has_seen_little_takes_seventy_per_cent() {
        for policy in [Overload::Iqr, Overload::Mad, Overload::Lr] {
            assert!(policy.is(0.71, &history(&[0.9; 9])) && !policy.is(0.7, &history(&[0.9; 9])));
        }
        assert!(Overload::Thr.is(0.81, &history(&[])) && !Overload::Thr.is(0.8, &history(&[])));
    }

    #[test]
    fn the_more_a_host_varies_the_more_it_keeps_free() {
        let steady = history(&[0.5; 12]);
        assert!(!Overload::Iqr.is(0.99, &steady) && !Overload::Mad.is(0.99, &steady));
        let values: Vec<f64> = (0..12).map(|round| if round % 2 == 0 { 0.4 } else { 0.6 }).collect();
        // Quartiles 0.4 and 0.6; all are 0.1 from the median.
        assert!(Overload::Iqr.is(0.71, &history(&values)) && !Overload::Iqr.is(0.69, &history(&values)));
        assert!(Overload::Mad.is(0.76, &history(&values)) && !Overload::Mad.is(0.74, &history(&values)));
    }
}
