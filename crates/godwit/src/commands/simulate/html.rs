//! A report as one page that needs nothing else.

use godwit_simulator::{Report, StepReport};

use super::chart::{Chart, Join, Line};
use super::text;

const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1d232b;--faint:#626c76;--grid:#e3e7eb;--a:#0b6bcb;--b:#c2410c;--c:#0f766e}\n\
@media(prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e4e8ec;--faint:#94a0ab;--grid:#2b323a;--a:#66b2ff;--b:#ff9a62;--c:#4fd1b8}}\n\
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}\n\
h1{font-size:1.5rem;line-height:1.25;margin:0 0 1rem}\n\
h2{font-size:1.1rem;margin:2rem 0 .5rem}\n\
table{border-collapse:collapse;margin-bottom:2rem}\n\
th{text-align:left;font-weight:400;color:var(--faint);padding:.15rem 1.5rem .15rem 0;vertical-align:top;white-space:nowrap}\n\
td{padding:.15rem 0;font-variant-numeric:tabular-nums}\n\
figure{margin:0 0 2rem}\n\
figcaption{display:flex;flex-wrap:wrap;gap:0 1rem;margin-bottom:.75rem}\n\
.unit,.key{color:var(--faint);font-size:.85rem;line-height:1.75}\n\
.unit{margin-right:auto}\n\
.keys{display:flex;flex-wrap:wrap;gap:0 1rem}\n\
.key::before{content:\"\";display:inline-block;width:1.6em;border-top:2px solid;margin-right:.4em;vertical-align:middle}\n\
.key.a::before{color:var(--a)}.key.b::before{color:var(--b);border-top-style:dashed}.key.c::before{color:var(--c);border-top-style:dotted}\n\
.key.bar::before{width:.7em;border-top:.7em solid}\n\
.plot{position:relative;height:13rem;margin:0 1rem 3.5rem 3.25rem}\n\
.plot svg{position:absolute;width:100%;height:100%;overflow:visible}\n\
.plot span{position:absolute;color:var(--faint);font-size:.75rem;line-height:1;white-space:nowrap}\n\
.y{right:100%;margin-right:.5rem;transform:translateY(-50%)}\n\
.x{top:100%;margin-top:.5rem;transform:translateX(-50%)}\n\
.time{top:100%;left:50%;margin-top:1.6rem;transform:translateX(-50%)}\n\
path{fill:none;vector-effect:non-scaling-stroke}\n\
.grid{stroke:var(--grid)}\n\
.line{stroke-width:1.5;stroke-linejoin:round}\n\
.line.a{stroke:var(--a)}.line.b{stroke:var(--b);stroke-dasharray:6 3}.line.c{stroke:var(--c);stroke-dasharray:2 2}\n\
.bar.a{fill:var(--a)}.bar.b{fill:var(--b)}\n\
pre{overflow-x:auto;font-size:.85rem}\n\
summary{cursor:pointer;color:var(--faint)}\n\
";

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut rows = text::rows(report);
    rows.push(("seed", report.seed.to_string()));
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", escaped(value)))
        .collect();
    let charts: String =
        charts(&report.steps).iter().map(|chart| chart.figure(report.summary.hours)).collect();
    let cluster = format!("{} hosts and {} VMs", report.hosts, report.vms);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Godwit: {cluster}, simulated</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>What the scheduler would do with {cluster}</h1>\n<table>\n{rows}</table>\n{}{charts}{}</body>\n</html>\n",
        findings(report),
        policy(report),
    )
}

fn findings(report: &Report) -> String {
    let found: String =
        report.findings.iter().map(|finding| format!("<li>{}</li>\n", escaped(finding))).collect();
    if found.is_empty() { found } else { format!("<h2>Findings</h2>\n<ul>\n{found}</ul>\n") }
}

/// With the trace and the seed, all that the report follows from.
fn policy(report: &Report) -> String {
    // A policy is numbers, names and options, which JSON can always hold.
    let policy = serde_json::to_string_pretty(&report.policy).unwrap_or_default();
    format!("<details>\n<summary>The policy</summary>\n<pre>{}</pre>\n</details>\n", escaped(&policy))
}

