//! Threads: which an operating system may refuse, and which have to end.

use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use godwit_types::{ApiError, ErrorCode};

use super::{LINGER, TICK};

/// Starts a thread.
pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ApiError> {
    thread::Builder::new().name(name.into()).spawn(body).map_err(|error| no_thread(&error))
}

/// Why a thread could not be started.
pub(super) fn no_thread(error: &std::io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failed, format!("no thread could be started: {error}"))
        .remedy("raise the limit on threads of this process or host, then migrate again")
}

/// Gives the peer the time to read this side's last words: waits until the control connection's reader has ended,
/// because the peer closed too, but not for ever. What still arrives is thrown away.
pub(super) fn linger<E>(events: &Receiver<E>, reader: &JoinHandle<()>) {
    let began = Instant::now();
    while !reader.is_finished() && began.elapsed() < LINGER {
        let _ = events.recv_timeout(TICK);
    }
}
