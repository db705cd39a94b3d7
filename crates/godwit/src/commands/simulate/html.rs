//! A report as one page that needs nothing else.

use godwit_simulator::{Report, StepReport};

use super::chart::{Chart, Join, Line};
use super::text;

const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1d232b;--faint:#6b7580;--grid:#e3e7eb;--a:#0b6bcb;--b:#c2410c;--c:#0f766e}\
@media(prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e4e8ec;--faint:#94a0ab;--grid:#2b323a;--a:#66b2ff;--b:#ff9a62;--c:#4fd1b8}}\
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem;margin:0 0 1rem}\
table{border-collapse:collapse;margin-bottom:1.5rem}\
th{text-align:left;font-weight:400;color:var(--faint);padding:.15rem 1.5rem .15rem 0;vertical-align:top;white-space:nowrap}\
td{padding:.15rem 0}\
figure{margin:0 0 1.75rem}\
figcaption{font-weight:600;margin-bottom:.25rem}\
.key{font-weight:400;color:var(--faint);white-space:nowrap}\
.key{margin-left:1rem}\
.key::before{content:\"\";display:inline-block;width:1.4em;height:3px;border-radius:2px;margin-right:.4em;vertical-align:middle;background:currentColor}\
.key.a{color:var(--a)}.key.b{color:var(--b)}.key.c{color:var(--c)}\
svg{width:100%;height:auto;display:block}\
svg text{fill:var(--faint);font-size:11px}\
.y{text-anchor:end}\
.x{text-anchor:middle}\
.grid{stroke:var(--grid)}\
.line{fill:none;stroke-width:1.5;stroke-linejoin:round}\
.line.a{stroke:var(--a)}.line.b{stroke:var(--b)}.line.c{stroke:var(--c)}\
";

/// The page.
pub(super) fn page(report: &Report) -> String {
    let rows: String = text::rows(report)
        .iter()
        .map(|(name, value)| format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", escaped(value)))
        .collect();
    let findings: String =
        report.findings.iter().map(|finding| format!("<li>{}</li>\n", escaped(finding))).collect();
    let findings =
        if findings.is_empty() { findings } else { format!("<h2>Findings</h2>\n<ul>\n{findings}</ul>\n") };
    let charts: String =
        charts(&report.steps).iter().map(|chart| chart.figure(report.summary.hours)).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Godwit: simulated scheduling</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>What the scheduler would do</h1>\n<table>\n{rows}</table>\n{findings}{charts}</body>\n</html>\n"
    )
}

fn charts(steps: &[StepReport]) -> Vec<Chart> {
    let line = |name, class, join, value: fn(&StepReport) -> f64| Line {
        name,
        class,
        join,
        values: steps.iter().map(value).collect(),
    };
    vec![
        Chart {
            title: "Load",
            unit: "GHz",
            from_zero: true,
            lines: vec![
                line("hosts that are on", "c", Join::Mean, |step| step.capacity_mhz / 1000.0),
                line("wanted", "b", Join::Mean, |step| step.wanted_mhz / 1000.0),
                line("given", "a", Join::Mean, |step| step.given_mhz / 1000.0),
            ],
        },
        Chart {
            title: "Power",
            unit: "kW",
            from_zero: true,
            lines: vec![line("drawn by all hosts", "a", Join::Mean, |step| step.watts / 1000.0)],
        },
        Chart {
            title: "Hosts on",
            unit: "hosts",
            from_zero: true,
            lines: vec![line("hosts that are on", "c", Join::Mean, |step| step.hosts_on as f64)],
        },
        Chart {
            title: "Moves",
            unit: "VMs moved",
            from_zero: true,
            lines: vec![
                line("all", "a", Join::Sum, |step| step.moves as f64),
                line("back within an hour", "b", Join::Sum, |step| step.moves_in_vain as f64),
            ],
        },
        Chart {
            title: "Happiness",
            unit: "% of what VMs are entitled to",
            from_zero: false,
            lines: vec![
                line("mean", "a", Join::Least, |step| step.happiness.mean),
                line("one in twenty", "c", Join::Least, |step| step.happiness.p5),
                line("one in a hundred", "b", Join::Least, |step| step.happiness.p1),
            ],
        },
    ]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use godwit_scheduler::planner::plan;
    use godwit_scheduler::policy::Policy;
    use godwit_simulator::{Simulation, format};

    use super::*;

    fn report() -> Report {
        let trace = "{\"trace\":1,\"interval_s\":300}\n{\"host\":\"a\",\"cpu_mhz\":1000,\"memory\":1024}\n\
                     {\"vm\":\"x\",\"vcpus\":1,\"memory\":512,\"cpu_mhz\":[100,2000]}\n";
        let mut simulation = Simulation::new(format::own(trace).unwrap(), Policy::default(), 1).unwrap();
        while simulation.step(&mut plan).is_some() {}
        simulation.report()
    }

    /// Every element is closed, in its order; an element that never has contents closes itself.
    fn check_nesting(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        for tag in page.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("a tag ends");
            let name = tag.trim_start_matches('/').split(|c: char| !c.is_alphanumeric()).next().unwrap();
            match tag {
                _ if tag.starts_with('!') || tag.ends_with('/') => {}
                _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "{tag}"),
                _ => open.push(name),
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        }
        assert!(open.is_empty(), "never closed: {open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let mut report = report();
        report.findings.push("a < b && \"c\"".into());
        let page = page(&report);
        check_nesting(&page);
        assert!(page.contains("a &lt; b &amp;&amp;") && page.contains("prefers-color-scheme:dark"));
        assert_eq!(page.matches("<svg").count(), 5);
        for outside in ["http:", "https:", "<script", "<link", "url(", "@import", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
