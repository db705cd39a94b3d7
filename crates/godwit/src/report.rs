//! Migrations in words: the line while one runs, and the report at its end.

use godwit_types::Bytes;
use godwit_types::forecast::{Estimate, Predicted};
use godwit_types::migration::{
    Comparison, GuestClock, MigrationProgress, MigrationReport, Phase, PostCopyReport, SlowedVcpu,
    Verification,
};

use crate::forecast;
use crate::output::fields;

/// The report at the end of a migration.
pub(crate) fn report(report: &MigrationReport) -> String {
    let blackout = &report.blackout;
    let bytes = &report.bytes;
    let predicted = report.predicted.as_ref();
    let forecast = |pick: fn(&Predicted) -> &Estimate| {
        let told = predicted.map(|predicted| format!(", forecast {}", forecast::range(pick(predicted))));
        told.unwrap_or_default()
    };
    let mut rows = vec![
        ("moved", format!("{} -> {}", report.from, report.to)),
        ("total", format!("{:.0} ms{}", report.total_ms, forecast(|predicted| &predicted.total_ms))),
        (
            "blackout",
            format!(
                "{:.1} ms (predicted {:.1} ms){}",
                blackout.total_ms,
                report.predicted_blackout_ms,
                forecast(|predicted| &predicted.blackout_ms)
            ),
        ),
        ("  stop", format!("{:.1} ms", blackout.stop_ms)),
        ("  drain", format!("{:.1} ms", blackout.drain_ms)),
        ("  last pages", format!("{:.1} ms", blackout.last_pages_ms)),
        ("  state", format!("{:.1} ms", blackout.state_ms)),
        ("  commit", format!("{:.1} ms", blackout.commit_ms)),
        ("  claim", format!("{:.1} ms", blackout.claim_ms)),
        ("  locks", format!("{:.1} ms", blackout.locks_ms)),
        ("  resume", format!("{:.1} ms", blackout.resume_ms)),
        (
            "  then first packet",
            blackout.first_packet_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms")),
        ),
        ("rounds", report.rounds.to_string()),
        ("sent", Bytes(bytes.sent).to_string()),
        ("  pages", format!("{} in {} pages", Bytes(bytes.raw), bytes.raw_pages)),
        (
            "  packed",
            format!(
                "{} for {} pages, {} as deltas",
                Bytes(bytes.packed),
                bytes.packed_pages,
                bytes.delta_pages
            ),
        ),
        ("  zero pages", format!("{} named, not sent", bytes.zero_pages)),
        ("  reused pages", format!("{} kept at the destination, not sent", bytes.reused_pages)),
        ("  state", Bytes(bytes.state).to_string()),
        ("  overhead", Bytes(bytes.overhead).to_string()),
        ("goodput", rate(report.goodput_bytes_per_s)),
    ];
    rows.extend(report.slowed.iter().map(slowed));
    rows.extend(report.post_copy.iter().flat_map(|rest| post_copy(rest)));
    rows.extend(report.guest_clock.iter().map(|clock| ("guest clock", guest_clock(*clock))));
    rows.extend(report.verified.iter().map(|verified| ("verified", verification(verified))));
    fields(&rows)
}

/// What a vCPU lost of its speed.
fn slowed(vcpu: &SlowedVcpu) -> (&'static str, String) {
    let SlowedVcpu { vcpu, mean_percent, highest_percent, time_ms } = vcpu;
    let told =
        format!("vCPU {vcpu} by {mean_percent:.0} % for {time_ms:.0} ms, {highest_percent:.0} % at most");
    ("slowed", told)
}

