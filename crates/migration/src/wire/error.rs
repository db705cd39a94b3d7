//! What can be wrong with received bytes.

use godwit_types::{ApiError, ErrorCode};

use super::frame::Tag;
use super::preamble::Preamble;

/// Bytes from the peer that cannot be what a healthy Godwit of a compatible version sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the peer does not speak Godwit's migration protocol")]
    Magic,
    #[error("no common protocol version: this side speaks {ours}, the peer speaks {theirs}")]
    Version { ours: Preamble, theirs: Preamble },
    #[error("unknown frame tag {0}")]
    Tag(u8),
    #[error("a reserved header byte is not zero")]
    Reserved,
    #[error("a {tag:?} frame of {length} bytes; at most {max} are allowed")]
    TooLong { tag: Tag, length: usize, max: usize },
    #[error("a {tag:?} frame was damaged on its way: its checksum does not match")]
    Checksum { tag: Tag },
    #[error("a {tag:?} frame where {expected} was expected")]
    OutOfPlace { tag: Tag, expected: &'static str },
    #[error("malformed {what}: {reason}")]
    Malformed { what: &'static str, reason: String },
}

impl WireError {
    pub(crate) fn malformed(what: &'static str, reason: impl ToString) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }

    /// What the person at the keyboard can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Magic => {
                "check that the migration address leads straight to the other host's godwit-vmm, without a proxy"
            }
            Self::Version { .. } => {
                "bring both hosts to releases at most one version apart, then migrate again"
            }
            Self::Checksum { .. } => "check the network between the hosts for corruption, then migrate again",
            _ => {
                "bring both hosts to the same release and migrate again; if it recurs, report it as a defect"
            }
        }
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        let code =
            if matches!(error, WireError::Version { .. }) { ErrorCode::Refused } else { ErrorCode::Failed };
        Self::new(code, error.to_string()).remedy(error.remedy())
    }
}
