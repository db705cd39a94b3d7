//! `godwit-bench-scheduler`: what the scheduler plans, beside what others plan of the same instance.
//!
//! ```text
//!   hbal       how even a cluster is left, against Ganeti's hbal by its own score
//!   planetlab  energy, service and migrations of a day, against the policies of CloudSim by its own rules
//!   roadef     the Google machine reassignment problem, against the best known
//!   scale      how the search grows with the cluster
//!   rounds     how long the planner takes, from a snapshot to a plan
//!   optimum    small clusters, against a proof of the best there is
//!   chance     numbers for generated instances
//!   output     rows as a table, or one JSON object a line
//!   shown      hosts and VMs as the planner is shown them
//!   system     files, and processor time
//! ```

mod chance;
mod error;
mod hbal;
mod optimum;
mod output;
mod planetlab;
mod roadef;
mod rounds;
mod scale;
mod shown;
mod system;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use godwit_lab::cleanup;

/// Plans for clusters, and compares with what others plan. No guest, no KVM.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench scheduler", bin_name = "cargo xtask bench scheduler")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a cluster more even, against Ganeti's hbal by its own score.
    #[command(
        after_help = "Examples:\n  cargo xtask bench scheduler hbal\n  cargo xtask bench scheduler hbal --instance c50.data --json\n  cargo xtask bench scheduler hbal --instance c50.data --moves 90 --moves 120 --alone"
    )]
    Hbal(hbal::Hbal),
    /// Run a day of PlanetLab's VMs on few hosts, against the policies of CloudSim 3.0.3 by its own rules.
    #[command(
        name = "planetlab",
        after_help = "Examples:\n  cargo xtask bench scheduler planetlab --instance 20110303.csv.gz\n  cargo xtask bench scheduler planetlab --instance 20110303.csv.gz --instance 20110306.csv.gz --policy all --json\n  cargo xtask bench scheduler planetlab --instance 20110303.csv.gz --honest"
    )]
    PlanetLab(planetlab::PlanetLab),
    /// Solve instances of the Google machine reassignment problem (ROADEF/EURO challenge 2012), against the best known.
    #[command(
        after_help = "Examples:\n  cargo xtask bench scheduler roadef --instance B/model_b_01.txt\n  cargo xtask bench scheduler roadef --instance A/model_*.txt --seconds 300 --json"
    )]
    Roadef(roadef::Roadef),
    /// Measure how planning grows with the cluster: quality after 1 s and 5 s, rounds after changes, memory.
    #[command(
        after_help = "Examples:\n  cargo xtask bench scheduler scale\n  cargo xtask bench scheduler scale --size 1000x50000 --rounds 100 --json"
    )]
    Scale(scale::Scale),
    /// Measure how long the planner takes, from a snapshot to a plan: for a skewed cluster, and in rounds after changes.
    #[command(
        after_help = "Examples:\n  cargo xtask bench scheduler rounds\n  cargo xtask bench scheduler rounds --size 1000x50000 --threshold 5 --json"
    )]
    Rounds(rounds::Rounds),
    /// Compare plans for small clusters with the best there is, which is proven.
    #[command(
        after_help = "Examples:\n  cargo xtask bench scheduler optimum\n  cargo xtask bench scheduler optimum --instances 50 --seed 7 --json"
    )]
    Optimum(optimum::Optimum),
}

fn main() -> ExitCode {
    let Cli { verb } = Cli::parse();
    cleanup::on_interrupt();
    let done = match verb {
        Verb::Hbal(options) => hbal::run(&options),
        Verb::PlanetLab(options) => planetlab::run(&options),
        Verb::Optimum(options) => optimum::run(&options),
        Verb::Scale(options) => scale::run(&options),
        Verb::Rounds(options) => rounds::run(&options),
        Verb::Roadef(options) => roadef::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
