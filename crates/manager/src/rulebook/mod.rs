//! What people lay down: rules, pools, the policy, the baseline of CPUs, and settings of VMs and hosts.
//!
//! ```text
//!   what is asked for -> merged into what is there -> sound by itself -> written -> can still be honoured -> told of
//!                                                        '--- no: refused, with what to do ---'
//! ```
//!
//! A change is one transaction, so what is refused after it was written has never been there. Whoever has to act on changes
//! waits for the event [`CHANGED`], which all of them are.

mod admit;
pub(crate) mod cpu_baseline;
mod merge;
pub(crate) mod policy;
pub(crate) mod pools;
pub(crate) mod rules;
pub(crate) mod settings;

use godwit_types::{ApiError, ErrorCode};

use crate::store::{NewEvent, StoreError, Tx};

pub(crate) use admit::admitted;

/// The kind of every event that tells of a change of what is laid down here.
pub(crate) const CHANGED: &str = "rulebook.changed";

fn changed(tx: &Tx<'_>, message: String) -> Result<(), StoreError> {
    tx.add_event(NewEvent::new(CHANGED, message))
}

/// Nothing if nothing was found.
fn refuse(code: ErrorCode, found: Vec<(String, String)>) -> Result<(), ApiError> {
    if found.is_empty() { Ok(()) } else { Err(refusal(code, found)) }
}

/// One error of all that was found, with the remedies of all.
fn refusal(code: ErrorCode, found: Vec<(String, String)>) -> ApiError {
    let (mut reasons, mut remedies) = (Vec::new(), Vec::new());
    for (reason, remedy) in found {
        reasons.push(reason);
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    ApiError::new(code, reasons.join("; ")).remedy(remedies.join("; "))
}
