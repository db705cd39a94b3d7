//! Charts over time as SVG.

use std::fmt::Write as _;

/// Of the drawing, in its own units.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 24.0;
/// Lines of a grid are at most so many, each way.
const ROWS_MAX: f64 = 5.0;
const COLUMNS_MAX: f64 = 8.0;
/// What may be between two lines of the grid over time, in hours.
const HOURS: [f64; 10] = [0.25, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0, 24.0, 48.0, 168.0];
/// Points are put together until there are no more than these.
const POINTS_MAX: usize = 480;

/// How points that are put together become one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Join {
    Mean,
    Sum,
    Least,
}

/// One line of a chart.
pub(super) struct Line {
    pub(super) name: &'static str,
    /// Of the style sheet.
    pub(super) class: &'static str,
    pub(super) values: Vec<f64>,
    pub(super) join: Join,
}

/// A chart of lines over the same time.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    /// Whether the axis begins at 0; else a little below the least value.
    pub(super) from_zero: bool,
    pub(super) lines: Vec<Line>,
}

impl Chart {
    /// The figure, with its legend. Hours are those that all values span.
    pub(super) fn figure(&self, hours: f64) -> String {
        let lines: Vec<(&Line, Vec<f64>)> = self.lines.iter().map(|line| (line, joined(line))).collect();
        let all = || lines.iter().flat_map(|(_, values)| values.iter().copied());
        let highest = all().fold(f64::MIN, f64::max);
        let lowest = if self.from_zero { 0.0 } else { all().fold(f64::MAX, f64::min) };
        let rows = Rows::over(lowest, highest);
        let mut svg = format!(
            "<figure><figcaption>{}{}</figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}, in {}, over {hours:.0} hours\">\n\
             <text class=\"unit\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>\n",
            self.title,
            legend(&self.lines),
            TOP + HEIGHT + BOTTOM,
            self.title,
            self.unit,
            TOP - 9.0,
            self.unit,
        );
        svg += &rows.grid();
        svg += &columns(hours);
        for (line, values) in &lines {
            let step = (WIDTH - RIGHT - LEFT) / (values.len().max(2) - 1) as f64;
            let points: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(at, value)| format!("{:.1},{:.1}", LEFT + at as f64 * step, rows.y(*value)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline class=\"line {}\" points=\"{}\"><title>{}</title></polyline>",
                line.class,
                points.join(" "),
                line.name
            );
        }
        svg + "</svg></figure>\n"
    }
}

fn legend(lines: &[Line]) -> String {
    let key = |line: &Line| format!("<span class=\"key {}\">{}</span>", line.class, line.name);
    lines.iter().map(key).collect()
}

/// The axis of values: from a round number to another, in round steps.
struct Rows {
    low: f64,
    high: f64,
    step: f64,
}

impl Rows {
    fn over(lowest: f64, highest: f64) -> Self {
        if !lowest.is_finite() || !highest.is_finite() || highest < lowest {
            return Self { low: 0.0, high: 1.0, step: 0.25 };
        }
        // Values that are all the same have some room, too.
        if highest - lowest < highest.abs() * 1e-9 || highest == lowest {
            let low = (highest - 1.0).max(0.0).min(lowest);
            return Self { low, high: low.max(highest - 1.0) + 1.0, step: 0.25 };
        }
        let step = round_step((highest - lowest) / ROWS_MAX);
        let low = (lowest / step).floor() * step;
        let high = ((highest / step).ceil() * step).max(low + step);
        Self { low, high, step }
    }

    fn y(&self, value: f64) -> f64 {
        TOP + HEIGHT - (value - self.low) / (self.high - self.low) * HEIGHT
    }

    fn grid(&self) -> String {
        let count = ((self.high - self.low) / self.step).round() as u32;
        let row = |row: u32| {
            let value = self.low + self.step * f64::from(row);
            let at = self.y(value);
            format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>\n",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                number(value, self.step)
            )
        };
        (0..=count).map(row).collect()
    }
}

