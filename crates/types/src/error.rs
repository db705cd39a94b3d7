//! The one error document of every API.

use serde::{Deserialize, Serialize};

/// What went wrong, in a word that programs can match. The CLI's exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is malformed.
    Invalid,
    /// The token is missing or wrong.
    Unauthorized,
    /// No VM, host or task of that name.
    NotFound,
    /// The thing exists already, or is busy with something that excludes the request.
    Conflict,
    /// A precondition does not hold: the destination lacks memory, a network, a disk, a version.
    Refused,
    /// Somebody cancelled it.
    Cancelled,
    /// A host or the manager cannot be reached.
    Unreachable,
    /// It was tried and failed.
    Failed,
    /// A defect in Godwit.
    Internal,
}

/// An error as every API reports it: what happened, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// What happened, naming the thing it happened to.
    pub message: String,
    /// What the person at the keyboard can do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl ApiError {
    /// An error without a remedy; add one with [`ApiError::remedy`].
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: None }
    }

    /// That something excludes the request: it exists already, or is busy.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    /// The same error with what to do next.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl ErrorCode {
    /// The HTTP status that carries this code.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::NotFound => 404,
            Self::Conflict | Self::Cancelled => 409,
            Self::Refused => 412,
            Self::Unreachable => 503,
            Self::Failed => 502,
            Self::Internal => 500,
        }
    }

    /// The exit code with which the CLI ends. 0 is success, 2 is a usage error found by the CLI itself.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Internal => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Refused => 5,
            Self::Unreachable => 6,
            Self::Unauthorized => 7,
            Self::Cancelled => 8,
        }
    }
}