/// What is looked at over time.
fn charts(steps: &[StepReport]) -> Vec<Chart> {
    let line = |name, class, value: fn(&StepReport) -> f64| Line {
        name,
        class,
        values: steps.iter().map(value).collect(),
    };
    let chart =
        |title, unit, lines| Chart { title, unit, join: Join::Mean, whole: false, from_zero: true, lines };
    vec![
        chart(
            "Load",
            "GHz",
            vec![
                line("capacity of hosts that are on", "c", |step| step.capacity_mhz / 1000.0),
                line("wanted", "b", |step| step.wanted_mhz / 1000.0),
                line("given", "a", |step| step.given_mhz / 1000.0),
            ],
        ),
        chart("Power", "kW, drawn by all hosts", vec![line("drawn", "a", |step| step.watts / 1000.0)]),
        Chart {
            whole: true,
            ..chart("Hosts on", "hosts", vec![line("hosts that are on", "a", |step| step.hosts_on as f64)])
        },
        Chart {
            join: Join::Sum,
            whole: true,
            ..chart(
                "Moves",
                "VMs moved",
                vec![
                    line("all", "a", |step| step.moves as f64),
                    line("back within an hour", "b", |step| step.moves_in_vain as f64),
                ],
            )
        },
        Chart {
            join: Join::Least,
            from_zero: false,
            ..chart(
                "Happiness",
                "% of what VMs are entitled to",
                vec![
                    line("one in a hundred has no more", "b", |step| step.happiness.p1),
                    line("one in twenty has no more", "c", |step| step.happiness.p5),
                    line("mean of all VMs", "a", |step| step.happiness.mean),
                ],
            )
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
        for title in ["Load", "Power", "Hosts on", "Moves", "Happiness"] {
            let id = title.to_lowercase().replace(' ', "-");
            assert_eq!(page.matches(&format!("aria-labelledby=\"{id} {id}-says\"")).count(), 1, "{title}");
            assert!(page.contains(&format!("<title id=\"{id}\">{title}, ")), "{title}");
        }
        assert!(
            page.contains(
                "<desc id=\"hosts-on-says\">hosts that are on: 1.0 to 1.0, 1.0 in the mean.</desc>"
            )
        );
        for outside in ["http:", "https:", "<script", "<link", "url(", "@import", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    /// What the style sheet calls so, in light and in dark.
    fn colours(name: &str) -> Vec<[f64; 3]> {
        let part =
            |text: &str| f64::from(u8::from_str_radix(&text.repeat(2 / text.len()), 16).unwrap()) / 255.0;
        let colour = |text: &str| {
            let digits = text.split([';', '}']).next().unwrap();
            let wide = digits.len() / 3;
            [0, 1, 2].map(|at| part(&digits[at * wide..(at + 1) * wide]))
        };
        STYLE.split(&format!("--{name}:#")).skip(1).map(colour).collect()
    }

    /// Contrast ratio as WCAG 2.2 has it, from 1 to 21.
    fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
        let linear =
            |part: f64| if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) };
        let light = |[red, green, blue]: [f64; 3]| {
            0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue) + 0.05
        };
        let (one, other) = (light(one), light(other));
        one.max(other) / one.min(other)
    }

    #[test]
    fn all_colours_of_text_and_lines_can_be_told_from_the_paper_in_light_and_in_dark() {
        assert!((contrast([0.0; 3], [1.0; 3]) - 21.0).abs() < 1e-9);
        for name in ["ink", "faint", "a", "b", "c"] {
            let pairs: Vec<_> = colours(name).into_iter().zip(colours("paper")).collect();
            assert_eq!(pairs.len(), 2, "--{name}");
            for (colour, paper) in pairs {
                assert!(contrast(colour, paper) >= 4.5, "--{name}: {}", contrast(colour, paper));
            }
        }
    }
}