/// 1, 2 or 5 times a power of ten, no less than `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= least * (1.0 - 1e-9));
    times.unwrap_or(10.0) * power
}

/// The axis of time: lines at round hours or days.
fn columns(hours: f64) -> String {
    let step = HOURS.into_iter().find(|step| hours / step <= COLUMNS_MAX);
    let step = step.unwrap_or_else(|| 168.0 * (hours / 168.0 / COLUMNS_MAX).ceil());
    let bottom = TOP + HEIGHT;
    let column = |column: u32| {
        let hour = step * f64::from(column);
        let at = LEFT + (WIDTH - RIGHT - LEFT) * hour / hours.max(f64::MIN_POSITIVE);
        let (value, unit, step) = if step >= 24.0 { (hour / 24.0, "d", 1.0) } else { (hour, "h", step) };
        format!(
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
             <text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{} {unit}</text>\n",
            bottom + 16.0,
            number(value, step)
        )
    };
    let columns: String = (0..=(hours / step) as u32).map(column).collect();
    let middle = LEFT + (WIDTH - RIGHT - LEFT) / 2.0;
    format!("{columns}<text class=\"x\" x=\"{middle:.1}\" y=\"{:.1}\">time</text>\n", bottom + 33.0)
}

/// With as many digits as the step has.
fn number(value: f64, step: f64) -> String {
    let digits = (0..6).find(|digits| (step * 10f64.powi(*digits)).fract() < 1e-6).unwrap_or(6);
    format!("{value:.*}", digits as usize)
}

/// No more points than can be told apart.
fn joined(line: &Line) -> Vec<f64> {
    let each = line.values.len().div_ceil(POINTS_MAX).max(1);
    let join = |values: &[f64]| match line.join {
        Join::Mean => values.iter().sum::<f64>() / values.len() as f64,
        Join::Sum => values.iter().sum(),
        Join::Least => values.iter().copied().fold(f64::MAX, f64::min),
    };
    line.values.chunks(each).map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_are_put_together_as_the_line_says() {
        let line = |join| Line { name: "", class: "", values: (0..960).map(f64::from).collect(), join };
        assert_eq!(joined(&line(Join::Sum))[..2], [1.0, 5.0]);
        assert_eq!(joined(&line(Join::Mean))[..2], [0.5, 2.5]);
        assert_eq!(joined(&line(Join::Least))[..2], [0.0, 2.0]);
    }

    #[test]
    fn an_axis_is_never_of_no_length_and_holds_all_values_between_round_numbers() {
        for (lowest, highest) in [(0.0, 0.0), (100.0, 100.0), (f64::MAX, f64::MIN), (f64::NAN, 1.0)] {
            let rows = Rows::over(lowest, highest);
            assert!(rows.low < rows.high && rows.grid().matches("<line").count() < 12, "{lowest} {highest}");
        }
        let rows = Rows::over(0.0, 87.0);
        assert_eq!((rows.low, rows.high, rows.step), (0.0, 100.0, 20.0));
        let rows = Rows::over(96.4, 100.0);
        assert_eq!((rows.low, rows.high, rows.step), (96.0, 100.0, 1.0));
        assert_eq!([number(0.5, 0.25), number(12.0, 5.0)], ["0.50", "12"]);
    }

    #[test]
    fn time_is_told_in_round_hours_or_days() {
        let labels = |hours: f64| {
            let axis = columns(hours);
            let texts = axis.split("</text>").filter_map(|text| text.rsplit('>').next().map(str::trim));
            texts.filter(|text| !text.is_empty() && *text != "time").map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(labels(6.0), ["0 h", "1 h", "2 h", "3 h", "4 h", "5 h", "6 h"]);
        assert_eq!(labels(168.0), ["0 d", "1 d", "2 d", "3 d", "4 d", "5 d", "6 d", "7 d"]);
        assert!(labels(20_000.0).len() <= 9 && labels(0.1) == ["0.00 h"]);
    }
}
