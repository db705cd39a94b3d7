use godwit_lab::LabError;

/// What can go wrong in the project's own commands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XtaskError {
    #[error("{}", .0.chain())]
    Lab(#[from] LabError),
    #[error("the result cannot be printed as JSON")]
    Print(#[source] serde_json::Error),
    #[error("the answer of `{command}` cannot be read")]
    Metadata {
        command: String,
        #[source]
        source: serde_json::Error,
    },
}

pub(crate) type Result<T, E = XtaskError> = std::result::Result<T, E>;

impl XtaskError {
    /// The error and everything that led to it, in one line.
    pub(crate) fn chain(&self) -> String {
        match self {
            Self::Print(source) | Self::Metadata { source, .. } => format!("{self}: {source}"),
            Self::Lab(_) => self.to_string(),
        }
    }
}
