//! `godwit-bench-scheduler`: what the scheduler plans, beside what others plan of the same instance.
//!
//! ```text
//!   hbal       how even a cluster is left, against Ganeti's hbal by its own score
//!   planetlab  energy, service and migrations of a day, against the policies of CloudSim by its own rules
//!   output     rows as a table, or one JSON object a line
//! ```

mod error;
mod hbal;
mod output;
mod planetlab;

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
}

fn main() -> ExitCode {
    let Cli { verb } = Cli::parse();
    cleanup::on_interrupt();
    let done = match verb {
        Verb::Hbal(options) => hbal::run(&options),
        Verb::PlanetLab(options) => planetlab::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
