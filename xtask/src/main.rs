//! `cargo xtask`: the project's own commands. Needs nothing but cargo; fetches what else it needs.

mod check;
mod error;
mod fuzz;
mod lab;
mod metadata;
mod output;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use godwit_lab::cluster::Setting;
use godwit_lab::demo::{self, DemoOptions};
use godwit_lab::guest::Guest;
use godwit_lab::{cleanup, setup};

use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                      a Linux VM moves to another host and back, under load
  cargo xtask demo --guest reference    the same within seconds on any /dev/kvm
  cargo xtask test                      every test; prints what was skipped, and why
  cargo xtask check                     formatting, lints, layering, licences
  cargo xtask bench migrate --quick     Godwit and QEMU move the same guest, and what it notices
  cargo xtask sim --seeds 100000        simulated migrations among faults of every kind
  cargo xtask fuzz --seconds 60         hostile input for whatever a peer, a guest or a client writes
  cargo xtask lab up                    two emulated hosts to try things on";

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boot a VM, put a load on it, migrate it to another host and back, and show what the client noticed.
    #[command(
        after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --guest reference --moves 4 --vcpus 2 --json"
    )]
    Demo(Demo),
    /// Build everything and run every test that this machine can run.
    #[command(
        after_help = "Example:\n  cargo xtask test --no-lab    leaves out the emulated hosts, which take minutes"
    )]
    Test {
        /// Leave out the tests on emulated hosts.
        #[arg(long)]
        no_lab: bool,
    },
    /// Check formatting, lints, layering, licences and duplicate versions.
    Check,
    /// Measure migrations against QEMU's, and plans against other schedulers'.
    #[command(after_help = "Examples:
  cargo xtask bench migrate --quick
  cargo xtask bench migrate --repeat 5 --json > rows.jsonl
  cargo xtask bench scheduler hbal
  cargo xtask bench -- migrate --help            all arguments")]
    Bench {
        /// What `godwit-bench` is given, or `scheduler` and what `godwit-bench-scheduler` is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Simulate migrations among faults of every kind; takes the arguments of `godwit-sim`.
    #[command(after_help = "Examples:
  cargo xtask sim --seeds 100000
  cargo xtask sim --seeds 1 --first-seed 4711    one of them again
  cargo xtask sim --explore --faults 2           every order of steps around the switchover
  cargo xtask sim -- --help                      all arguments")]
    Sim {
        /// What `godwit-sim` is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Give hostile input to everything that reads what a peer, a guest or a client has written.
    #[command(after_help = "Examples:
  cargo xtask fuzz                       the bounded run that is part of the tests
  cargo xtask fuzz devices --seconds 600 one target, ten minutes, from where the last such run ended")]
    Fuzz {
        /// One target [default: all].
        #[arg(value_parser = fuzz::TARGETS.map(|(target, _)| target))]
        target: Option<String>,
        /// Fuzz each target for so long, instead of with the same inputs every time.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2400))]
        seconds: Option<u32>,
    },
    /// Build the programs as they are released, and the reference guest.
    Build,
    /// Emulated hosts with nested KVM.
    #[command(subcommand)]
    Lab(lab::LabVerb),
}

#[derive(Debug, clap::Args)]
struct Demo {
    /// Which guest moves.
    #[arg(long, value_enum, default_value_t = GuestOption::Linux)]
    guest: GuestOption,
    /// Print one JSON object on standard output instead of a table.
    #[arg(long)]
    json: bool,
    /// Migrations, there and back in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    moves: u32,
    /// The VM's vCPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    vcpus: u8,
    /// What the hosts are made of [default: what this machine can do].
    #[arg(long, value_enum)]
    setting: Option<SettingOption>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GuestOption {
    /// Debian's cloud kernel.
    Linux,
    /// The project's own small test kernel.
    Reference,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SettingOption {
    /// Processes in network namespaces of this machine.
    Kvm,
    /// Emulated machines.
    Lab,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cleanup::on_interrupt();
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo(options) => run_demo(&options),
        Verb::Test { no_lab } => test::run(no_lab),
        Verb::Check => check::run(),
        Verb::Bench { arguments } => match arguments.split_first() {
            Some((first, rest)) if first == "scheduler" => hand_to("godwit-bench-scheduler", rest),
            _ => hand_to("godwit-bench", &arguments),
        },
        Verb::Sim { arguments } => hand_to("godwit-sim", &arguments),
        Verb::Fuzz { target, seconds } => {
            let effort = seconds.map_or(fuzz::Effort::Bounded, fuzz::Effort::Seconds);
            let tally = fuzz::run(target.as_deref(), effort)?;
            output::line(&tally);
            Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Build => {
            setup::build_released_programs()?;
            setup::build_reference_guest()?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Lab(verb) => lab::run(verb),
    }
}

/// Runs one of the project's own programs, which speaks for itself.
fn hand_to(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut command = setup::cargo_command(&["run", "--release", "--quiet", "-p", program, "--"]);
    command.args(arguments);
    Ok(if step::handed(command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_demo(options: &Demo) -> Result<ExitCode> {
    let report = demo::run(&DemoOptions {
        guest: match options.guest {
            GuestOption::Linux => Guest::Linux,
            GuestOption::Reference => Guest::Reference,
        },
        setting: options.setting.map(|setting| match setting {
            SettingOption::Kvm => Setting::Kvm,
            SettingOption::Lab => Setting::Lab,
        }),
        moves: options.moves,
        vcpus: options.vcpus,
        build: setup::build_released_programs,
    })?;
    if options.json {
        output::line(serde_json::to_string(&report).map_err(error::XtaskError::Print)?);
    } else {
        output::line(&report);
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
