//! How planning grows with the cluster: how good a plan is after a second and after five, how long a round takes that follows a
//! change of a hundredth of the VMs, and the memory that it takes.

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use godwit_lab::setup::say;
use godwit_scheduler::cluster::{Cluster, Guest, Room};
use godwit_scheduler::search::{Effort, Evenness, Plan, Search};
use serde::Serialize;

use crate::chance::Chance;
use crate::error::{BenchError, Result};
use crate::hbal::instance::WEIGHTS;
use crate::output::{print, table, tell};
use crate::system::read;

/// When the quality of a plan is looked at.
const LOOKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Moves that are looked at between two looks at the clock.
const PORTION: u64 = 1 << 12;
/// In a round, for each VM.
const ROUND_PROPOSALS: u64 = 4;
/// One VM in so many changes its load between two rounds.
const CHANGED: usize = 100;

/// What is planned for.
#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Hosts and VMs; may be repeated.
    #[arg(long = "size", value_name = "HOSTSxVMS", default_values = ["50x1000", "500x10000", "1000x50000", "10000x100000"])]
    sizes: Vec<Size>,
    /// Rounds after changes.
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Per cent of the VMs that a plan may move.
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    moved: u8,
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of a table at the end.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) hosts: usize,
    pub(crate) vms: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| (1..=1_000_000).contains(number));
        let (hosts, vms) = text.split_once('x').ok_or("give hosts and VMs as 50x1000")?;
        match (number(hosts), number(vms)) {
            (Some(hosts), Some(vms)) => Ok(Self { hosts, vms }),
            _ => Err("give hosts and VMs as 50x1000".to_owned()),
        }
    }
}

/// A cluster of one size.
#[derive(Debug, Clone, Serialize)]
struct Scaled {
    hosts: usize,
    vms: usize,
    moved_max: usize,
    /// `hbal`'s cluster score, before, and after plans that took so long.
    score_before: f64,
    score_1s: f64,
    score_5s: f64,
    moved_1s: usize,
    moved_5s: usize,
    proposals_per_s: f64,
    /// Time of a round in milliseconds, from the cluster to the plan.
    round_p50_ms: f64,
    round_p99_ms: f64,
    /// Scores of the last round.
    round_score_before: f64,
    round_score_after: f64,
    /// What the process uses while it plans.
    resident_mib: f64,
}

pub(crate) fn run(options: &Scale) -> Result<()> {
    let mut rows = Vec::new();
    for size in &options.sizes {
        say(format_args!("{} hosts, {} VMs", size.hosts, size.vms));
        let row = scaled(*size, options)?;
        tell(options.json, &row)?;
        rows.push(row);
    }
    if !options.json {
        print(&listed(&rows));
    }
    Ok(())
}

fn scaled(size: Size, options: &Scale) -> Result<Scaled> {
    let cluster = generate(size, options.seed)?;
    let moved_max = (cluster.vms() * usize::from(options.moved)).div_ceil(100);
    let rate = rate(&cluster, moved_max, options.seed)?;
    let within = |limit: Duration| -> Result<Plan> {
        let proposals = (rate * limit.as_secs_f64()) as u64;
        let began = Instant::now();
        let mut search = search(&cluster, Effort { moved_max, proposals, seed: options.seed })?;
        while began.elapsed() < limit && search.advance(PORTION) {}
        Ok(search.plan(0.0))
    };
    let [first, later] = [within(LOOKS[0])?, within(LOOKS[1])?];
    let mut rounds = Rounds::new(&cluster, &later, moved_max, options.seed);
    let mut times = (0..options.rounds).map(|_| rounds.next()).collect::<Result<Vec<_>>>()?;
    times.sort();
    let percentile = |part: usize| times[(times.len() * part).div_ceil(100) - 1].as_secs_f64() * 1e3;
    Ok(Scaled {
        hosts: cluster.hosts(),
        vms: cluster.vms(),
        moved_max,
        score_before: first.score_before,
        score_1s: first.score_after,
        score_5s: later.score_after,
        moved_1s: first.steps.len(),
        moved_5s: later.steps.len(),
        proposals_per_s: rate,
        round_p50_ms: percentile(50),
        round_p99_ms: percentile(99),
        round_score_before: rounds.scores.0,
        round_score_after: rounds.scores.1,
        resident_mib: resident_mib()?,
    })
}

