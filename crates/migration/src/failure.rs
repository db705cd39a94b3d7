//! Errors of a migration as the person at the keyboard reads them.

use std::time::Duration;

use godwit_types::{ApiError, ErrorCode};

use crate::machine::MachineError;

/// Why the memory of a VM that moves with its disks cannot follow it.
pub(crate) const DISKS_DO_NOT_FOLLOW: &str =
    "disks that move with the VM must be there before the guest, so that nothing can follow it by post-copy";

/// The user, or a program, cancelled it.
pub(crate) fn cancelled() -> ApiError {
    ApiError::new(ErrorCode::Cancelled, "the migration was cancelled; the VM runs on at its source")
}

/// A connection broke. `peer` names the other side, `link` the connection.
pub(crate) fn lost(peer: &str, link: Link, reason: &str) -> ApiError {
    ApiError::new(ErrorCode::Unreachable, format!("the {link} to {peer} was lost: {reason}")).remedy(
        "check the network between the hosts and whether the other host still runs, then migrate again",
    )
}

/// The other side says nothing any more.
pub(crate) fn silent(peer: &str, silence: Duration) -> ApiError {
    ApiError::new(
        ErrorCode::Unreachable,
        format!("{peer} has been silent for {:.1} s", silence.as_secs_f64()),
    )
    .remedy("check the network between the hosts and whether the other host still runs, then migrate again")
}

/// The other side lives, but settles no memory.
pub(crate) fn stalled(peer: &str, waited: Duration) -> ApiError {
    let message = format!("{peer} has acknowledged no memory for {:.1} s", waited.as_secs_f64());
    ApiError::new(ErrorCode::Unreachable, message)
        .remedy("check the bandwidth between the hosts and the load of the other host, then migrate again")
}

/// The other side lives, but sends nothing.
pub(crate) fn idle(peer: &str, waited: Duration) -> ApiError {
    let message = format!("{peer} lives, and has sent no memory for {:.1} s", waited.as_secs_f64());
    ApiError::new(ErrorCode::Failed, message).remedy("look at the log of the VM there, then migrate again")
}

/// The other side lives and takes in memory, but does not confirm that all page connections are open.
pub(crate) fn unready(peer: &str, waited: Duration) -> ApiError {
    let message = format!("{peer} has not said within {:.1} s that it is ready", waited.as_secs_f64());
    ApiError::new(ErrorCode::Failed, message).remedy("look at the log of the VM there, then migrate again")
}

/// The guest stood for so long that it is better to let it run on.
pub(crate) fn slow_switchover(peer: &str, stood: Duration) -> ApiError {
    let message =
        format!("{peer} was not ready {:.1} s after the guest had been stopped", stood.as_secs_f64());
    ApiError::new(ErrorCode::Failed, message)
        .remedy("check the load of the other host and the network between the hosts, then migrate again")
}

/// Memory was to follow, and the other side stayed away.
pub(crate) fn stayed_away(peer: &str, waited: Duration) -> ApiError {
    let message = format!(
        "{peer} has not come back for {:.0} s, and part of the VM's memory is still at its source",
        waited.as_secs_f64()
    );
    ApiError::new(ErrorCode::Unreachable, message)
        .remedy("the VM cannot go on: start it again once its host has let it go")
}

/// The destination cannot let memory follow.
pub(crate) fn no_post_copy(peer: &str) -> ApiError {
    let message = format!("the release of {peer} does not know post-copy");
    ApiError::new(ErrorCode::Refused, message)
        .remedy("bring it to this release, or migrate without --post-copy")
}

/// The destination cannot say what it has received.
pub(crate) fn no_digest(peer: &str) -> ApiError {
    let message = format!("the release of {peer} does not know how to compare memory");
    ApiError::new(ErrorCode::Refused, message).remedy("bring it to this release, or migrate without --verify")
}

/// A step of the VM failed here.
pub(crate) fn machine(error: &MachineError) -> ApiError {
    ApiError::new(ErrorCode::Failed, error.to_string())
}

/// The peer broke the protocol's order.
pub(crate) fn out_of_turn(peer: &str, what: &str) -> ApiError {
    ApiError::new(ErrorCode::Failed, format!("{peer} sent {what} out of turn"))
        .remedy("bring both hosts to the same release and migrate again; if it recurs, report it as a defect")
}

/// One of a migration's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Control,
    Pages(u32),
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Control => f.write_str("control connection"),
            Self::Pages(stream) => write!(f, "page connection {stream}"),
        }
    }
}
