//! Threads, which an operating system may refuse.

use std::thread::{self, JoinHandle};

use godwit_types::{ApiError, ErrorCode};

/// Starts a thread.
pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ApiError> {
    thread::Builder::new().name(name.into()).spawn(body).map_err(|error| no_thread(&error))
}

/// Why a thread could not be started.
pub(super) fn no_thread(error: &std::io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failed, format!("no thread could be started: {error}"))
        .remedy("raise the limit on threads of this process or host, then migrate again")
}
