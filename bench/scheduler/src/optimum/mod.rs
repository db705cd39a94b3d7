//! How far from the best there is plans for small clusters are: the search against a proof of the optimum.

mod proof;

use std::time::Instant;

use clap::Args;
use godwit_lab::setup::say;
use godwit_scheduler::search::{Effort, Evenness, Search};
use serde::Serialize;

use self::proof::prove;
use crate::error::{BenchError, Result};
use crate::hbal::instance::WEIGHTS;
use crate::output::{print, table, tell};
use crate::scale::{Size, generate};

/// Hosts, VMs, and how many of these may move: what can be proven within a minute.
const SIZES: [(usize, usize, usize); 5] = [(3, 12, 12), (4, 14, 14), (6, 18, 5), (8, 24, 4), (12, 36, 3)];
/// Moves that the search looks at for each VM and host.
const PROPOSALS_PER_PAIR: u64 = 10_000;

/// What is to be planned.
#[derive(Debug, Args)]
pub(crate) struct Optimum {
    /// Clusters of each size.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1000))]
    instances: u64,
    /// Branches of a proof, at most: it is given up after that.
    #[arg(long, default_value_t = 50_000_000, value_name = "COUNT")]
    branches: u64,
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of a table at the end.
    #[arg(long)]
    json: bool,
}

/// One cluster.
#[derive(Debug, Clone, Serialize)]
struct Compared {
    hosts: usize,
    vms: usize,
    moved_max: usize,
    seed: u64,
    /// `hbal`'s cluster score, at first, as the search leaves it, and at best.
    score_before: f64,
    score_found: f64,
    score_least: f64,
    /// By how much what was found is above the least, in per cent of it.
    gap_percent: f64,
    /// Whether there is nothing better than the least.
    is_proven: bool,
    branches: u64,
    search_s: f64,
    proof_s: f64,
}

pub(crate) fn run(options: &Optimum) -> Result<()> {
    let mut rows = Vec::new();
    for (hosts, vms, moved_max) in SIZES {
        say(format_args!("{hosts} hosts, {vms} VMs, {moved_max} moves"));
        for seed in (0..options.instances).map(|count| options.seed.wrapping_add(count)) {
            let row = compared(Size { hosts, vms }, moved_max, seed, options.branches)?;
            tell(options.json, &row)?;
            rows.push(row);
        }
    }
    if !options.json {
        print(&listed(&rows));
        print(&summary(&rows));
    }
    Ok(())
}

fn compared(size: Size, moved_max: usize, seed: u64, branches_max: u64) -> Result<Compared> {
    let cluster = generate(size, seed)?;
    let model = Evenness::new(cluster.clone(), &WEIGHTS);
    let model = model.map_err(|error| BenchError::Instance(error.to_string()))?;
    let began = Instant::now();
    let proposals = (size.hosts * size.vms) as u64 * PROPOSALS_PER_PAIR;
    let mut search = Search::new(model, Effort { moved_max, proposals, seed });
    while search.advance(proposals) {}
    let plan = search.plan(0.0);
    let search_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let proven = prove(&cluster, moved_max, plan.score_after, branches_max);
    Ok(Compared {
        hosts: size.hosts,
        vms: size.vms,
        moved_max,
        seed,
        score_before: plan.score_before,
        score_found: plan.score_after,
        score_least: proven.score,
        gap_percent: (plan.score_after / proven.score - 1.0) * 100.0,
        is_proven: proven.is_proven,
        branches: proven.branches,
        search_s,
        proof_s: began.elapsed().as_secs_f64(),
    })
}

/// One line for each cluster.
fn listed(rows: &[Compared]) -> String {
    let header = [
        "hosts", "VMs", "may move", "seed", "before", "found", "least", "gap %", "proven", "search s",
        "proof s",
    ];
    let lines = rows.iter().map(|row| {
        vec![
            row.hosts.to_string(),
            row.vms.to_string(),
            row.moved_max.to_string(),
            row.seed.to_string(),
            format!("{:.5}", row.score_before),
            format!("{:.5}", row.score_found),
            format!("{:.5}", row.score_least),
            format!("{:.3}", row.gap_percent),
            if row.is_proven { "yes" } else { "no" }.to_owned(),
            format!("{:.2}", row.search_s),
            format!("{:.2}", row.proof_s),
        ]
    });
    table(&header, lines)
}

/// Median and most of the gaps to proven optima.
fn summary(rows: &[Compared]) -> String {
    let mut gaps: Vec<f64> = rows.iter().filter(|row| row.is_proven).map(|row| row.gap_percent).collect();
    gaps.sort_by(f64::total_cmp);
    match (gaps.get(gaps.len() / 2), gaps.last()) {
        (Some(median), Some(most)) => {
            format!("{} of {} proven; gap: median {median:.3} %, most {most:.3} %", gaps.len(), rows.len())
        }
        _ => "nothing proven".to_owned(),
    }
}
