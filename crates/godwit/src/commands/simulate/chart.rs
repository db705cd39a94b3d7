//! Charts over time: lines as SVG, which is stretched to the window, and labels as HTML, which is not.

use std::fmt::Write as _;

use super::axis::{Columns, HEIGHT, Rows, WIDTH};

/// Values are put together until there are no more than these.
const POINTS_MAX: usize = 480;

/// How values that are put together become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    Mean,
    /// Of what is counted: it is drawn as bars.
    Sum,
    Least,
}

/// One line of a chart.
pub(super) struct Line {
    pub(super) name: &'static str,
    /// Of the style sheet.
    pub(super) class: &'static str,
    /// One for each step.
    pub(super) values: Vec<f64>,
}

/// A chart of lines over the same time.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) join: Join,
    /// Whether there are no halves of what is shown.
    pub(super) whole: bool,
    /// Whether the axis begins at 0; else a little below the least value.
    pub(super) from_zero: bool,
    pub(super) lines: Vec<Line>,
}

impl Chart {
    /// The figure, with its legend. Hours are those that all values span.
    pub(super) fn figure(&self, hours: f64) -> String {
        let steps = self.lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
        let each = steps.div_ceil(POINTS_MAX).max(1);
        let span_min = hours * 60.0 * each as f64 / steps.max(1) as f64;
        let lines: Vec<(&Line, Vec<f64>)> =
            self.lines.iter().map(|line| (line, joined(&line.values, each, self.join))).collect();
        let all = || lines.iter().flat_map(|(_, values)| values.iter().copied());
        let highest = all().fold(f64::MIN, f64::max);
        let lowest = if self.from_zero { 0.0 } else { all().fold(f64::MAX, f64::min) };
        let rows = Rows::over(lowest, highest, if self.whole { 1.0 } else { 0.0 });
        let columns = Columns::over(hours);
        let (title, id, unit) =
            (self.title, self.title.to_lowercase().replace(' ', "-"), self.unit(each, span_min));
        let paths: String = lines
            .iter()
            .map(|(line, values)| self.path(line.class, &stairs(values, each, steps, &rows)))
            .collect();
        format!(
            "<figure>\n<figcaption><b>{title}</b> <span class=\"unit\">{unit}</span>{}</figcaption>\n\
             <div class=\"plot\">\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-labelledby=\"{id} {id}-says\">\n\
             <title id=\"{id}\">{title}, {unit}, over {hours:.1} hours</title>\n<desc id=\"{id}-says\">{}</desc>\n\
             {}{}{paths}</svg>\n{}{}</div>\n</figure>\n",
            self.legend(),
            said(&lines),
            rows.grid(),
            columns.grid(),
            rows.labels(),
            columns.labels(),
        )
    }

    /// What is shown, and of which time each value is, where that matters.
    fn unit(&self, each: usize, span_min: f64) -> String {
        match self.join {
            Join::Sum => format!("{} in each {span_min:.0} min", self.unit),
            Join::Least if each > 1 => format!("{}, least of each {span_min:.0} min", self.unit),
            Join::Mean | Join::Least => self.unit.to_owned(),
        }
    }

    fn path(&self, class: &str, stairs: &str) -> String {
        let shape = self.shape();
        match self.join {
            Join::Sum => format!("<path class=\"{shape} {class}\" d=\"M0,{HEIGHT}{stairs}V{HEIGHT}Z\"/>\n"),
            Join::Mean | Join::Least => {
                format!("<path class=\"{shape} {class}\" d=\"{}\"/>\n", stairs.replacen('V', "M0,", 1))
            }
        }
    }

    /// Of the style sheet.
    fn shape(&self) -> &'static str {
        if self.join == Join::Sum { "bar" } else { "line" }
    }

    /// Which line is which, if there are several.
    fn legend(&self) -> String {
        let key =
            |line: &Line| format!("<span class=\"key {} {}\">{}</span>", self.shape(), line.class, line.name);
        match self.lines.as_slice() {
            [_] => String::new(),
            lines => format!("<span class=\"keys\">{}</span>", lines.iter().map(key).collect::<String>()),
        }
    }
}

/// Each value holds until the next: up or down to it, and along.
fn stairs(values: &[f64], each: usize, steps: usize, rows: &Rows) -> String {
    let mut path = String::new();
    for (at, value) in values.iter().enumerate() {
        let end = ((at + 1) * each).min(steps) as f64 / steps as f64 * WIDTH;
        let _ = write!(path, "V{:.1}H{end:.1}", rows.y(*value));
    }
    path
}

/// The lines for those who do not see them.
fn said(lines: &[(&Line, Vec<f64>)]) -> String {
    let of = |(line, values): &(&Line, Vec<f64>)| {
        let (least, most) = values
            .iter()
            .fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(*value), most.max(*value)));
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        format!("{}: {least:.1} to {most:.1}, {mean:.1} in the mean.", line.name)
    };
    lines.iter().filter(|(_, values)| !values.is_empty()).map(of).collect::<Vec<_>>().join(" ")
}

/// `each` values become one.
fn joined(values: &[f64], each: usize, join: Join) -> Vec<f64> {
    let one = |values: &[f64]| match join {
        Join::Mean => values.iter().sum::<f64>() / values.len() as f64,
        Join::Sum => values.iter().sum(),
        Join::Least => values.iter().copied().fold(f64::MAX, f64::min),
    };
    values.chunks(each).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(join: Join, values: Vec<f64>) -> Chart {
        let lines = vec![Line { name: "all", class: "a", values }];
        Chart { title: "Moves", unit: "VMs", join, whole: true, from_zero: true, lines }
    }

    #[test]
    fn many_values_are_put_together_as_the_chart_says() {
        let values: Vec<f64> = (0..960).map(f64::from).collect();
        assert_eq!(joined(&values, 2, Join::Sum)[..2], [1.0, 5.0]);
        assert_eq!(joined(&values, 2, Join::Mean)[..2], [0.5, 2.5]);
        assert_eq!(joined(&values, 2, Join::Least)[..2], [0.0, 2.0]);
        let unit = |join, count| {
            let figure = chart(join, vec![1.0; count]).figure(count as f64 / 12.0);
            figure.split_once("<span class=\"unit\">").unwrap().1.split_once('<').unwrap().0.to_owned()
        };
        assert_eq!([unit(Join::Sum, 12), unit(Join::Sum, 960)], ["VMs in each 5 min", "VMs in each 10 min"]);
        assert_eq!([unit(Join::Least, 12), unit(Join::Least, 960)], ["VMs", "VMs, least of each 10 min"]);
    }

    #[test]
    fn a_value_holds_from_its_step_to_the_next() {
        let rows = Rows::over(0.0, 2.0, 1.0);
        assert_eq!(stairs(&[0.0, 2.0, 1.0], 2, 5, &rows), "V200.0H400.0V0.0H800.0V100.0H1000.0");
        let figure = chart(Join::Sum, vec![0.0, 2.0]).figure(1.0);
        assert!(figure.contains("d=\"M0,200V200.0H500.0V0.0H1000.0V200Z\""), "{figure}");
        let figure = chart(Join::Mean, vec![0.0, 2.0]).figure(1.0);
        assert!(figure.contains("d=\"M0,200.0H500.0V0.0H1000.0\""), "{figure}");
        assert!(figure.contains(">all: 0.0 to 2.0, 1.0 in the mean.</desc>"), "{figure}");
    }
}
