//! How long the planner takes, from a snapshot to a plan with reasons in an order that can be carried out: for a cluster that is
//! skewed, and then round by round, where a hundredth of the VMs has changed what it wants since the last. With power management
//! too, where hosts are emptied and switched off at the same time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use godwit_lab::setup::say;
use godwit_scheduler::PerResource;
use godwit_scheduler::cluster::Cluster;
use godwit_scheduler::planner::{Action, Goal, Plan, plan};
use godwit_scheduler::policy::{Automation, Policy, PowerPolicy};
use godwit_scheduler::snapshot::{Host, HostState, MigrationRoom, PowerModel, RECENT_SLOTS, Snapshot, Vm};
use godwit_types::Name;
use serde::Serialize;

use crate::error::{BenchError, Result};
use crate::output::{print, table, tell};
use crate::scale::{Size, generate};
use crate::shown::{self, BEGINNING_UNIX_MS, MEBIBYTE};

/// One VM in so many changes what it wants between two rounds.
const CHANGED: usize = 100;
/// Time between two rounds, in milliseconds.
const ROUND_MS: u64 = 60_000;
const HOST_CPU_MHZ: u64 = 64 * 2_600;

/// What is planned for.
#[derive(Debug, Args)]
pub(crate) struct Rounds {
    /// Hosts and VMs; may be repeated.
    #[arg(long = "size", value_name = "HOSTSxVMS", default_values = ["50x1000", "500x10000", "1000x50000"])]
    sizes: Vec<Size>,
    /// Rounds after changes.
    #[arg(long, default_value_t = 10, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Steps up to this priority are taken.
    #[arg(long, default_value_t = 3, value_name = "1-5", value_parser = clap::value_parser!(u8).range(1..=5))]
    threshold: u8,
    /// Hosts that are not needed are switched off, and on again.
    #[arg(long)]
    power: bool,
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of a table at the end.
    #[arg(long)]
    json: bool,
}

/// A cluster of one size.
#[derive(Debug, Clone, Serialize)]
struct Planned {
    hosts: usize,
    vms: usize,
    /// The planner's objective, of the skewed cluster and once its plan is carried out.
    score_before: f64,
    score_after: f64,
    /// Of that plan.
    first_ms: f64,
    first_moves: usize,
    round_p50_ms: f64,
    round_p99_ms: f64,
    /// Steps of all rounds together.
    round_moves: usize,
    /// Hosts that are on in the end.
    hosts_on: usize,
}

pub(crate) fn run(options: &Rounds) -> Result<()> {
    let mut rows = Vec::new();
    for size in &options.sizes {
        say(format_args!("{} hosts, {} VMs", size.hosts, size.vms));
        let row = planned(*size, options)?;
        tell(options.json, &row)?;
        rows.push(row);
    }
    if !options.json {
        print(&listed(&rows));
    }
    Ok(())
}

fn planned(size: Size, options: &Rounds) -> Result<Planned> {
    let mut snapshot = snapshot(&generate(size, options.seed)?, options.power)?;
    let power = PowerPolicy { enabled: options.power, ..PowerPolicy::default() };
    let policy =
        Policy { automation: Automation::Full, threshold: options.threshold, power, ..Policy::default() };
    let (first, first_took) = timed(&snapshot, &policy, options.seed);
    follow(&mut snapshot, &first);
    let (mut times, mut round_moves) = (Vec::new(), 0);
    for round in 0..u64::from(options.rounds) {
        change(&mut snapshot, options.seed.wrapping_add(round) as usize % CHANGED);
        let (plan, took) = timed(&snapshot, &policy, options.seed.wrapping_add(round));
        follow(&mut snapshot, &plan);
        times.push(took);
        round_moves += plan.steps.len();
    }
    times.sort();
    let percentile = |part: usize| milliseconds(times[(times.len() * part).div_ceil(100) - 1]);
    Ok(Planned {
        hosts: size.hosts,
        vms: size.vms,
        score_before: first.before.score,
        score_after: first.after.score,
        first_ms: milliseconds(first_took),
        first_moves: first.steps.len(),
        round_p50_ms: percentile(50),
        round_p99_ms: percentile(99),
        round_moves,
        hosts_on: snapshot.hosts.iter().filter(|host| host.state == HostState::On).count(),
    })
}

