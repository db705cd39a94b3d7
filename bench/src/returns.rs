//! What the way home costs a VM that has changed so much of its memory meanwhile, against its first trip.

use std::time::Duration;

use godwit_lab::setup::say;
use godwit_types::Bytes;
use godwit_types::migration::MigrationReport;
use serde::Serialize;

use crate::case::{Case, Load, RETURN};
use crate::engine::{Bed, Running as _, Terms};
use crate::error::Result;
use crate::godwit::GodwitVm;
use crate::run::check_memory;
use crate::watch::Watch;

/// How much of its filled memory the guest changes between the trips, in percent.
const CHANGED_PERCENT: [u64; 3] = [1, 5, 25];
/// How long a guest may take to boot and fill its memory, to change the part, to move, and to check all of it.
const LIMIT: Duration = Duration::from_secs(120);
const TERMS: Terms = Terms { limit: LIMIT, blackout_ms_max: None };

/// One guest there and back.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Return {
    pub(crate) memory: Bytes,
    pub(crate) content: &'static str,
    pub(crate) changed_percent: u64,
    pub(crate) first_bytes: u64,
    pub(crate) back_bytes: u64,
    /// The way back against the first trip.
    pub(crate) bytes_ratio: f64,
    pub(crate) first_ms: f64,
    pub(crate) back_ms: f64,
    pub(crate) reused_pages: u64,
    /// Pages whose contents went on the way back.
    pub(crate) sent_pages: u64,
}

/// Every part and content once, each told as soon as it is known.
pub(crate) fn measure(memory_mib: u64, mut tell: impl FnMut(&Return) -> Result<()>) -> Result<Vec<Return>> {
    let bed = Bed::start()?;
    let mut returns = Vec::new();
    for content in ["random", "compressible"] {
        for changed_percent in CHANGED_PERCENT {
            let load = Load::Part { percent: changed_percent };
            let case = Case { memory_mib, content, load, ..RETURN };
            let found = there_and_back(&bed, &case, changed_percent)?;
            say(format_args!(
                "{content}, {changed_percent} % changed: {:.2} % of the bytes, {:.0} ms against {:.0} ms",
                found.bytes_ratio * 100.0,
                found.back_ms,
                found.first_ms
            ));
            tell(&found)?;
            returns.push(found);
        }
    }
    Ok(returns)
}

fn there_and_back(bed: &Bed, case: &Case, changed_percent: u64) -> Result<Return> {
    let name = format!("return-{}-{changed_percent}", case.content);
    let mut vm = GodwitVm::boot(bed, case, &name, None)?;
    let moved = trips(case, &mut vm);
    let ended = Box::new(vm).end();
    let (first, back) = moved?;
    ended?;
    Ok(Return {
        memory: Bytes::mib(case.memory_mib),
        content: case.content,
        changed_percent,
        first_bytes: first.bytes.sent,
        back_bytes: back.bytes.sent,
        bytes_ratio: back.bytes.sent as f64 / first.bytes.sent as f64,
        first_ms: first.total_ms,
        back_ms: back.total_ms,
        reused_pages: back.bytes.reused_pages,
        sent_pages: back.bytes.raw_pages + back.bytes.packed_pages,
    })
}

fn trips(case: &Case, vm: &mut GodwitVm<'_>) -> Result<(MigrationReport, MigrationReport)> {
    let watch = Watch::start(&vm.consoles());
    let pages = case.working_set().pages();
    watch.wait_for("filling the guest's memory", LIMIT, |heard| heard.pulse.written >= pages)?;
    let first = vm.move_on(TERMS)?;
    let written = watch.wait_for("the guest's pulse", LIMIT, |_| true)?.pulse.written;
    let changed = written + case.changing_pages();
    watch.wait_for("changing a part of memory", LIMIT, |heard| heard.pulse.written >= changed)?;
    // The console's log begins anew where the guest has been before.
    drop(watch);
    let back = vm.move_on(TERMS)?;
    let watch = Watch::start(&vm.consoles());
    check_memory(&watch, vm)?;
    Ok((first, back))
}
