//! What happens to the machine that its supervisor must see to.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use godwit_types::migration::MigrationOutcome;
use godwit_types::{ApiError, Epoch};

use crate::devices::legacy::Platform;

/// Collects events from any thread for one that waits. Each kind is kept once, so a guest cannot fill it.
#[derive(Default)]
pub struct Doorbell {
    pending: Mutex<Pending>,
    rung: Condvar,
}

/// What has happened since the supervisor last looked.
#[derive(Debug, Default)]
pub struct Pending {
    /// The guest or a client asks for a reset.
    pub reset: bool,
    /// The guest has powered itself off.
    pub power_off: bool,
    /// A client or a signal asks for the end.
    pub quit: bool,
    /// The machine cannot go on, and why.
    pub failed: Option<String>,
    /// The migration away has ended.
    pub outgoing: Option<MigrationOutcome>,
    /// The migration to here has ended.
    pub incoming: Option<Result<Epoch, ApiError>>,
}

impl Doorbell {
    /// Adds something and wakes the supervisor.
    pub fn ring(&self, add: impl FnOnce(&mut Pending)) {
        add(&mut self.pending());
        self.rung.notify_one();
    }

    /// Waits until something has happened and takes all of it.
    pub fn wait(&self) -> Pending {
        let quiet = |pending: &mut Pending| {
            !(pending.reset || pending.power_off || pending.quit)
                && pending.failed.is_none()
                && pending.outgoing.is_none()
                && pending.incoming.is_none()
        };
        let mut pending = self.rung.wait_while(self.pending(), quiet).expect("nobody panics at the doorbell");
        std::mem::take(&mut *pending)
    }

    /// Waits for the end of the migration away alone, but not longer than `limit`.
    pub fn wait_outgoing(&self, limit: Duration) -> Option<MigrationOutcome> {
        let under_way = |pending: &mut Pending| pending.outgoing.is_none();
        let waited = self.rung.wait_timeout_while(self.pending(), limit, under_way);
        waited.expect("nobody panics at the doorbell").0.outgoing.take()
    }

    /// Waits for the end of the migration to here, but not longer than `limit`.
    pub fn wait_incoming(&self, limit: Duration) {
        let under_way = |pending: &mut Pending| pending.incoming.is_none();
        drop(self.rung.wait_timeout_while(self.pending(), limit, under_way));
    }

    /// Takes a reset that the supervisor has not seen yet, for whoever stops the vCPUs first.
    pub(super) fn take_reset(&self) -> bool {
        std::mem::take(&mut self.pending().reset)
    }

    /// Whether somebody asks for the end.
    pub fn quitting(&self) -> bool {
        self.pending().quit
    }

    /// Whether the guest has powered itself off.
    pub(super) fn powered_off(&self) -> bool {
        self.pending().power_off
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("nobody panics at the doorbell")
    }
}

impl Platform for Doorbell {
    fn reset(&self) {
        self.ring(|pending| pending.reset = true);
    }

    fn power_off(&self) {
        self.ring(|pending| pending.power_off = true);
    }
}
