//! The demo's result for people: one column for each move.

use std::fmt;

use godwit_types::Bytes;

use super::{DemoReport, Move};

const LABEL_COLUMNS: usize = 34;
const CELL_COLUMNS: usize = 18;

type Cell = fn(&Move) -> String;

const ROWS: [(&str, Cell); 24] = [
    ("total time", |m| ms(m.total_ms)),
    ("blackout", |m| ms(m.blackout_ms)),
    ("  stop vCPUs", |m| ms(m.blackout.stop_ms)),
    ("  drain devices", |m| ms(m.blackout.drain_ms)),
    ("  last pages", |m| ms(m.blackout.last_pages_ms)),
    ("  device state", |m| ms(m.blackout.state_ms)),
    ("  commit", |m| ms(m.blackout.commit_ms)),
    ("  claim", |m| ms(m.blackout.claim_ms)),
    ("  disk locks", |m| ms(m.blackout.locks_ms)),
    ("  resume", |m| ms(m.blackout.resume_ms)),
    ("  then first packet", |m| m.blackout.first_packet_ms.map_or_else(|| "-".into(), ms)),
    ("blackout as predicted", |m| ms(m.predicted_blackout_ms)),
    ("blackout as the guest saw it", |m| ms(m.guest_gap_ms)),
    ("network silence", |m| ms(m.network_silence_ms)),
    ("rounds", |m| m.rounds.to_string()),
    ("bytes sent", |m| size(m.bytes_sent)),
    ("  page contents", |m| size(m.bytes.raw)),
    ("  device state", |m| size(m.bytes.state)),
    ("  framing", |m| size(m.bytes.overhead)),
    ("zero pages, not sent", |m| m.zero_pages.to_string()),
    ("requests answered", |m| m.requests_answered.to_string()),
    ("requests failed", |m| m.requests_failed.to_string()),
    ("acknowledged writes lost", |m| format!("{} of {}", m.writes_lost + m.disk_errors, m.writes_checked)),
    ("memory errors", |m| m.memory_errors.to_string()),
];

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:LABEL_COLUMNS$}", "")?;
        for one in &self.moves {
            write!(f, "{:>CELL_COLUMNS$}", format!("{}→{}", one.from, one.to))?;
        }
        for (label, cell) in ROWS {
            write!(f, "\n{label:LABEL_COLUMNS$}")?;
            for one in &self.moves {
                write!(f, "{:>CELL_COLUMNS$}", cell(one))?;
            }
        }
        Ok(())
    }
}

fn ms(value: f64) -> String {
    if value >= 10_000.0 { format!("{:.1} s", value / 1e3) } else { format!("{value:.1} ms") }
}

fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}
