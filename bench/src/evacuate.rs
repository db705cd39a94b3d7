//! A host is emptied: several VMs are asked for at once, against one alone.
//!
//! ```text
//!   boot all -> settle -> one `vm migrate` with all of them -> aftermath -> each guest checks its memory
//! ```

use std::time::{Duration, Instant};

use clap::Args;
use godwit_lab::cluster::Cluster;
use godwit_lab::fabric::{Fabric, FabricOptions};
use godwit_lab::setup::say;
use godwit_types::Bytes;
use godwit_types::task::{Task, VmMove};
use serde::Serialize;

use crate::case::{Case, Load, SMALL};
use crate::engine::{Bed, Running};
use crate::error::{BenchError, Result};
use crate::godwit::GodwitVm;
use crate::link::{self, Cap};
use crate::machine;
use crate::measure::{self, Undisturbed};
use crate::row::rounded;
use crate::run::{AFTERMATH, FILL_LIMIT, PAUSE, PULSE_LIMIT, SETTLE, UNDISTURBED, check_memory};
use crate::stats::median;
use crate::watch::Watch;

/// How long an evacuation may take.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub(crate) struct Evacuate {
    /// How many VMs move; the first number should be 1, which the others are held against.
    #[arg(long, default_value = "1,2,4,8,16", value_name = "COUNTS", value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..=64))]
    vms: Vec<u16>,
    /// Memory of each VM, of which seven eighths are filled.
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    memory: Bytes,
    /// Migrations at a time [default: as the hosts find fit].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_migrations: Option<u32>,
    /// What each host sends at most for all its migrations, as `godwit host run --migration-bandwidth` [default: no cap].
    #[arg(long, value_name = "SIZE")]
    migration_bandwidth: Option<Bytes>,
    /// What the network between the hosts carries, in Mbit/s [default: what the machine can do].
    #[arg(long, value_name = "MBITS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    link: Option<u64>,
    /// Let the guests rest instead of writing 4 MiB/s each.
    #[arg(long)]
    idle: bool,
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Print one JSON object a line on standard output instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// So many VMs at once, over all repetitions; times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) vms: u16,
    pub(crate) memory_mib: u64,
    /// Most that moved at a time, as the hosts allow.
    pub(crate) moves_max: u32,
    /// From the first request to the last end.
    pub(crate) total_ms: Option<f64>,
    /// What their bytes take at the rate of one alone.
    pub(crate) bytes_need_ms: Option<f64>,
    /// The total as a multiple of that.
    pub(crate) of_need: Option<f64>,
    /// The guests' largest gaps by their own clocks: the middle one and the worst.
    pub(crate) blackout_ms: Option<f64>,
    pub(crate) blackout_ms_worst: Option<f64>,
    /// As multiples of the middle one of one alone.
    pub(crate) of_alone: Option<f64>,
    pub(crate) worst_of_alone: Option<f64>,
    /// The blackouts as Godwit reports them.
    pub(crate) reported_ms: Option<f64>,
    pub(crate) reported_ms_worst: Option<f64>,
    /// The largest gap just before, in the middle one: what this machine does to so many guests anyway.
    pub(crate) undisturbed_gap_ms: Option<f64>,
    pub(crate) goodput_bytes_per_s: Option<f64>,
    pub(crate) bytes_sent: Option<f64>,
    pub(crate) runs: u32,
}

/// Boots, empties and measures, for each count of VMs.
pub(crate) fn measure(options: &Evacuate, mut tell: impl FnMut(&Row) -> Result<()>) -> Result<Vec<Row>> {
    let number = |flag: &str, value: Option<u64>| value.map(|value| [flag.to_owned(), value.to_string()]);
    let limit = number("--max-migrations", options.max_migrations.map(u64::from));
    let cap = number("--migration-bandwidth", options.migration_bandwidth.map(|rate| rate.0));
    let agent_options = limit.into_iter().chain(cap).flatten().collect();
    let bed = Bed::start_with(FabricOptions { agent_options, ..FabricOptions::default() })?;
    let moves_max = moves_max(&bed.fabric, &bed)?;
    let mut rows: Vec<Row> = Vec::new();
    for vms in &options.vms {
        let case = options.case();
        let needed = case.needed_bytes() / 2 * (u64::from(*vms) + u64::from(moves_max));
        if machine::available_bytes().is_some_and(|available| available < needed) {
            say(format_args!("{vms} VMs: SKIPPED, they need {}", Bytes(needed)));
            continue;
        }
        let runs = (1..=options.repeat).map(|repetition| {
            let run = run(&bed, &case, options.link, *vms, repetition)?;
            say(format_args!(
                "{vms} VMs, run {repetition}: {:.0} ms, blackouts {:.1?} ms, reported {:.1?} ms",
                run.total_ms, run.blackouts_ms, run.reported_ms
            ));
            Ok(run)
        });
        let row = Row::new(&runs.collect::<Result<Vec<_>>>()?, &case, (*vms, moves_max), rows.first());
        tell(&row)?;
        rows.push(row);
    }
    Ok(rows)
}

