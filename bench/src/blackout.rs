//! One VM, moved to and fro many times by Godwit alone: its blackout, part by part, by the engine's own account. That the
//! account is true is for `run` to show, whose guests see their blackouts themselves.

use std::time::Duration;

use godwit_lab::setup::say;
use godwit_types::Bytes;
use godwit_types::migration::{Blackout, MigrationReport};
use serde::Serialize;

use crate::case::{Case, Load, SMALL};
use crate::engine::{Bed, Running, Terms};
use crate::error::Result;
use crate::foresight::Foresight;
use crate::godwit::GodwitVm;
use crate::run::FILL_LIMIT;
use crate::stats::{median, p99};
use crate::watch::Watch;

/// Between two moves: a guest that has just arrived is left alone.
const PAUSE: Duration = Duration::from_millis(200);
/// Moves are told of as they come, but not each.
const TELL_EVERY: u32 = 10;

/// One part of a blackout.
type PartOf = fn(&Blackout) -> f64;

/// The parts of a blackout, in their order.
const PARTS: [(&str, PartOf); 9] = [
    ("blackout", |blackout| blackout.total_ms),
    ("  stop", |blackout| blackout.stop_ms),
    ("  drain", |blackout| blackout.drain_ms),
    ("  last pages", |blackout| blackout.last_pages_ms),
    ("  state", |blackout| blackout.state_ms),
    ("  commit", |blackout| blackout.commit_ms),
    ("  claim", |blackout| blackout.claim_ms),
    ("  locks", |blackout| blackout.locks_ms),
    ("  resume", |blackout| blackout.resume_ms),
];

/// What is moved, and how.
pub(crate) struct Wanted {
    pub(crate) memory: Bytes,
    pub(crate) load: Load,
    pub(crate) moves: u32,
    pub(crate) post_copy: bool,
    pub(crate) terms: Terms,
}

/// A part of the blackout, or the total time, over all moves, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Part {
    pub(crate) part: &'static str,
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
}

/// All moves together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Shuttle {
    pub(crate) case: String,
    pub(crate) engine: &'static str,
    pub(crate) moves: usize,
    pub(crate) parts: Vec<Part>,
    /// Of moves by post-copy: the longest that the guest waited for a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) longest_wait_ms: Option<f64>,
    pub(crate) post_copies: usize,
    pub(crate) foresight: Foresight,
}

/// Boots the VM, moves it to and fro, and ends it.
pub(crate) fn measure(bed: &Bed, wanted: &Wanted) -> Result<Shuttle> {
    let name = format!("{}-{}", wanted.load.name(), wanted.memory.to_string().to_lowercase());
    let case = Case { name: "blackout", memory_mib: wanted.memory.0 >> 20, load: wanted.load, ..SMALL };
    let option = wanted.post_copy.then_some("--post-copy");
    let mut vm = GodwitVm::boot(bed, &case, &name, option)?;
    let reports = fill(&vm, &case).and_then(|()| shuttle(&mut vm, wanted));
    let ended = Box::new(vm).end();
    let reports = reports?;
    ended.map(|()| sum_up(name, wanted, &reports))
}

fn fill(vm: &GodwitVm<'_>, case: &Case) -> Result<()> {
    let watch = Watch::start(&vm.consoles());
    let pages = case.working_set().pages();
    watch.wait_for("filling the guest's memory", FILL_LIMIT, |heard| heard.pulse.written >= pages).map(drop)
}

fn shuttle(vm: &mut GodwitVm<'_>, wanted: &Wanted) -> Result<Vec<MigrationReport>> {
    let mut reports = Vec::new();
    for number in 1..=wanted.moves {
        std::thread::sleep(PAUSE);
        let report = vm.move_on(wanted.terms)?;
        if number == 1 || number % TELL_EVERY == 0 || number == wanted.moves {
            say(format_args!("move {number} of {}: {}", wanted.moves, told(&report)));
        }
        reports.push(report);
    }
    Ok(reports)
}

fn told(report: &MigrationReport) -> String {
    let foretold = report.predicted.as_ref().map_or_else(String::new, |foretold| {
        let (total, blackout) = (foretold.total_ms.expected, foretold.blackout_ms.expected);
        format!("; foretold {total:.0} and {blackout:.1}")
    });
    format!("{:.0} ms, blackout {:.1} ms{foretold}", report.total_ms, report.blackout.total_ms)
}

fn sum_up(case: String, wanted: &Wanted, reports: &[MigrationReport]) -> Shuttle {
    let part = |part, value: &dyn Fn(&MigrationReport) -> f64| {
        let values: Vec<f64> = reports.iter().map(value).collect();
        let of = |number: Option<f64>| number.unwrap_or_default();
        Part { part, median_ms: of(median(&values)), p99_ms: of(p99(&values)) }
    };
    let total = part("total", &|report| report.total_ms);
    let blackout = PARTS.iter().map(|(name, value)| part(name, &|report| value(&report.blackout)));
    let post_copies: Vec<_> = reports.iter().filter_map(|report| report.post_copy.as_deref()).collect();
    let waits = post_copies.iter().map(|post_copy| post_copy.longest_wait_ms);
    Shuttle {
        case,
        engine: if wanted.post_copy { "godwit-postcopy" } else { "godwit" },
        moves: reports.len(),
        parts: std::iter::once(total).chain(blackout).collect(),
        longest_wait_ms: waits.reduce(f64::max),
        post_copies: post_copies.len(),
        foresight: Foresight::of_reports(reports),
    }
}
