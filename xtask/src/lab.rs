//! `cargo xtask lab`: emulated hosts that stay until they are taken down.

use std::process::ExitCode;

use clap::Subcommand;
use godwit_lab::{emulated, setup};

use crate::error::Result;
use crate::output;

/// What can be done with the lab.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  cargo xtask lab up
  cargo xtask lab exec host-a -- ip -brief address
  cargo xtask lab cut host-b
  cargo xtask lab down")]
pub(crate) enum LabVerb {
    /// Boot the hosts, and a manager that they join.
    Up {
        /// How many hosts.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
        hosts: u8,
    },
    /// Run a command on a host.
    Exec {
        host: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Take a host off the network.
    Cut { host: String },
    /// Put it back.
    Mend { host: String },
    /// Cut a host's power.
    Kill { host: String },
    /// Show what is up, and how to reach it.
    Status,
    /// Remove everything.
    Down,
}

/// Does it.
pub(crate) fn run(verb: LabVerb) -> Result<ExitCode> {
    match verb {
        LabVerb::Up { hosts } => emulated::up(hosts, setup::build_released_programs)?,
        LabVerb::Exec { host, command } => {
            let code = emulated::exec(&host, &command)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        LabVerb::Cut { host } => emulated::cut(&host)?,
        LabVerb::Mend { host } => emulated::mend(&host)?,
        LabVerb::Kill { host } => emulated::kill(&host)?,
        LabVerb::Status => output::line(emulated::status()?),
        LabVerb::Down => emulated::down()?,
    }
    Ok(ExitCode::SUCCESS)
}