/// How the rest of memory followed.
fn post_copy(rest: &PostCopyReport) -> [(&'static str, String); 4] {
    let waits = format!(
        "{} for {:.1} ms in all, {:.1} ms at most",
        rest.faults, rest.waited_ms, rest.longest_wait_ms
    );
    [
        ("post-copy", format!("{} pages", rest.pages)),
        ("  all there", format!("{:.0} ms after the resume", rest.rest_ms)),
        ("  waits", waits),
        ("  reconnects", rest.reconnects.to_string()),
    ]
}

/// What became of the guest's clock.
fn guest_clock(GuestClock { error_ms, within_ms, hosts_differ_ms }: GuestClock) -> String {
    format!(
        "{error_ms:+.2} ms, give or take {within_ms:.2} ms; the hosts' clocks differ by {hosts_differ_ms:+.2} ms"
    )
}

/// Whether memory arrived as it was.
fn verification(verified: &Verification) -> String {
    let Verification { memory, size, here, there, took_ms } = verified;
    let digest = |side: &Option<String>| side.clone().unwrap_or_else(|| "unknown".to_owned());
    match memory {
        Comparison::Same => {
            format!("{size} of memory are the same, digest {}, {took_ms:.0} ms", digest(here))
        }
        Comparison::Different => {
            format!(
                "MEMORY DIFFERS: digest {} at the source, {} at the destination",
                digest(here),
                digest(there)
            )
        }
        Comparison::Unknown => {
            "nothing to compare: the guest began anew meanwhile, or a side could not read its memory"
                .to_owned()
        }
    }
}

/// One line of progress.
pub(crate) fn progress(progress: &MigrationProgress) -> String {
    let phase = match progress.phase {
        Phase::Preflight => "preflight",
        Phase::PreCopy => "pre-copy",
        Phase::Switchover => "switchover",
        Phase::Commit => "commit",
        Phase::Resume => "resume",
        Phase::PostCopy => "post-copy",
        Phase::Verify => "verify",
        Phase::Done => "done",
    };
    let mut parts = vec![format!("{phase:10}")];
    if progress.phase >= Phase::PreCopy {
        parts.push(format!("round {}", progress.round));
        parts.push(format!("{} left", progress.remaining));
        parts.push(rate(progress.goodput_bytes_per_s));
    }
    if progress.dirty_bytes_per_s > 0 {
        parts.push(format!("guest writes {}", rate(progress.dirty_bytes_per_s)));
    }
    if progress.slowdown_percent > 0.0 {
        parts.push(format!("slowed {:.0} %", progress.slowdown_percent));
    }
    if let Some(ms) = progress.predicted_finish_ms {
        parts.push(format!("done in {}", seconds(ms)));
    }
    if let Some(ms) = progress.predicted_blackout_ms {
        parts.push(format!("blackout {ms:.0} ms"));
    }
    parts.join("  ")
}

/// How far a migration's memory is, of 1000, by what is left of the round.
pub(crate) fn permille(progress: &MigrationProgress, memory: Bytes) -> u64 {
    match progress.phase {
        Phase::Preflight => 0,
        Phase::PreCopy | Phase::Switchover | Phase::PostCopy => {
            let left = progress.remaining.0.min(memory.0);
            (memory.0 - left).saturating_mul(1000) / memory.0.max(1)
        }
        Phase::Commit | Phase::Resume | Phase::Verify | Phase::Done => 1000,
    }
}

pub(crate) fn rate(bytes_per_s: u64) -> String {
    format!("{:.1} MiB/s", bytes_per_s as f64 / f64::from(1 << 20))
}

fn seconds(ms: u64) -> String {
    if ms < 10_000 { format!("{:.1} s", ms as f64 / 1000.0) } else { format!("{} s", ms / 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_round_remaining_goodput_finish_and_blackout() {
        let line = progress(&MigrationProgress {
            phase: Phase::PreCopy,
            round: 2,
            bytes_sent: 1 << 20,
            remaining: Bytes::mib(64),
            goodput_bytes_per_s: 500 << 20,
            dirty_bytes_per_s: 10 << 20,
            predicted_blackout_ms: Some(130.4),
            predicted_finish_ms: Some(1500),
            slowdown_percent: 40.0,
            elapsed_ms: 900,
        });
        for part in
            ["round 2", "64MiB left", "500.0 MiB/s", "slowed 40 %", "done in 1.5 s", "blackout 130 ms"]
        {
            assert!(line.contains(part), "{part} is missing from: {line}");
        }
    }
}
