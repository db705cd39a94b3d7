//! Decides between a cancellation and the commit: whichever comes first holds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_types::{ApiError, ErrorCode};

/// See the module.
#[derive(Default)]
pub(super) struct Gate(Mutex<GateState>);

#[derive(Default)]
pub(super) struct GateState {
    /// A cancellation that the engine has not seen yet.
    pub(super) cancel: bool,
    /// Why it can no longer be cancelled.
    pub(super) closed: Option<&'static str>,
}

impl Gate {
    pub(super) fn cancel(&self) -> Result<(), ApiError> {
        let mut state = self.lock();
        match state.closed {
            Some(why) => Err(ApiError::new(ErrorCode::Conflict, why)
                .remedy("see how the migration ended; to undo it, migrate the VM back")),
            None => {
                state.cancel = true;
                Ok(())
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
