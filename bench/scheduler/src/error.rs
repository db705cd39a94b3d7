use godwit_lab::LabError;

/// What can go wrong while measuring plans.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{}", .0.chain())]
    Lab(#[from] LabError),
    #[error("{0}")]
    Instance(String),
    #[error("cannot print a row as JSON: {0}")]
    Print(serde_json::Error),
}

pub(crate) type Result<T, E = BenchError> = std::result::Result<T, E>;
