//! The axes of a chart: round numbers, their lines as SVG and their labels as HTML.

/// Of the drawing, in its own units.
pub(super) const WIDTH: f64 = 1000.0;
pub(super) const HEIGHT: f64 = 200.0;
/// Lines of a grid are at most so many, each way.
const ROWS_MAX: f64 = 5.0;
const COLUMNS_MAX: f64 = 8.0;
/// What may be between two lines of the grid over time, in hours.
const HOURS: [f64; 10] = [0.25, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0, 24.0, 48.0, 168.0];

/// The axis of values: from a round number to another, in round steps.
pub(super) struct Rows {
    low: f64,
    high: f64,
    step: f64,
}

impl Rows {
    pub(super) fn over(lowest: f64, highest: f64, least_step: f64) -> Self {
        if !lowest.is_finite() || !highest.is_finite() || highest < lowest {
            return Self { low: 0.0, high: 1.0, step: least_step.max(0.25) };
        }
        // Values that are all the same have some room, too.
        if highest - lowest < highest.abs() * 1e-9 || highest == lowest {
            let low = (highest - 1.0).max(0.0).min(lowest);
            return Self { low, high: low.max(highest - 1.0) + 1.0, step: least_step.max(0.25) };
        }
        let step = round_step((highest - lowest) / ROWS_MAX).max(least_step);
        let low = (lowest / step).floor() * step;
        let high = ((highest / step).ceil() * step).max(low + step);
        Self { low, high, step }
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        HEIGHT - (value - self.low) / (self.high - self.low) * HEIGHT
    }

    fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as u32;
        (0..=count).map(|row| self.low + self.step * f64::from(row))
    }

    pub(super) fn grid(&self) -> String {
        self.values()
            .map(|value| format!("<path class=\"grid\" d=\"M0,{:.1}H{WIDTH}\"/>\n", self.y(value)))
            .collect()
    }

    pub(super) fn labels(&self) -> String {
        let label = |value: f64| {
            let top = self.y(value) / HEIGHT * 100.0;
            format!("<span class=\"y\" style=\"top:{top:.2}%\">{}</span>\n", number(value, self.step))
        };
        self.values().map(label).collect()
    }
}

/// 1, 2 or 5 times a power of ten, no less than `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= least * (1.0 - 1e-9));
    times.unwrap_or(10.0) * power
}

/// The axis of time: lines at round hours or days.
pub(super) struct Columns {
    hours: f64,
    step: f64,
}

impl Columns {
    pub(super) fn over(hours: f64) -> Self {
        let step = HOURS.into_iter().find(|step| hours / step <= COLUMNS_MAX);
        Self { hours, step: step.unwrap_or_else(|| 168.0 * (hours / 168.0 / COLUMNS_MAX).ceil()) }
    }

    /// Hours, with how far to the right they are, from 0 to 1.
    fn values(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let hours = (0..=(self.hours / self.step) as u32).map(|column| self.step * f64::from(column));
        hours.map(|hour| (hour, hour / self.hours.max(f64::MIN_POSITIVE)))
    }

    pub(super) fn grid(&self) -> String {
        let line = |(_, at)| format!("<path class=\"grid\" d=\"M{:.1},0V{HEIGHT}\"/>\n", at * WIDTH);
        self.values().map(line).collect()
    }

    pub(super) fn labels(&self) -> String {
        let label = |(hour, at)| {
            let (value, unit, step) =
                if self.step >= 24.0 { (hour / 24.0, "d", 1.0) } else { (hour, "h", self.step) };
            format!(
                "<span class=\"x\" style=\"left:{:.2}%\">{} {unit}</span>\n",
                at * 100.0,
                number(value, step)
            )
        };
        self.values().map(label).collect::<String>()
            + "<span class=\"time\">time since the beginning</span>\n"
    }
}

/// With as many digits as the step has.
fn number(value: f64, step: f64) -> String {
    let digits = (0..6).find(|digits| (step * 10f64.powi(*digits)).fract() < 1e-6).unwrap_or(6);
    format!("{value:.*}", digits as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_is_never_of_no_length_and_holds_all_values_between_round_numbers() {
        for (lowest, highest) in [(0.0, 0.0), (100.0, 100.0), (f64::MAX, f64::MIN), (f64::NAN, 1.0)] {
            let rows = Rows::over(lowest, highest, 0.0);
            assert!(rows.low < rows.high && rows.values().count() < 12, "{lowest} {highest}");
        }
        let over = |lowest, highest, least| {
            let rows = Rows::over(lowest, highest, least);
            (rows.low, rows.high, rows.step)
        };
        assert_eq!(over(0.0, 87.0, 0.0), (0.0, 100.0, 20.0));
        assert_eq!(over(96.4, 100.0, 0.0), (96.0, 100.0, 1.0));
        assert_eq!([over(0.0, 2.0, 1.0), over(0.0, 0.0, 1.0)], [(0.0, 2.0, 1.0), (0.0, 1.0, 1.0)]);
        assert_eq!([number(0.5, 0.25), number(12.0, 5.0)], ["0.50", "12"]);
    }

    #[test]
    fn time_is_told_in_round_hours_or_days() {
        let labels = |hours: f64| {
            let labels = Columns::over(hours).labels();
            let texts = labels.split("</span>").filter_map(|text| text.rsplit('>').next().map(str::trim));
            texts
                .filter(|text| !text.is_empty() && !text.starts_with("time"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(labels(6.0), ["0 h", "1 h", "2 h", "3 h", "4 h", "5 h", "6 h"]);
        assert_eq!(labels(168.0), ["0 d", "1 d", "2 d", "3 d", "4 d", "5 d", "6 d", "7 d"]);
        assert!(labels(20_000.0).len() <= 9 && labels(0.1) == ["0.00 h"]);
    }
}