fn moves_max(fabric: &Fabric, bed: &Bed) -> Result<u32> {
    let cluster: &dyn Cluster = fabric;
    let host: godwit_types::host::Host = cluster.cli().ask(&["host", "show", bed.source.as_str()])?;
    Ok(host.facts.migration.moves_max)
}

impl Evacuate {
    fn case(&self) -> Case {
        Case {
            name: "evacuate",
            memory_mib: self.memory.0 >> 20,
            load: if self.idle { Load::Idle } else { Load::Light },
            ..SMALL
        }
    }
}

/// One evacuation.
struct Run {
    total_ms: f64,
    blackouts_ms: Vec<f64>,
    reported_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    busy_ms: Vec<f64>,
    bytes_sent: u64,
}

struct Guest<'a> {
    name: String,
    vm: GodwitVm<'a>,
    watch: Watch,
}

fn run(bed: &Bed, case: &Case, link: Option<u64>, count: u16, repetition: u32) -> Result<Run> {
    std::thread::sleep(PAUSE);
    let _cap = Cap::set(bed, link.map(|mbits| mbits * 1_000_000))?;
    let mut guests = Vec::new();
    for number in 1..=count {
        let name = format!("evacuate-{count}-{repetition}-{number}");
        let vm = GodwitVm::boot(bed, case, &name, None)?;
        let watch = Watch::start(&vm.consoles());
        guests.push(Guest { name, vm, watch });
    }
    let seen = observe(bed, case, &mut guests);
    for Guest { vm, watch, .. } in guests {
        drop(watch);
        Box::new(vm).end()?;
    }
    seen
}

