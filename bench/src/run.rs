//! One run: a VM boots, settles, moves, and is asked whether all its memory came along.

use std::time::{Duration, Instant};

use godwit_guest_contract::pulse::SWEEP;
use godwit_types::Bytes;

use crate::case::Case;
use crate::engine::{Bed, Engine, Reported, Running, Terms};
use crate::error::{BenchError, Result};
use crate::link::{self, Cap};
use crate::measure::{self, Disturbed, Undisturbed};
use crate::warm::Warm;
use crate::watch::Watch;

/// The pause before each run. Where the machine is itself a virtual one, it gives memory that was freed back to its host
/// some two seconds later, and stands still meanwhile: what one run leaves behind must not be measured in the next.
pub(crate) const PAUSE: Duration = Duration::from_secs(2);
/// How long a guest may take to boot and fill its memory.
pub(crate) const FILL_LIMIT: Duration = Duration::from_secs(90);
/// Once filled, a guest is left alone for so long, then measured undisturbed for so long.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);
pub(crate) const UNDISTURBED: Duration = Duration::from_millis(1500);
/// That is tried so often: a guest that sees larger gaps than this when nothing moves shares its CPUs with somebody.
const UNDISTURBED_TRIES: u32 = 6;
pub(crate) const NOISY_MS: f64 = 10.0;
/// After the migration's end, what the guest loses still counts for so long.
pub(crate) const AFTERMATH: Duration = Duration::from_secs(1);
/// How long a guest may be silent, and how long it may take to check all its memory.
pub(crate) const PULSE_LIMIT: Duration = Duration::from_secs(20);
pub(crate) const SWEEP_LIMIT: Duration = Duration::from_secs(120);
/// A clock that has lost this much has stood still; less is the jitter of a line's arrival.
const CLOCK_SLACK_MS: f64 = 100.0;

/// What one run has shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) converged: bool,
    pub(crate) total_ms: f64,
    pub(crate) noticed: Disturbed,
    pub(crate) undisturbed_gap_ms: f64,
    pub(crate) bytes_sent: u64,
    pub(crate) reported: Option<Reported>,
}

/// Boots a VM of the case, moves it on these terms, and ends it.
pub(crate) fn run(bed: &Bed, case: &Case, engine: Engine, name: &str, terms: Terms) -> Result<Run> {
    std::thread::sleep(PAUSE);
    let _cap = Cap::set(bed, case.link_bits_per_s)?;
    let mut vm = engine.boot(bed, case, name)?;
    let seen = observe(bed, case, vm.as_mut(), terms);
    let ended = vm.end();
    let run = seen?;
    ended.map(|()| run)
}

fn observe(bed: &Bed, case: &Case, vm: &mut dyn Running, terms: Terms) -> Result<Run> {
    let watch = Watch::start(&vm.consoles());
    let pages = case.working_set().pages();
    watch.wait_for("filling the guest's memory", FILL_LIMIT, |heard| heard.pulse.written >= pages)?;
    std::thread::sleep(SETTLE);
    let warm = Warm::hold(Bytes::mib(case.memory_mib))?;
    let undisturbed = measure_undisturbed(&watch, case)?;

    let sent_before = link::sent_bytes(bed)?;
    drop(warm);
    let moved = vm.migrate(terms)?;
    let bytes_sent = link::sent_bytes(bed)? - sent_before;
    let (begun, settled) = (watch.since_start(moved.begun), watch.since_start(moved.ended) + AFTERMATH);
    watch
        .wait_for("the guest's pulse after the move", AFTERMATH + PULSE_LIMIT, |heard| heard.at >= settled)?;
    let noticed = measure::disturbed(&watch.heard(), case.load, &undisturbed, begun, settled);
    let noticed = noticed.ok_or(BenchError::Unheard)?;
    if noticed.clock_lost_ms > CLOCK_SLACK_MS {
        eprintln!(
            "warning: the guest's clock stood still for {:.0} ms: its blackout is counted too low",
            noticed.clock_lost_ms
        );
    }
    check_memory(&watch, vm)?;
    Ok(Run {
        converged: moved.converged,
        total_ms: (moved.ended - moved.begun).as_secs_f64() * 1e3,
        noticed,
        undisturbed_gap_ms: undisturbed.gap_ms,
        bytes_sent,
        reported: moved.reported,
    })
}

/// Leaves the guest alone, until a time has passed in which the machine did so as well; or for as long as it is worth.
fn measure_undisturbed(watch: &Watch, case: &Case) -> Result<Undisturbed> {
    let mut tries = UNDISTURBED_TRIES;
    loop {
        let from = watch.since_start(Instant::now());
        let to = from + UNDISTURBED;
        watch.wait_for("the guest's pulse before the move", UNDISTURBED + PULSE_LIMIT, |heard| {
            heard.at >= to
        })?;
        let found = measure::undisturbed(&watch.heard(), case.load, from, to).ok_or(BenchError::Unheard)?;
        tries -= 1;
        if found.gap_ms <= NOISY_MS || tries == 0 {
            return Ok(found);
        }
    }
}

/// Has the guest check every page.
pub(crate) fn check_memory(watch: &Watch, vm: &mut dyn Running) -> Result<()> {
    vm.type_byte(SWEEP)?;
    let swept = watch.wait_for("the check of all memory", SWEEP_LIMIT, |heard| {
        heard.pulse.sweeps > 0 || heard.pulse.errors > 0
    })?;
    match swept.pulse.errors {
        0 => Ok(()),
        count => Err(BenchError::MemoryErrors { count, console: watch.last_words() }),
    }
}
