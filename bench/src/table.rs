//! The result for people.

use comfy_table::{CellAlignment, Table, presets};

use crate::blackout::Shuttle;
use crate::evacuate;
use crate::goodput::Goodput;
use crate::ratio::Ratio;
use crate::returns::Return;
use crate::row::Row;

const MEBIBYTE: f64 = 1_048_576.0;

/// One line for each row.
pub(crate) fn rows(rows: &[Row]) -> String {
    let header = [
        "case",
        "engine",
        "total ms",
        "p99",
        "blackout ms",
        "p99",
        "lost ms",
        "full speed ms",
        "goodput MiB/s",
        "sent MiB",
        "says ms",
        "foretold ms",
        "says total ms",
        "foretold",
        "gap before ms",
        "runs",
    ];
    let lines = rows.iter().map(|row| {
        let total = if row.converged_runs == 0 && row.total_ms.is_some() {
            format!("not in {}", number(row.total_ms, 0))
        } else {
            number(row.total_ms, 0)
        };
        vec![
            row.case.clone(),
            row.engine.clone(),
            total,
            number(row.total_ms_p99, 0),
            number(row.blackout_ms, 1),
            number(row.blackout_ms_p99, 1),
            number(row.brownout_lost_ms, 0),
            number(row.full_speed_ms, 0),
            number(row.goodput_bytes_per_s.map(|rate| rate / MEBIBYTE), 0),
            number(row.bytes_sent.map(|bytes| bytes / MEBIBYTE), 0),
            number(row.reported_blackout_ms, 1),
            number(row.foretold_blackout_ms, 1),
            number(row.reported_total_ms, 0),
            number(row.foretold_total_ms, 0),
            number(row.undisturbed_gap_ms, 1),
            runs(row),
        ]
    });
    table(&header, lines)
}

/// One line for each engine that Godwit is compared with.
pub(crate) fn ratios(ratios: &[Ratio]) -> String {
    let header =
        ["godwit against", "total", "blackout", "lost", "cases", "godwit converged", "the other converged"];
    let lines = ratios.iter().map(|ratio| {
        vec![
            ratio.against.to_owned(),
            number(ratio.total_ratio, 2),
            number(ratio.blackout_ratio, 2),
            number(ratio.brownout_ratio, 2),
            ratio.cases.to_string(),
            ratio.godwit_converged.to_string(),
            ratio.other_converged.to_string(),
        ]
    });
    table(&header, lines)
}

/// One line for each way that memory went.
pub(crate) fn goodputs(goodputs: &[Goodput]) -> String {
    let header = ["way", "streams", "GB/s", "CPU s/GB", "of its peer", "runs"];
    let lines = goodputs.iter().map(|goodput| {
        vec![
            goodput.engine.to_owned(),
            goodput.streams.to_string(),
            number(Some(goodput.goodput_bytes_per_s / 1e9), 2),
            number(Some(goodput.cpu_s_per_gb), 2),
            number(goodput.of_peer, 2),
            goodput.runs.to_string(),
        ]
    });
    table(&header, lines)
}

/// One line for the total, the blackout, and each of its parts.
pub(crate) fn shuttle(shuttle: &Shuttle) -> String {
    let header = ["ms", "", "median", "p99"];
    let lines = shuttle.parts.iter().map(|part| {
        vec![
            part.part.to_owned(),
            String::new(),
            number(Some(part.median_ms), 1),
            number(Some(part.p99_ms), 1),
        ]
    });
    table(&header, lines)
}

/// One line for each count of VMs.
pub(crate) fn evacuations(rows: &[evacuate::Row]) -> String {
    let header = [
        "VMs",
        "at once",
        "total ms",
        "bytes need ms",
        "of need",
        "blackout ms",
        "worst",
        "of alone",
        "worst",
        "says ms",
        "worst",
        "gap before ms",
        "sent MiB",
        "runs",
    ];
    let lines = rows.iter().map(|row| {
        vec![
            row.vms.to_string(),
            row.moves_max.to_string(),
            number(row.total_ms, 0),
            number(row.bytes_need_ms, 0),
            number(row.of_need, 2),
            number(row.blackout_ms, 1),
            number(row.blackout_ms_worst, 1),
            number(row.of_alone, 2),
            number(row.worst_of_alone, 2),
            number(row.reported_ms, 1),
            number(row.reported_ms_worst, 1),
            number(row.undisturbed_gap_ms, 1),
            number(row.bytes_sent.map(|bytes| bytes / MEBIBYTE), 0),
            row.runs.to_string(),
        ]
    });
    table(&header, lines)
}

/// One line for each guest that has come home.
pub(crate) fn returns(returns: &[Return]) -> String {
    let header = [
        "content",
        "changed %",
        "first MiB",
        "back MiB",
        "% of the bytes",
        "first ms",
        "back ms",
        "reused",
        "sent",
    ];
    let lines = returns.iter().map(|found| {
        vec![
            found.content.to_owned(),
            found.changed_percent.to_string(),
            number(Some(found.first_bytes as f64 / MEBIBYTE), 1),
            number(Some(found.back_bytes as f64 / MEBIBYTE), 1),
            number(Some(found.bytes_ratio * 100.0), 2),
            number(Some(found.first_ms), 0),
            number(Some(found.back_ms), 0),
            found.reused_pages.to_string(),
            found.sent_pages.to_string(),
        ]
    });
    table(&header, lines)
}

fn runs(row: &Row) -> String {
    match row.errors.len() {
        0 if row.converged => row.runs.to_string(),
        0 => format!("{} of {} converged", row.converged_runs, row.runs),
        wrong => format!("{wrong} of {} WENT WRONG", row.runs),
    }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn table(header: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    /// Columns of text; those after them are numbers.
    const TEXTS: usize = 2;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(lines);
    for column in table.column_iter_mut().skip(TEXTS) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
