//! Where tests can reach into the real programs: every step of the handoff has a name, at which a process can be held
//! while the test kills it, or another one, or cuts the network; and calls of the machine can be made to fail.
//!
//! ```text
//!   test                                   program, with GODWIT_FAULTS=FILE
//!     | makes FILE                           | opens it
//!     | holds STEP in it                     |
//!     |                                      | reaches the step: says so, waits
//!     | sees it, does its worst              |
//!     | releases STEP                        |
//!     |                                      | goes on, if it still can
//! ```
//!
//! Only programs built with the feature `inject` look at `GODWIT_FAULTS`. Others refuse to start when it is set, and
//! carry nothing of this: [`reached`] is then empty.

#[cfg(not(feature = "inject"))]
mod absent;
mod board;
#[cfg(feature = "inject")]
mod inject;
mod step;

use std::io;
use std::path::{Path, PathBuf};

#[cfg(not(feature = "inject"))]
pub use absent::{fails, is_held, reached};
pub use board::Board;
#[cfg(feature = "inject")]
pub use inject::{fails, is_held, reached};
pub use step::Step;

/// Environment variable: the file in which tests and programs meet, a [`Board`].
pub const FILE: &str = "GODWIT_FAULTS";

/// Why a program does not start.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{FILE} is set, but this program was built without fault injection: unset it")]
    Absent,
    #[error("{FILE} names {path}, which cannot be opened: {cause}")]
    Open { path: PathBuf, cause: io::Error },
}

/// To be asked first by every program.
pub fn check() -> Result<(), Refused> {
    std::env::var_os(FILE).map_or(Ok(()), |path| start(Path::new(&path)))
}

#[cfg(not(feature = "inject"))]
fn start(_path: &Path) -> Result<(), Refused> {
    Err(Refused::Absent)
}

#[cfg(feature = "inject")]
fn start(path: &Path) -> Result<(), Refused> {
    inject::open(path).map_err(|cause| Refused::Open { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_with_fault_injection_starts_when_faults_are_asked_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(start(file.path()).is_ok(), cfg!(feature = "inject"));
        assert!(start(Path::new("/nonexistent")).is_err());
    }
}