fn timed(snapshot: &Snapshot, policy: &Policy, seed: u64) -> (Plan, Duration) {
    let began = Instant::now();
    let plan = plan(snapshot, policy, &Goal::Balance, seed);
    (plan, began.elapsed())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The cluster of the other benches, as the manager would show it.
fn snapshot(cluster: &Cluster, power: bool) -> Result<Snapshot> {
    // Nobody else asks for them.
    let slots = if power { RECENT_SLOTS } else { 0 };
    let named = |kind: &str, number: usize| -> Result<Name> {
        format!("{kind}{number}").parse().map_err(|_| BenchError::Instance("that is no name".to_owned()))
    };
    let hosts = (0..cluster.hosts()).map(|host| {
        let capacity = PerResource {
            cpu: HOST_CPU_MHZ,
            memory: (cluster.used(host, 0).1.whole - cluster.used(host, 0).1.own) * MEBIBYTE,
            network: 2_500_000_000,
            storage: 100_000,
        };
        let migration = MigrationRoom { moves_max: 8, bytes_per_s: 3_000_000_000, is_assumed: false };
        let shown = shown::host(named("host", host)?, capacity, migration, BEGINNING_UNIX_MS);
        Ok(Host { power: Some(PowerModel::default()), ..shown })
    });
    let vms = (0..cluster.vms()).map(|vm| {
        let memory = cluster.load(vm, 0) * MEBIBYTE;
        let demand = PerResource {
            cpu: cluster.load(vm, 2) * HOST_CPU_MHZ / 1_000_000,
            memory: memory / 2,
            ..PerResource::default()
        };
        let on = named("host", cluster.host_of(vm))?;
        let shown = shown::vm(named("vm", vm)?, on, demand, memory, BEGINNING_UNIX_MS);
        Ok(Vm { recent_mhz: vec![demand.cpu; slots], ..shown })
    });
    Ok(Snapshot {
        at_unix_ms: BEGINNING_UNIX_MS,
        hosts: hosts.collect::<Result<_>>()?,
        vms: vms.collect::<Result<_>>()?,
        pools: Vec::new(),
        rules: Vec::new(),
    })
}

/// Everybody is where the plan wants it.
fn follow(snapshot: &mut Snapshot, plan: &Plan) {
    let at = snapshot.at_unix_ms;
    let (mut places, mut states) = (BTreeMap::new(), BTreeMap::new());
    for step in &plan.steps {
        match &step.action {
            Action::Move { vm, to, .. } => drop(places.insert(vm, to)),
            Action::Standby { host } => drop(states.insert(host, HostState::Standby)),
            Action::Wake { host } => drop(states.insert(host, HostState::On)),
            Action::Place { .. } => {}
        }
    }
    for vm in &mut snapshot.vms {
        if let Some(to) = places.get(&vm.name) {
            vm.host = Some((*to).clone());
            vm.moved_unix_ms.push(at);
        }
    }
    for host in &mut snapshot.hosts {
        if let Some(state) = states.get(&host.name) {
            (host.state, host.since_unix_ms) = (*state, at);
        }
    }
}

/// A minute passes, and pairs of VMs exchange what they want of CPUs, so that all of them together want what they did.
fn change(snapshot: &mut Snapshot, shift: usize) {
    snapshot.at_unix_ms += ROUND_MS;
    let now = snapshot.at_unix_ms;
    snapshot.hosts.iter_mut().for_each(|host| host.seen_unix_ms = now);
    snapshot.vms.iter_mut().for_each(|vm| vm.measured_unix_ms = Some(now));
    let changed: Vec<usize> = (shift..snapshot.vms.len()).step_by(CHANGED).collect();
    for pair in changed.chunks_exact(2) {
        let (one, other) = (snapshot.vms[pair[0]].demand.cpu, snapshot.vms[pair[1]].demand.cpu);
        snapshot.vms[pair[0]].demand.cpu = other;
        snapshot.vms[pair[1]].demand.cpu = one;
    }
    for vm in snapshot.vms.iter_mut().filter(|vm| !vm.recent_mhz.is_empty()) {
        vm.recent_mhz.remove(0);
        vm.recent_mhz.push(vm.demand.cpu);
    }
}

/// One line for each size.
fn listed(rows: &[Planned]) -> String {
    let header = [
        "hosts",
        "VMs",
        "score",
        "after",
        "first ms",
        "moves",
        "round P50 ms",
        "P99 ms",
        "steps in all",
        "on",
    ];
    let lines = rows.iter().map(|row| {
        vec![
            row.hosts.to_string(),
            row.vms.to_string(),
            format!("{:.4}", row.score_before),
            format!("{:.4}", row.score_after),
            format!("{:.0}", row.first_ms),
            row.first_moves.to_string(),
            format!("{:.0}", row.round_p50_ms),
            format!("{:.0}", row.round_p99_ms),
            row.round_moves.to_string(),
            row.hosts_on.to_string(),
        ]
    });
    table(&header, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(threshold: u8, power: bool) -> Planned {
        let options = Rounds { sizes: Vec::new(), rounds: 2, threshold, power, seed: 1, json: false };
        planned(Size { hosts: 6, vms: 60 }, &options).unwrap()
    }

    #[test]
    fn a_skewed_cluster_becomes_more_even_and_rounds_begin_where_the_last_has_led() {
        let row = rounds(5, false);
        assert!(row.score_after < row.score_before && row.first_moves > 0, "{row:?}");
        assert!(row.round_moves < 2 * row.first_moves && row.hosts_on == 6, "{row:?}");
    }

    #[test]
    fn with_power_management_hosts_that_are_not_needed_are_switched_off() {
        let row = rounds(3, true);
        assert!((1..6).contains(&row.hosts_on), "{row:?}");
    }
}
