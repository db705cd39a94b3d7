//! Forecasts in words: the table of a plan, and the line at the start of a migration.

use godwit_types::Bytes;
use godwit_types::forecast::{Basis, Estimate, Forecast, KnownFrom, Outlook, Predicted};
use godwit_types::migration::Budget;

use crate::output::{fields, table};

const MEBIBYTE: f64 = 1_048_576.0;

/// The numbers with their ranges, whether the budget is met, and what that is concluded from.
pub(crate) fn describe(told: &Forecast, budget: &Budget) -> String {
    let row = |what: &str, range: &Estimate, show: fn(f64) -> String, allowed: String| {
        vec![
            what.to_owned(),
            show(range.expected),
            format!("{} to {}", show(range.low), show(range.high)),
            allowed,
        ]
    };
    let numbers = table(
        &["", "EXPECTED", "RANGE", "ALLOWED"],
        [
            row("total", &told.total_ms, time, format!("{} until it stops", time(budget.deadline_ms as f64))),
            row("blackout", &told.blackout_ms, time, time(budget.blackout_ms_max.into())),
            row("slow-down", &told.slowdown_percent, percent, percent(budget.slowdown_percent_max.into())),
            row("guest loses", &told.lost_ms, time, String::new()),
            row("rounds", &told.rounds, |rounds| format!("{rounds:.0}"), String::new()),
            row("sent", &told.sent_bytes, size, String::new()),
        ],
    );
    let mut rows = vec![("budget", outlook(told.outlook).to_owned())];
    rows.extend(told.reason.iter().map(|reason| ("because", reason.clone())));
    rows.extend(told.remedies.iter().map(|remedy| ("would do", remedy.clone())));
    rows.extend(basis(&told.basis));
    format!("{numbers}\n\n{}", fields(&rows))
}

/// One line at the start of a migration.
pub(crate) fn line(told: &Forecast) -> String {
    let predicted = Predicted::from(told);
    let line = format!(
        "expected: {} in all, blackout {}",
        range(&predicted.total_ms),
        range(&predicted.blackout_ms)
    );
    match &told.reason {
        Some(reason) if !told.outlook.is_expected() => {
            format!("{line}\nwarning: the budget is {}: {reason}", outlook(told.outlook))
        }
        _ => line,
    }
}

/// What is expected, and the range in brackets.
pub(crate) fn range(range: &Estimate) -> String {
    format!("{} ({} to {})", time(range.expected), time(range.low), time(range.high))
}

const fn outlook(outlook: Outlook) -> &'static str {
    match outlook {
        Outlook::Met => "met, also at the bad end of the ranges",
        Outlook::Likely => "probably met, but not at the bad end of the ranges",
        Outlook::Unlikely => "probably NOT met, unless all goes well",
        Outlook::Missed => "NOT met",
    }
}

fn basis(basis: &Basis) -> [(&'static str, String); 2] {
    let guest = format!(
        "{} of memory, {} of it zeros; wrote {} in {}, at the end {:.1} MiB/s that it had not written before",
        basis.memory,
        size(basis.zero.0 as f64),
        size(basis.written.0 as f64),
        time(basis.sample_ms),
        basis.fresh_bytes_per_s / MEBIBYTE
    );
    let known = match basis.link.known_from {
        KnownFrom::Pair { migrations } => format!("earlier moves between the two hosts: {migrations}"),
        KnownFrom::Source { migrations } => format!("earlier moves from this host to others: {migrations}"),
        KnownFrom::Interface { bits_per_s } => {
            format!("an interface of {} Mbit/s, and no move yet", bits_per_s / 1_000_000)
        }
        KnownFrom::Assumption => "assumed, since no move has told yet".to_owned(),
    };
    let rate = &basis.link.bytes_per_s;
    let [low, expected, high] = [rate.low, rate.expected, rate.high].map(|rate| rate / MEBIBYTE);
    let kept = match basis.link.kept_part.expected * 100.0 {
        kept if kept < 1.0 => String::new(),
        kept => format!(", of which {kept:.0} % are still there from before and not sent"),
    };
    let link = format!("{expected:.0} MiB/s ({low:.0} to {high:.0}){kept}, {known}");
    [("guest", guest), ("link", link)]
}

fn time(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

fn percent(percent: f64) -> String {
    format!("{percent:.0} %")
}

fn size(bytes: f64) -> String {
    Bytes(bytes as u64).to_string()
}

#[cfg(test)]
mod tests {
    use godwit_types::forecast::Link;

    use super::*;

    fn forecast(outlook: Outlook) -> Forecast {
        let range = |expected: f64| Estimate { low: expected / 2.0, expected, high: expected * 2.0 };
        let link = Link {
            bytes_per_s: range(100.0 * MEBIBYTE),
            later_bytes_per_s: range(200.0 * MEBIBYTE),
            handoff_ms: range(10.0),
            kept_part: Estimate::default(),
            known_from: KnownFrom::Assumption,
        };
        Forecast {
            outlook,
            total_ms: range(2500.0),
            blackout_ms: range(40.0),
            rounds: range(4.0),
            sent_bytes: range(512.0 * MEBIBYTE),
            lost_ms: range(30.0),
            slowdown_percent: range(40.0),
            reason: (outlook != Outlook::Met).then(|| "the guest writes too much".to_owned()),
            remedies: vec!["--max-blackout 200ms: blackout 150 ms after 3.0 s".to_owned()],
            basis: Basis {
                memory: Bytes::mib(1024),
                zero: Bytes::mib(512),
                sample_ms: 1000.0,
                written: Bytes::mib(20),
                fresh_bytes_per_s: MEBIBYTE,
                link,
            },
        }
    }

    #[test]
    fn the_table_tells_what_is_expected_allowed_and_why() {
        let text = describe(&forecast(Outlook::Missed), &Budget::default());
        let parts = [
            "2.5 s",
            "1.2 s to 5.0 s",
            "40 ms",
            "20 ms to 80 ms",
            "50 ms",
            "20 % to 80 %",
            "NOT met",
            "writes too much",
            "--max-blackout 200ms",
            "512MiB of it zeros",
            "100 MiB/s (50 to 200), assumed",
        ];
        for part in parts {
            assert!(text.contains(part), "{part} is missing from:\n{text}");
        }
    }

    #[test]
    fn only_a_budget_that_is_not_expected_to_be_met_is_warned_of_at_the_start() {
        let line = |outlook| super::line(&forecast(outlook));
        assert_eq!(
            line(Outlook::Met),
            "expected: 2.5 s (1.2 s to 5.0 s) in all, blackout 40 ms (20 ms to 80 ms)"
        );
        assert!(!line(Outlook::Likely).contains("warning"));
        assert!(line(Outlook::Unlikely).contains("warning: the budget is probably NOT met"));
    }
}
