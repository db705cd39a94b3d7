use godwit_lab::LabError;

/// What can go wrong while measuring plans.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{}", .0.chain())]
    Lab(#[from] LabError),
    #[error("cannot {action}: {source}")]
    Io { action: String, source: std::io::Error },
    #[error("{0}")]
    Instance(String),
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
