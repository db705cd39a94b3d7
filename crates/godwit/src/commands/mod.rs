//! What each verb does. Everything but [`daemon`] uses the manager's public API and nothing else, and [`simulate`] files alone.

pub(crate) mod check;
pub(crate) mod cpu_baseline;
pub(crate) mod daemon;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod host;
pub(crate) mod maintenance;
pub(crate) mod migrate;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod pool;
pub(crate) mod power;
pub(crate) mod rule;
pub(crate) mod scheduler;
pub(crate) mod settings;
pub(crate) mod simulate;
pub(crate) mod storage;
pub(crate) mod task;
pub(crate) mod vm;

use std::path::PathBuf;

use godwit_api::{Client, Token};
use godwit_types::{ApiError, ErrorCode};

use crate::cli::Global;
use crate::output::Format;

/// Where the manager keeps its token by default.
const TOKEN_FILE_DEFAULT: &str = "/var/lib/godwit/manager/token";

/// A connection to the manager, and how to print what it says.
pub(crate) struct Session {
    pub client: Client,
    pub format: Format,
}

impl Session {
    /// Reads the token; connects on the first request.
    pub(crate) fn open(global: Global) -> Result<Self, ApiError> {
        let format = Format::of(&global);
        let token_file = global.token_file.unwrap_or_else(|| PathBuf::from(TOKEN_FILE_DEFAULT));
        let token = Token::read(&token_file).map_err(|error| failed(ErrorCode::Unauthorized, &error))?;
        Ok(Self { client: Client::new(global.manager, Some(token)), format })
    }
}

/// The error and its causes on one line.
fn failed(code: ErrorCode, error: &dyn std::error::Error) -> ApiError {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let texts: Vec<String> =
        std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect();
    ApiError::new(code, texts.join(": "))
}
