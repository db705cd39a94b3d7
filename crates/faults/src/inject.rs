//! Fault injection in the programs that tests run.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{DIRECTORY, Step};

const POLL: Duration = Duration::from_millis(1);
/// A test that has died holds nobody for longer.
const HELD_MAX: Duration = Duration::from_secs(60);

/// Waits here for as long as a test holds the step.
pub fn reached(step: Step) {
    let deadline = Instant::now() + HELD_MAX;
    while is_held(step) && Instant::now() < deadline {
        sleep(POLL);
    }
}

/// Whether a test holds the step, which is told that it was reached: for callers with a way of their own to wait.
pub fn is_held(step: Step) -> bool {
    place().is_some_and(|place| place.is_held(step))
}

/// Whether the call at this step is to fail now: `DIR/STEP.fails` says how often it still is.
pub fn fails(step: Step) -> bool {
    place().is_some_and(|place| place.fails(step))
}

fn place() -> Option<&'static Place> {
    static PLACE: OnceLock<Option<Place>> = OnceLock::new();
    PLACE.get_or_init(|| std::env::var_os(DIRECTORY).map(|dir| Place(dir.into()))).as_ref()
}

/// The directory in which tests and programs meet.
struct Place(PathBuf);

impl Place {
    fn is_held(&self, step: Step) -> bool {
        let hold = self.0.join(step.name());
        if !hold.exists() {
            return false;
        }
        // Failing to tell is found out by the test, which waits for it.
        let _ = std::fs::write(hold.with_extension("reached"), std::process::id().to_string());
        true
    }

    fn fails(&self, step: Step) -> bool {
        let path = self.0.join(step.name()).with_extension("fails");
        let left = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let Some(left @ 1..) = left else { return false };
        std::fs::write(path, (left - 1).to_string()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_held_until_its_file_is_gone_and_tells_that_it_was_reached() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place(dir.path().to_owned());
        let hold = dir.path().join(Step::SourcePause.name());
        assert!(!place.is_held(Step::SourcePause));
        std::fs::write(&hold, "").unwrap();
        assert!(place.is_held(Step::SourcePause) && !place.is_held(Step::SourceSave));
        assert!(hold.with_extension("reached").exists());
        std::fs::remove_file(&hold).unwrap();
        assert!(!place.is_held(Step::SourcePause));
    }

    #[test]
    fn a_call_fails_as_often_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place(dir.path().to_owned());
        std::fs::write(dir.path().join("source-save.fails"), "2").unwrap();
        assert_eq!([(); 3].map(|()| place.fails(Step::SourceSave)), [true, true, false]);
        assert!(!place.fails(Step::DestinationLoad));
    }
}
