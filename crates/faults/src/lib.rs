//! Where tests can reach into the real programs: every step of the handoff has a name, at which a process can be held
//! while the test kills it, or another one, or cuts the network; and calls of the machine can be made to fail.
//!
//! ```text
//!   test                                   program, with GODWIT_FAULTS=DIR
//!     | makes DIR/STEP                       |
//!     |                                      | reaches the step: makes DIR/STEP.reached, waits
//!     | sees it, does its worst              |
//!     | removes DIR/STEP                     |
//!     |                                      | goes on, if it still can
//! ```
//!
//! Only programs built with the feature `inject` look at `GODWIT_FAULTS`. Others refuse to start when it is set, and
//! carry nothing of this: [`reached`] is then empty.

#[cfg(not(feature = "inject"))]
mod absent;
#[cfg(any(feature = "inject", test))]
#[cfg_attr(
    not(feature = "inject"),
    allow(dead_code, unreachable_pub, reason = "its tests run in every build")
)]
mod inject;
mod step;

#[cfg(not(feature = "inject"))]
pub use absent::{fails, is_held, reached};
#[cfg(feature = "inject")]
pub use inject::{fails, is_held, reached};
pub use step::Step;

/// Environment variable: the directory in which tests and programs meet.
pub const DIRECTORY: &str = "GODWIT_FAULTS";

/// Why a program does not start.
#[derive(Debug, thiserror::Error)]
#[error("{DIRECTORY} is set, but this program was built without fault injection: unset it")]
pub struct Refused;

/// To be asked first by every program.
pub fn check() -> Result<(), Refused> {
    may_start(cfg!(feature = "inject"), std::env::var_os(DIRECTORY).is_some())
}

const fn may_start(injects: bool, asked: bool) -> Result<(), Refused> {
    if asked && !injects { Err(Refused) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::may_start;

    #[test]
    fn a_release_refuses_to_start_when_faults_are_asked_for() {
        assert!(may_start(false, true).is_err());
        assert!(may_start(false, false).is_ok() && may_start(true, true).is_ok());
    }
}