/// Hosts of 256 GiB and 64 cores, 64 per cent of their memory in use and nine tenths of a virtual CPU for each core, whatever the
/// number of VMs; two of three VMs are in the first half of the hosts. Dimensions are those of hbal's score.
pub(crate) fn generate(size: Size, seed: u64) -> Result<Cluster> {
    let mut chance = Chance(seed);
    let rooms = |whole, own, most| Room { whole, own, most };
    let load = rooms(1_000_000, 0, u64::MAX);
    let host = vec![rooms(262_144, 4096, 262_144), rooms(6400, 0, 25_600), load, load, load, load];
    let mean = |whole: f64| whole * size.hosts as f64 / size.vms as f64;
    // Sizes are 1, 2, 4 and 8 times the least; use of a CPU is a tenth on average.
    let least = |part: f64, whole: f64| ((mean(part * whole) / 3.75) as u64).max(1);
    let (least_memory, cpus) = (least(0.64, 258_048.0), least(0.9, 6400.0));
    let mut free = vec![258_048; size.hosts];
    let mut guests = Vec::new();
    for _ in 0..size.vms {
        let (memory, cpus) = (least_memory << chance.below(4), cpus << chance.below(4));
        let part = if chance.below(3) == 0 { size.hosts } else { size.hosts.div_ceil(2) };
        let first = chance.below(part as u64) as usize;
        // Where nobody has the room for it, it is smaller.
        let sizes = (0..4).map(|halved| memory >> halved).filter(|memory| *memory >= least_memory);
        let place = |memory: u64| (first..size.hosts).chain(0..first).find(|host| free[*host] >= memory);
        let placed = sizes.filter_map(|memory| Some((memory, place(memory)?))).next();
        let (memory, host) = placed.ok_or_else(|| BenchError::Instance("a VM fits nowhere".to_owned()))?;
        free[host] -= memory;
        let used = cpus * 1_000_000 / 6400 * chance.below(2000) / 10_000;
        guests.push(Guest { host, loads: vec![memory, cpus, used, memory * 1_000_000 / 262_144, 100, 100] });
    }
    Cluster::new(&vec![host; size.hosts], &guests).map_err(|error| BenchError::Instance(error.to_string()))
}

fn search(cluster: &Cluster, effort: Effort) -> Result<Search<Evenness>> {
    let model = Evenness::new(cluster.clone(), &WEIGHTS);
    let model = model.map_err(|error| BenchError::Instance(error.to_string()))?;
    Ok(Search::new(model, effort))
}

/// How many moves a search looks at in a second, by a short one from beginning to end.
fn rate(cluster: &Cluster, moved_max: usize, seed: u64) -> Result<f64> {
    let proposals = 4 * cluster.vms().max(100_000) as u64;
    let mut search = search(cluster, Effort { moved_max, proposals, seed })?;
    let began = Instant::now();
    while search.advance(PORTION) {}
    Ok(proposals as f64 / began.elapsed().as_secs_f64())
}

/// Rounds that follow each other: places as the last plan has left them, and some loads changed since.
struct Rounds {
    rooms: Vec<Vec<Room>>,
    guests: Vec<Guest>,
    moved_max: usize,
    seed: u64,
    /// Before and after the last round.
    scores: (f64, f64),
}

impl Rounds {
    fn new(cluster: &Cluster, plan: &Plan, moved_max: usize, seed: u64) -> Self {
        let rooms = |host| (0..cluster.dimensions()).map(move |dimension| *cluster.used(host, dimension).1);
        let load = |vm| (0..cluster.dimensions()).map(move |dimension| cluster.load(vm, dimension));
        let mut rounds = Self {
            rooms: (0..cluster.hosts()).map(|host| rooms(host).collect()).collect(),
            guests: (0..cluster.vms())
                .map(|vm| Guest { host: cluster.host_of(vm), loads: load(vm).collect() })
                .collect(),
            moved_max,
            seed,
            scores: (plan.score_before, plan.score_after),
        };
        rounds.follow(plan);
        rounds
    }

