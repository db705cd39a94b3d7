//! `godwit`: the manager, the host's agent, and the command line, in one binary.

mod cli;
mod commands;
mod console;
mod forecast;
mod output;
mod parse;
mod report;

use std::process::ExitCode;

use clap::Parser;
use godwit_types::{ApiError, ErrorCode};

use crate::cli::{Cli, HostVerb, ManagerVerb, Verb};
use crate::commands::Session;
use crate::output::Format;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli));
            // A blocked read of standard input must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(ApiError::new(ErrorCode::Failed, format!("threads cannot be started: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<(), ApiError> {
    godwit_faults::check().map_err(|refused| ApiError::new(ErrorCode::Invalid, refused.to_string()))?;
    match cli.verb {
        Verb::Manager(ManagerVerb::Run { listen, state }) => {
            commands::daemon::manager(listen, state, cli.global.token_file).await
        }
        Verb::Host(HostVerb::Run(options)) => commands::daemon::host(*options, cli.global).await,
        Verb::Host(HostVerb::Ls) => commands::host::ls(&Session::open(cli.global)?).await,
        Verb::Host(HostVerb::Show { host }) => commands::host::show(&Session::open(cli.global)?, &host).await,
        Verb::Host(HostVerb::Maintenance(verb)) => {
            commands::maintenance::run(&Session::open(cli.global)?, verb).await
        }
        Verb::Scheduler(verb) => commands::scheduler::run(&Session::open(cli.global)?, verb).await,
        Verb::Vm(verb) => commands::vm::run(&Session::open(cli.global)?, verb).await,
        Verb::Host(HostVerb::Set(options)) => {
            commands::settings::set_host(&Session::open(cli.global)?, *options).await
        }
        Verb::Host(HostVerb::Power { host }) => {
            commands::power::show(&Session::open(cli.global)?, &host).await
        }
        Verb::Host(HostVerb::Wake(options)) => {
            commands::power::wake(&Session::open(cli.global)?, &options).await
        }
        Verb::Host(HostVerb::Standby(options)) => {
            commands::power::standby(&Session::open(cli.global)?, &options).await
        }
        Verb::Rule(verb) => commands::rule::run(&Session::open(cli.global)?, verb).await,
        Verb::Pool(verb) => commands::pool::run(&Session::open(cli.global)?, verb).await,
        Verb::CpuBaseline(verb) => commands::cpu_baseline::run(&Session::open(cli.global)?, verb).await,
        Verb::Policy(verb) => commands::policy::run(&Session::open(cli.global)?, verb).await,
        Verb::Task(verb) => commands::task::run(&Session::open(cli.global)?, verb).await,
        Verb::Simulate(options) => commands::simulate::run(&options, Format::of(&cli.global)),
        Verb::Export(options) => commands::export::run(&Session::open(cli.global)?, &options).await,
        Verb::Events { follow, after } => {
            commands::events::run(&Session::open(cli.global)?, follow, after).await
        }
    }
}
