//! Makes arriving disks durable while they arrive, so that little is left to do at the end of a round.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_types::ApiError;

use super::threads::spawn;
use crate::disks::ArrivingDisks;

/// Between two flushes: what comes in this time, and while one goes on, is what the next one finds.
const INTERVAL: Duration = Duration::from_millis(50);

/// The thread that does it. Dropping this tells it to end, without waiting for a flush that is under way.
pub(super) struct Durable {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Durable {
    pub(super) fn start(disks: Arc<dyn ArrivingDisks>) -> Result<Self, ApiError> {
        let stop = Arc::<Stop>::default();
        let theirs = Arc::clone(&stop);
        let thread = spawn("mig-durable", move || {
            while theirs.rest() {
                // A failure is for good, and so met again by whoever writes next.
                if let Err(error) = disks.flush() {
                    return tracing::warn!("the disks that arrive are not durable: {error}");
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Waits for the thread's end, too.
    pub(super) fn end(mut self) {
        self.stop.tell();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.stop.tell();
    }
}

impl Stop {
    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits; false once it shall end.
    fn rest(&self) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, _) = self
            .changed
            .wait_timeout_while(told, INTERVAL, |told| !*told)
            .unwrap_or_else(PoisonError::into_inner);
        !*told
    }
}
