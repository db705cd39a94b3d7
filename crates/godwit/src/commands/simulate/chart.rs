//! Charts over time as SVG.

use std::fmt::Write as _;

/// Of the drawing, in its own units.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 8.0;
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
        let (low, high) = span(lowest, highest, self.from_zero);
        let mut svg = format!(
            "<figure><figcaption>{} <span class=\"unit\">{}</span>{}</figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">\n",
            self.title,
            self.unit,
            legend(&self.lines),
            HEIGHT + TOP + BOTTOM,
            self.title
        );
        let y = |value: f64| TOP + HEIGHT - (value - low) / (high - low) * HEIGHT;
        for part in 0..=4 {
            let value = low + (high - low) * f64::from(part) / 4.0;
            let at = y(value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                number(value, high - low)
            );
        }
        svg += &hours_axis(hours);
        for (line, values) in &lines {
            let step = (WIDTH - LEFT) / (values.len().max(2) - 1) as f64;
            let points: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(at, value)| format!("{:.1},{:.1}", LEFT + at as f64 * step, y(*value)))
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

fn hours_axis(hours: f64) -> String {
    let mut axis = String::new();
    for part in 0..=6 {
        let hour = hours * f64::from(part) / 6.0;
        let at = LEFT + (WIDTH - LEFT) * f64::from(part) / 6.0;
        let anchor = ["start", "middle", "end"][usize::from(part > 0) + usize::from(part == 6)];
        let _ = writeln!(
            axis,
            "<text class=\"x\" text-anchor=\"{anchor}\" x=\"{at:.1}\" y=\"{:.1}\">{} h</text>",
            TOP + HEIGHT + 16.0,
            number(hour, hours)
        );
    }
    axis
}

/// The ends of an axis: never the same.
fn span(lowest: f64, highest: f64, from_zero: bool) -> (f64, f64) {
    if !lowest.is_finite() || !highest.is_finite() || highest < lowest {
        return (0.0, 1.0);
    }
    let room = (highest - lowest) * 0.05;
    let low = if from_zero { 0.0 } else { lowest - room };
    if highest + room > low { (low, highest + room) } else { (low - 1.0, low + 1.0) }
}

/// With as many digits as tell the grid's lines apart.
fn number(value: f64, range: f64) -> String {
    let digits = usize::from(range < 40.0) + usize::from(range < 4.0) + usize::from(range < 0.4);
    format!("{value:.digits$}")
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
    fn an_axis_is_never_of_no_length() {
        for (lowest, highest) in [(0.0, 0.0), (100.0, 100.0), (f64::MAX, f64::MIN), (f64::NAN, 1.0)] {
            for from_zero in [true, false] {
                let (low, high) = span(lowest, highest, from_zero);
                assert!(low < high, "{lowest} {highest}");
            }
        }
    }
}