fn observe(bed: &Bed, case: &Case, guests: &mut [Guest<'_>]) -> Result<Run> {
    let pages = case.working_set().pages();
    for guest in &*guests {
        guest
            .watch
            .wait_for("filling the guest's memory", FILL_LIMIT, |heard| heard.pulse.written >= pages)?;
    }
    std::thread::sleep(SETTLE);
    let undisturbed = undisturbed(case, guests)?;
    let sent_before = link::sent_bytes(bed)?;
    let begun = Instant::now();
    let moved = migrate(bed, guests)?;
    let ended = Instant::now();
    let bytes_sent = link::sent_bytes(bed)? - sent_before;
    let mut run = Run {
        total_ms: total_ms(&moved),
        blackouts_ms: Vec::new(),
        reported_ms: Vec::new(),
        gaps_ms: undisturbed.iter().map(|found| found.gap_ms).collect(),
        busy_ms: Vec::new(),
        bytes_sent,
    };
    for ((guest, before), task) in guests.iter_mut().zip(&undisturbed).zip(&moved) {
        let report = task.report.as_ref().ok_or(BenchError::NoReport("report in its task"))?;
        let (from, to) = (guest.watch.since_start(begun), guest.watch.since_start(ended) + AFTERMATH);
        guest
            .watch
            .wait_for("the guest's pulse after the move", AFTERMATH + PULSE_LIMIT, |heard| heard.at >= to)?;
        let noticed = measure::disturbed(&guest.watch.heard(), case.load, before, from, to);
        run.blackouts_ms.push(noticed.ok_or(BenchError::Unheard)?.blackout_ms);
        run.reported_ms.push(report.blackout.total_ms);
        run.busy_ms.push(report.busy_ms);
        guest.vm.has_moved();
    }
    for guest in guests {
        check_memory(&guest.watch, &mut guest.vm)?;
    }
    Ok(run)
}

/// Each guest when nothing moves, all in the same time.
fn undisturbed(case: &Case, guests: &[Guest<'_>]) -> Result<Vec<Undisturbed>> {
    let from = Instant::now();
    let found = guests.iter().map(|Guest { watch, .. }| {
        let (from, to) = (watch.since_start(from), watch.since_start(from) + UNDISTURBED);
        watch.wait_for("the guest's pulse before the move", UNDISTURBED + PULSE_LIMIT, |heard| {
            heard.at >= to
        })?;
        measure::undisturbed(&watch.heard(), case.load, from, to).ok_or(BenchError::Unheard)
    });
    found.collect()
}

/// Moves all, and returns their tasks in the same order.
fn migrate(bed: &Bed, guests: &[Guest<'_>]) -> Result<Vec<Task>> {
    let cluster: &dyn Cluster = &bed.fabric;
    let mut verb = vec!["vm", "migrate"];
    verb.extend(guests.iter().map(|guest| guest.name.as_str()));
    verb.extend(["--to", bed.destination.as_str()]);
    if let [_] = guests {
        return Ok(vec![cluster.cli().wait_for(&verb, LIMIT)?]);
    }
    let moved: Vec<VmMove> = cluster.cli().wait_for(&verb, LIMIT)?;
    let tasks = moved.into_iter().map(|VmMove { vm, task, error }| {
        task.ok_or_else(|| BenchError::MigrationFailed(format!("{vm}: {error:?}")))
    });
    tasks.collect()
}

fn total_ms(tasks: &[Task]) -> f64 {
    let first = tasks.iter().map(|task| task.started_unix_ms).min().unwrap_or(0);
    let last = tasks.iter().filter_map(|task| task.finished_unix_ms).max().unwrap_or(first);
    last.saturating_sub(first) as f64
}

impl Row {
    /// Medians over runs; `alone` is the row of one VM, or none if this is it.
    fn new(runs: &[Run], case: &Case, (vms, moves_max): (u16, u32), alone: Option<&Self>) -> Self {
        let all = |values: fn(&Run) -> &Vec<f64>| {
            runs.iter().flat_map(|run| values(run).clone()).collect::<Vec<_>>()
        };
        let worst = |values: &[f64]| values.iter().copied().reduce(f64::max);
        let (blackouts, reported) = (all(|run| &run.blackouts_ms), all(|run| &run.reported_ms));
        let total_ms = median(&runs.iter().map(|run| run.total_ms).collect::<Vec<_>>());
        let filled = case.working_set().0 as f64;
        // Of one alone: its memory in the time in which pages were on their way.
        let busy = median(&all(|run| &run.busy_ms)).filter(|_| vms == 1).map(|busy| filled * 1e3 / busy);
        let goodput = busy.or_else(|| alone.and_then(|alone| alone.goodput_bytes_per_s));
        let need = goodput.map(|goodput| filled * f64::from(vms) * 1e3 / goodput);
        let blackout = median(&blackouts);
        let base = alone.map_or(blackout, |alone| alone.blackout_ms);
        let ratio =
            |one: Option<f64>, other: Option<f64>| rounded(one.zip(other).map(|(one, other)| one / other));
        Self {
            vms,
            memory_mib: case.memory_mib,
            moves_max,
            total_ms: rounded(total_ms),
            bytes_need_ms: rounded(need),
            of_need: ratio(total_ms, need),
            blackout_ms: rounded(blackout),
            blackout_ms_worst: rounded(worst(&blackouts)),
            of_alone: ratio(blackout, base),
            worst_of_alone: ratio(worst(&blackouts), base),
            reported_ms: rounded(median(&reported)),
            reported_ms_worst: rounded(worst(&reported)),
            undisturbed_gap_ms: rounded(median(&all(|run| &run.gaps_ms))),
            goodput_bytes_per_s: rounded(goodput),
            bytes_sent: median(&runs.iter().map(|run| run.bytes_sent as f64).collect::<Vec<_>>()),
            runs: runs.len() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(total_ms: f64, blackouts_ms: &[f64]) -> Run {
        let count = blackouts_ms.len();
        Run {
            total_ms,
            blackouts_ms: blackouts_ms.to_vec(),
            reported_ms: blackouts_ms.to_vec(),
            gaps_ms: vec![1.0; count],
            busy_ms: vec![100.0; count],
            bytes_sent: 1,
        }
    }

    #[test]
    fn several_are_held_against_one_alone() {
        let case = Evacuate {
            vms: vec![1, 2],
            memory: Bytes::mib(256),
            max_migrations: None,
            migration_bandwidth: None,
            link: None,
            idle: true,
            repeat: 1,
            json: false,
        }
        .case();
        let alone = Row::new(&[run(200.0, &[10.0])], &case, (1, 2), None);
        assert_eq!((alone.bytes_need_ms, alone.of_need, alone.of_alone), (Some(100.0), Some(2.0), Some(1.0)));
        let two = Row::new(&[run(300.0, &[10.0, 30.0])], &case, (2, 2), Some(&alone));
        assert_eq!((two.bytes_need_ms, two.of_need), (Some(200.0), Some(1.5)));
        assert_eq!((two.of_alone, two.worst_of_alone), (Some(2.0), Some(3.0)));
    }
}
