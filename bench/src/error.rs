use std::time::Duration;

use godwit_lab::LabError;

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{}", .0.chain())]
    Lab(#[from] LabError),
    #[error("cannot {action}: {source}")]
    Io { action: String, source: std::io::Error },
    #[error("QEMU refuses `{command}`: {answer}")]
    Refused { command: String, answer: String },
    #[error("QEMU says what is not understood: {text}: {source}")]
    Unreadable { text: String, source: serde_json::Error },
    #[error("QEMU's migration failed: {0}")]
    MigrationFailed(String),
    #[error("{what} did not happen within {} s", limit.as_secs())]
    Timeout { what: String, limit: Duration },
    #[error("the migration left no {0}")]
    NoReport(&'static str),
    #[error("too little was heard of the guest around the migration: the bench cannot tell what it noticed")]
    Unheard,
    #[error("the guest found {count} memory errors after the migration; its console ends with:\n{console}")]
    MemoryErrors { count: u64, console: String },
    #[error("no case is called `{0}`: see `cargo xtask bench migrate --help`")]
    NoSuchCase(String),
    #[error("{count} of {runs} runs went wrong; they are named above")]
    RunsFailed { count: usize, runs: usize },
    #[error("{0}")]
    Memory(String),
    #[error("cannot hold memory ready: {0}")]
    Warm(String),
    #[error("TLS refuses: {0}")]
    Secure(String),
    #[error("cannot print a row as JSON: {0}")]
    Print(serde_json::Error),
}

pub(crate) type Result<T, E = BenchError> = std::result::Result<T, E>;

impl BenchError {
    /// An I/O error with what was being done.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
