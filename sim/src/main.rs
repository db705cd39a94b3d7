//! `godwit-sim`: see `--help`.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use godwit_sim::explore::{self, Bounds};
use godwit_sim::random;
use godwit_sim::rules::{Commit, Protocol, Rules};
use godwit_sim::shrink::Failure;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  godwit-sim --seeds 100000                          a hundred thousand migrations with up to four faults each
  godwit-sim --first-seed 4711 --seeds 1             one of them again
  godwit-sim --protocol resume-on-timeout            a protocol that is broken on purpose, and what breaks it
  godwit-sim --explore --faults 2                    every order of steps around the switchover, with up to two faults
  godwit-sim --explore --commit forgetful --json     the same when a power cut may undo a commit";

/// What a guest that may be slowed writes while every order of steps is gone through.
const EXPLORED_WRITES_PAGES_PER_MS: u16 = 100;
/// A run that takes longer says how it gets on.
const QUIET: Duration = Duration::from_secs(2);

/// Simulates migrations: the real state machines, arbiter and judges among faults of every kind.
///
/// Ends with 0 if every promise held, with 1 if one was broken, and then prints the fewest steps that break it.
#[derive(Debug, Parser)]
#[command(name = "godwit-sim", after_help = EXAMPLES)]
struct Cli {
    /// How many seeds to run.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// The protocol that both sides follow.
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    /// How the manager writes a commit down.
    #[arg(long, value_enum, default_value_t)]
    commit: Commit,
    /// Instead of seeds: go through every order of steps from the moment before the guest is stopped.
    #[arg(long, conflicts_with_all = ["seeds", "first_seed"])]
    explore: bool,
    /// With --explore: faults on one path, at most.
    #[arg(long, default_value_t = 2, requires = "explore", value_parser = clap::value_parser!(u8).range(0..=4))]
    faults: u8,
    /// With --explore: stop, unfinished, after so many states.
    #[arg(long, default_value_t = 20_000_000, requires = "explore")]
    states_max: usize,
    /// With --explore: a VM must also survive its source's death as soon as its commit is granted, whatever the manager's
    /// machine does meanwhile.
    #[arg(long, requires = "explore")]
    grants_outlive_sources: bool,
    /// With --explore: part of memory follows the guest.
    #[arg(long, requires = "explore")]
    post_copy: bool,
    /// With --explore: the guest writes faster than its memory moves, and may be slowed by so much.
    #[arg(long, default_value_t = 0, requires = "explore", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    max_slowdown: u8,
    /// With --explore: the datastore carries no locks from host to host.
    #[arg(long, requires = "explore")]
    no_shared_locks: bool,
}

/// What the seeds have shown.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    steps: u64,
    faults: u64,
    moved: u64,
    stayed: u64,
    lost: u64,
    uncertain: u64,
    seconds: f64,
    failed_seed: Option<u64>,
    failure: Option<Failure>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = if cli.explore { explore(&cli) } else { seeds(&cli) };
    if failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn seeds(cli: &Cli) -> bool {
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut summary = Summary::default();
    for seed in (cli.first_seed..).take(usize::try_from(cli.seeds).unwrap_or(usize::MAX)) {
        let run = random::run(seed, cli.protocol, cli.commit);
        summary.seeds += 1;
        summary.steps += run.steps.len() as u64;
        summary.faults += u64::from(run.faults);
        match run.world.ending() {
            "moved" => summary.moved += 1,
            "stayed" => summary.stayed += 1,
            "lost" => summary.lost += 1,
            _ => summary.uncertain += 1,
        }
        if run.violation.is_some() {
            summary.failed_seed = Some(seed);
            summary.failure = run.shrink();
            break;
        }
        if told.elapsed() >= QUIET {
            told = Instant::now();
            eprintln!("seed {seed}: {} of {} done", summary.seeds, cli.seeds);
        }
    }
    summary.seconds = began.elapsed().as_secs_f64();
    let s = &summary;
    let text = format!(
        "{} seeds in {:.1} s: {} steps, {} faults; {} moved, {} stayed, {} lost with the process that held them, {} \
         left uncertain",
        s.seeds, s.seconds, s.steps, s.faults, s.moved, s.stayed, s.lost, s.uncertain
    );
    let place = s.failed_seed.map(|seed| format!("seed {seed}")).unwrap_or_default();
    print(cli, &summary, &text, &place, summary.failure.as_ref())
}

fn explore(cli: &Cli) -> bool {
    let began = Instant::now();
    let rules = Rules {
        post_copy: cli.post_copy,
        protocol: cli.protocol,
        commit: cli.commit,
        shared_locks: !cli.no_shared_locks,
        slow_calls: false,
        grants_outlive_sources: cli.grants_outlive_sources,
        slowdown_percent_max: cli.max_slowdown,
        writes_pages_per_ms: if cli.max_slowdown > 0 { EXPLORED_WRITES_PAGES_PER_MS } else { 0 },
    };
    let mut told = Instant::now();
    let progress = |states| {
        if told.elapsed() >= QUIET {
            told = Instant::now();
            eprintln!("{states} states");
        }
    };
    let bounds = Bounds { faults: cli.faults, states_max: cli.states_max };
    let explored = explore::explore(rules, bounds, progress);
    let text = format!(
        "{} states, {} transitions, longest path {} steps, {} faults, {}, in {:.1} s",
        explored.states,
        explored.transitions,
        explored.longest_path,
        cli.faults,
        if explored.complete { "complete" } else { "unfinished" },
        began.elapsed().as_secs_f64()
    );
    print(cli, &explored, &text, "a path", explored.failure.as_ref())
}

/// Prints the result, and says whether something failed.
fn print(cli: &Cli, result: &impl Serialize, text: &str, place: &str, failure: Option<&Failure>) -> bool {
    let mut lines = vec![text.to_owned()];
    if cli.json {
        // Numbers, names and strings: nothing that JSON cannot say.
        lines = vec![serde_json::to_string(result).unwrap_or_else(|error| error.to_string())];
    } else if let Some(failure) = failure {
        lines.push(format!("{place} breaks a promise: {}", failure.violation));
        lines.extend(
            failure.trace.iter().enumerate().map(|(step, words)| format!("{:>4}  {words}", step + 1)),
        );
    }
    // A reader that has gone away wants nothing more.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
    failure.is_some()
}
