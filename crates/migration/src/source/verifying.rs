//! After the guest has left, if that was asked for: whether its memory arrived as it was.
//!
//! ```text
//!  HandedOver, Serving --RESUMED or WHOLE--> Verifying --memory was read once more--> Ended: Completed
//! ```
//!
//! The destination has said all it has to say; whether it is still heard does not matter.

use std::time::Duration;

use godwit_types::Bytes;
use godwit_types::PAGE_SIZE_BYTES;
use godwit_types::migration::{Comparison, MigrationReport, Verification};

use super::{Action, Engine, State};
use crate::machine::MachineError;
use crate::proof::MemoryDigest;
use crate::report::ms;

/// What is known when the comparison begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verifying {
    report: Box<MigrationReport>,
    /// As the destination has it.
    there: Option<MemoryDigest>,
    since: Duration,
}

impl Engine {
    pub(super) fn verify(&mut self, report: Box<MigrationReport>, there: Option<MemoryDigest>) {
        self.state = State::Verifying(Verifying { report, there, since: self.now });
        self.actions.push(Action::Digest);
    }

    pub(super) fn digested(&mut self, here: Result<MemoryDigest, MachineError>) {
        let State::Verifying(Verifying { report, there, since }) = self.state.clone() else { return };
        let hex = |MemoryDigest(digest): &MemoryDigest| format!("{digest:032x}");
        let memory = match (&here, &there) {
            (Ok(here), Some(there)) if here == there => Comparison::Same,
            (Ok(_), Some(_)) => Comparison::Different,
            _ => Comparison::Unknown,
        };
        let verification = Verification {
            memory,
            size: Bytes(self.setup.ram_pages * PAGE_SIZE_BYTES),
            here: here.as_ref().ok().map(hex),
            there: there.as_ref().map(hex),
            took_ms: ms(self.now.saturating_sub(since)),
        };
        self.completed(Box::new(MigrationReport { verified: Some(Box::new(verification)), ..*report }));
    }
}
