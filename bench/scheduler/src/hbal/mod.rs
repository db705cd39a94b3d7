//! How even a cluster the scheduler leaves, against Ganeti's `hbal` on the same instance, by `hbal`'s own score.

pub(crate) mod instance;
mod peer;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use godwit_lab::setup::say;
use godwit_scheduler::search::{Effort, Evenness, Search};
use serde::Serialize;

use self::instance::Instance;
use crate::error::{BenchError, Result};
use crate::output::{print, table, tell};

/// Moves that are looked at for each VM and host, and at least: enough for the annealing to come to rest.
const PROPOSALS_PER_PAIR: u64 = 100;
const PROPOSALS_MIN: u64 = 2_000_000;
/// How many are looked at between two looks at nothing else: the search is not interrupted.
const PORTION: u64 = 1 << 20;

/// What is to be planned.
#[derive(Debug, Args)]
pub(crate) struct Hbal {
    /// An instance in hbal's text format; may be repeated. Loads are read from the file of the same name that ends with `.dynu`
    /// [default: one of 20 hosts and 400 VMs that is made from the seed].
    #[arg(long = "instance", value_name = "FILE")]
    instances: Vec<PathBuf>,
    /// Most VMs that may move; may be repeated [default: as many as hbal moves, and three quarters of them].
    #[arg(long = "moves", value_name = "COUNT")]
    moves: Vec<usize>,
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Leave hbal out.
    #[arg(long, requires = "moves")]
    alone: bool,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of a table at the end.
    #[arg(long)]
    json: bool,
}

/// One planner on one instance.
#[derive(Debug, Clone, Serialize)]
struct Planned {
    instance: String,
    /// `godwit` or `hbal`.
    planner: &'static str,
    /// Most VMs that it might move; none if as many as it liked.
    moves_max: Option<usize>,
    /// VMs that are elsewhere in the end.
    moved: usize,
    moved_mib: u64,
    /// `hbal`'s cluster score.
    score_before: f64,
    score_after: f64,
    /// Processor time, in seconds.
    cpu_s: f64,
}

pub(crate) fn run(options: &Hbal) -> Result<()> {
    let rows = measure(options, |row| tell(options.json, row))?;
    if !options.json {
        print(&planned(&rows));
    }
    Ok(())
}

/// Every instance by `hbal`, then by the scheduler with as many moves, each told as soon as it is known.
fn measure(wanted: &Hbal, mut tell: impl FnMut(&Planned) -> Result<()>) -> Result<Vec<Planned>> {
    if !wanted.alone {
        peer::ensure()?;
    }
    let mut instances =
        wanted.instances.iter().map(|path| Instance::read(path)).collect::<Result<Vec<_>>>()?;
    if instances.is_empty() {
        instances.push(Instance::generate(20, 400, wanted.seed));
    }
    let mut rows = Vec::new();
    for instance in &instances {
        let mut budgets = wanted.moves.clone();
        if !wanted.alone {
            say(format_args!("{}: hbal plans; that takes minutes for 50 hosts", instance.name));
            let peer = peer::plan(instance)?;
            tell(&peer)?;
            if budgets.is_empty() {
                budgets = vec![peer.moved, peer.moved * 3 / 4];
            }
            rows.push(peer);
        }
        for moves_max in budgets {
            let ours = plan(instance, moves_max, wanted.seed)?;
            tell(&ours)?;
            rows.push(ours);
        }
    }
    Ok(rows)
}

fn plan(instance: &Instance, moves_max: usize, seed: u64) -> Result<Planned> {
    let cluster = instance.cluster()?;
    let proposals = ((cluster.hosts() * cluster.vms()) as u64 * PROPOSALS_PER_PAIR).max(PROPOSALS_MIN);
    let effort = Effort { moved_max: moves_max, proposals, seed };
    let failed = |error: &dyn std::error::Error| BenchError::Instance(error.to_string());
    let model = Evenness::new(cluster, &instance::WEIGHTS).map_err(|error| failed(&error))?;
    let mut search = Search::new(model, effort);
    // One thread, which does nothing else: its time is the processor's.
    let began = Instant::now();
    while search.advance(PORTION) {}
    let plan = search.plan(0.0);
    let cpu_s = began.elapsed().as_secs_f64();
    let memory_mib = instance.memory_mib();
    Ok(Planned {
        instance: instance.name.clone(),
        planner: "godwit",
        moves_max: Some(moves_max),
        moved: plan.steps.len(),
        moved_mib: plan.steps.iter().map(|step| memory_mib[step.vm]).sum(),
        score_before: plan.score_before,
        score_after: plan.score_after,
        cpu_s,
    })
}

/// One line for each plan.
fn planned(rows: &[Planned]) -> String {
    let header = ["instance", "planner", "may move", "moved", "GiB", "score before", "score after", "CPU s"];
    let lines = rows.iter().map(|row| {
        vec![
            row.instance.clone(),
            row.planner.to_owned(),
            row.moves_max.map_or_else(|| "any".to_owned(), |most| most.to_string()),
            row.moved.to_string(),
            format!("{:.0}", row.moved_mib as f64 / 1024.0),
            format!("{:.4}", row.score_before),
            format!("{:.4}", row.score_after),
            format!("{:.2}", row.cpu_s),
        ]
    });
    table(&header, lines)
}
