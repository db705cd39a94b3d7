use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::CliError;

/// What can go wrong around a cluster.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("cannot {action}")]
    Io {
        action: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot {action}")]
    System {
        action: String,
        #[source]
        source: nix::Error,
    },
    #[error("`{command}` ended with {status}: {stderr}")]
    Command { command: String, status: String, stderr: String },
    #[error("`{command}` did not end within {} s", limit.as_secs())]
    CommandTimeout { command: String, limit: Duration },
    #[error("{what} did not happen within {} s; look at the logs in {} (they stay when GODWIT_LAB_KEEP is set)", limit.as_secs(), logs.display())]
    Timeout { what: String, limit: Duration, logs: PathBuf },
    #[error("{process} ended early with {status}; the end of {}:\n{tail}", log.display())]
    Died { process: String, status: String, log: PathBuf, tail: String },
    /// A guest that was just started has not come up.
    #[error("the guest at {guest} did not answer within {} s: {last}", limit.as_secs())]
    Silent { guest: Ipv4Addr, limit: Duration, last: String },
    #[error(transparent)]
    Cli(#[from] CliError),
    #[error("{what} is not the document that was expected: {found}")]
    Document {
        what: String,
        found: String,
        #[source]
        source: serde_json::Error,
    },
    /// This machine cannot do it; the text says what is missing and what to do.
    #[error("{0}")]
    Unsupported(String),
    /// A promise was broken; the text says which.
    #[error("{0}")]
    Broken(String),
}

/// The result of everything in this crate.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

impl LabError {
    /// An I/O error with what was being done, such as `read /etc/hosts`.
    pub fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// A system call's error with what was being done.
    pub fn system(action: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let action = action.into();
        move |source| Self::System { action, source }
    }

    /// The error and everything that led to it, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}
