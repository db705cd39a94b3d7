//! `godwit --json VERB...`, run as a user would, from where the manager can be reached.

use std::process::Command;
use std::time::Duration;

use godwit_types::{ApiError, ErrorCode};
use serde::de::DeserializeOwned;

use super::Access;
use crate::{LabError, Result, exec, setup};

/// How long a verb may take that only asks.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// The command line of one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Cli<'a> {
    access: &'a Access,
}

/// A verb that ended with another exit code than 0.
#[derive(Debug, thiserror::Error)]
#[error("`godwit {verb}` ended with exit code {exit_code}: {stderr}")]
pub struct CliError {
    pub verb: String,
    pub exit_code: i32,
    /// What it told the user.
    pub stderr: String,
    /// What it told programs, with `--json`.
    pub stdout: String,
}

impl CliError {
    /// Whether the exit code is the documented one of this kind of error.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.exit_code == i32::from(code.exit_code())
    }

    /// The error document that the verb printed, if it printed one.
    pub fn document(&self) -> Option<ApiError> {
        [&self.stdout, &self.stderr].into_iter().find_map(|text| serde_json::from_str(text.trim()).ok())
    }
}

impl<'a> Cli<'a> {
    /// The command line that reaches the manager through `access`.
    pub fn new(access: &'a Access) -> Self {
        Self { access }
    }

    /// The command for a verb, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.access.namespace.command(setup::godwit()?);
        command.args(["--manager", &self.access.manager]);
        command.arg("--token-file").arg(&self.access.token_file).arg("--json").args(arguments);
        Ok(command)
    }

    /// Runs a verb that answers soon, and reads the document that it prints.
    pub fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        self.wait_for(arguments, ASK_LIMIT)
    }

    /// Runs a verb that may take up to `limit`, and reads the document that it prints.
    pub fn wait_for<T: DeserializeOwned>(&self, arguments: &[&str], limit: Duration) -> Result<T> {
        let text = self.text(arguments, limit)?;
        serde_json::from_str(&text).map_err(|source| LabError::Document {
            what: format!("the answer of `godwit {}`", arguments.join(" ")),
            found: text,
            source,
        })
    }

    /// Runs a verb and returns what it prints.
    pub fn text(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let output = exec::output(&mut self.command(arguments)?, limit)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let error = CliError {
            verb: arguments.join(" "),
            exit_code: output.status.code().unwrap_or(-1),
            stderr: output.stderr.trim().to_owned(),
            stdout: output.stdout,
        };
        Err(error.into())
    }
}