    /// Changes loads and plans. How long the planning took, from the cluster as it is told to the plan.
    fn next(&mut self) -> Result<Duration> {
        self.seed = self.seed.wrapping_add(1);
        let shift = self.seed as usize % CHANGED;
        // Two VMs exchange their measured loads, so the cluster as a whole uses what it did.
        let changed: Vec<usize> = (shift..self.guests.len()).step_by(CHANGED).collect();
        for pair in changed.chunks_exact(2) {
            let (one, other) =
                (self.guests[pair[0]].loads[2..].to_vec(), self.guests[pair[1]].loads[2..].to_vec());
            self.guests[pair[0]].loads[2..].copy_from_slice(&other);
            self.guests[pair[1]].loads[2..].copy_from_slice(&one);
        }
        let began = Instant::now();
        let cluster = Cluster::new(&self.rooms, &self.guests);
        let cluster = cluster.map_err(|error| BenchError::Instance(error.to_string()))?;
        let proposals = ROUND_PROPOSALS * cluster.vms() as u64;
        let mut search = search(&cluster, Effort { moved_max: self.moved_max, proposals, seed: self.seed })?;
        while search.advance(PORTION) {}
        let plan = search.plan(0.0);
        let took = began.elapsed();
        self.scores = (plan.score_before, plan.score_after);
        self.follow(&plan);
        Ok(took)
    }

    fn follow(&mut self, plan: &Plan) {
        plan.steps.iter().for_each(|step| self.guests[step.vm].host = step.to);
    }
}

/// What the process has in memory.
fn resident_mib() -> Result<f64> {
    const PATH: &str = "/proc/self/status";
    let status = read(Path::new(PATH))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| BenchError::Instance(format!("{PATH} has no VmRSS")))
}

/// One line for each size.
fn listed(rows: &[Scaled]) -> String {
    let header = [
        "hosts",
        "VMs",
        "score",
        "after 1 s",
        "moved",
        "after 5 s",
        "moved",
        "moves/us",
        "round P50 ms",
        "P99 ms",
        "score",
        "after",
        "MiB",
    ];
    let lines = rows.iter().map(|row| {
        vec![
            row.hosts.to_string(),
            row.vms.to_string(),
            format!("{:.4}", row.score_before),
            format!("{:.4}", row.score_1s),
            row.moved_1s.to_string(),
            format!("{:.4}", row.score_5s),
            row.moved_5s.to_string(),
            format!("{:.2}", row.proposals_per_s / 1e6),
            format!("{:.0}", row.round_p50_ms),
            format!("{:.0}", row.round_p99_ms),
            format!("{:.4}", row.round_score_before),
            format!("{:.4}", row.round_score_after),
            format!("{:.0}", row.resident_mib),
        ]
    });
    table(&header, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!("50x1000".parse(), Ok(Size { hosts: 50, vms: 1000 }));
        assert!(["50", "0x5", "5x", "5x2000000"].iter().all(|text| text.parse::<Size>().is_err()));
    }

    #[test]
    fn clusters_of_any_size_are_as_full() {
        for (hosts, vms) in [(5, 20), (50, 1000), (100, 5000)] {
            let cluster = generate(Size { hosts, vms }, 1).unwrap();
            assert_eq!((cluster.hosts(), cluster.vms()), (hosts, vms));
            let used: u64 = (0..hosts).map(|host| cluster.used(host, 0).0 - 4096).sum();
            let part = used as f64 / (hosts as f64 * 258_048.0);
            assert!((0.45..0.85).contains(&part), "{part}");
        }
    }

    #[test]
    fn a_round_after_a_change_begins_where_the_last_plan_has_led() {
        let cluster = generate(Size { hosts: 10, vms: 200 }, 1).unwrap();
        let effort = Effort { moved_max: 100, proposals: 100_000, seed: 1 };
        let mut search = search(&cluster, effort).unwrap();
        while search.advance(PORTION) {}
        let plan = search.plan(0.0);
        let mut rounds = Rounds::new(&cluster, &plan, 10, 1);
        rounds.next().unwrap();
        let (before, after) = rounds.scores;
        assert!(
            before > plan.score_after && before < plan.score_before && after < before,
            "{before} {after}"
        );
        assert!(resident_mib().unwrap() > 1.0);
    }
}
