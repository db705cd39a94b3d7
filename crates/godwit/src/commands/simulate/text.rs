//! A report on the terminal.

use std::time::Duration;

use godwit_simulator::{Report, Summary};

use super::read::gib;
use crate::output::fields;

/// What came out, and how long it took to find out.
pub(super) fn summary(report: &Report, took: Duration) -> String {
    let mut text = fields(&rows(report));
    for finding in &report.findings {
        text += &format!("\nfinding  {finding}");
    }
    let per_step_ms = took.as_secs_f64() * 1000.0 / report.summary.steps.max(1) as f64;
    text + &format!("\n{:.1} s, {per_step_ms:.1} ms a step", took.as_secs_f64())
}

/// The same on the page.
pub(super) fn rows(report: &Report) -> Vec<(&'static str, String)> {
    let Report { summary: sum, .. } = report;
    let hosts_on =
        format!("{:.1} on average, {} to {}", sum.hosts_on_mean, sum.hosts_on_min, sum.hosts_on_max);
    let happiness = format!(
        "{:.3} % on average; worst step: {:.1} % for one VM in twenty, {:.1} % for one in a hundred",
        sum.happiness_mean, sum.happiness_p5_worst, sum.happiness_p1_worst
    );
    let mut rows = vec![
        ("cluster", format!("{} hosts, {} VMs", report.hosts, report.vms)),
        ("time", format!("{:.1} h in {} steps of {} s", sum.hours, sum.steps, report.interval_s)),
        ("energy", format!("{:.1} kWh", sum.energy_kwh)),
        ("hosts on", hosts_on),
        ("load", format!("{:.1} % of the hosts that are on", sum.load_mean_percent)),
        ("happiness", happiness),
        (
            "overload",
            format!("{:.0} host-minutes, {:.4} % of CPU not given", sum.overload_host_min, sum.unmet_percent),
        ),
        ("moves", moves(sum)),
        (
            "there and back",
            format!("{} within an hour, {:.2} % of moves", sum.moves_in_vain, sum.ping_pong_percent),
        ),
        (
            "moved",
            format!(
                "{}, {:.0} s of CPU, {:.1} s of blackouts",
                gib(sum.moved_gib),
                sum.migration_cpu_s,
                sum.blackout_s
            ),
        ),
        ("rules", format!("{} times broken when a step began", sum.broken_rules)),
    ];
    if sum.switches > 0 {
        let switched =
            format!("{}, {} of them within an hour of the last time", sum.switches, sum.switches_in_vain);
        rows.push(("hosts switched", switched));
    }
    if sum.refused + sum.superseded > 0 {
        rows.push(("not done", format!("{} refused, {} left to the next plan", sum.refused, sum.superseded)));
    }
    if sum.waiting > 0 {
        rows.push(("waiting", format!("{} VMs run nowhere in the end", sum.waiting)));
    }
    rows
}

fn moves(sum: &Summary) -> String {
    format!(
        "{}, {:.2} a day for each VM, at most {} in a step",
        sum.moves, sum.moves_per_vm_day, sum.moves_in_step_max
    )
}
