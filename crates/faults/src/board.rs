//! The file in which tests and programs meet: one record for each step, in the order of [`Step::ALL`].
//!
//! ```text
//!   bytes 0..4   not zero: whoever takes the step is held
//!         4..8   the pid of the last one that was held there
//!        8..12   how often the call at the step still fails
//! ```
//!
//! Numbers are little-endian, and each has one writer at a time. A file that is opened once serves programs that may open
//! nothing any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Step;

const RECORD_BYTES: u64 = 12;
const HELD: u64 = 0;
const REACHED: u64 = 4;
const FAILS: u64 = 8;

/// An open file of records.
#[derive(Debug)]
pub struct Board(File);

impl Board {
    /// Makes an empty one.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(Step::ALL.len() as u64 * RECORD_BYTES)?;
        Ok(Self(file))
    }

    /// Opens one that is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// From now on, holds whoever takes `step`.
    pub fn hold(&self, step: Step) -> io::Result<()> {
        self.write(step, REACHED, 0)?;
        self.write(step, HELD, 1)
    }

    /// Holds nobody there any more.
    pub fn release(&self, step: Step) -> io::Result<()> {
        self.write(step, HELD, 0)
    }

    /// Makes the call at `step` fail so many times.
    pub fn fail(&self, step: Step, times: u32) -> io::Result<()> {
        self.write(step, FAILS, times)
    }

    /// Who was held at `step` since [`Board::hold`].
    pub fn reached(&self, step: Step) -> io::Result<Option<u32>> {
        Ok(Some(self.read(step, REACHED)?).filter(|pid| *pid != 0))
    }

    /// The program's side: whether it is held now, which it tells at once.
    #[cfg(any(feature = "inject", test))]
    pub(crate) fn arrive(&self, step: Step) -> io::Result<bool> {
        let held = self.read(step, HELD)? != 0;
        if held {
            self.write(step, REACHED, std::process::id())?;
        }
        Ok(held)
    }

    /// The program's side: whether the call at `step` is to fail now.
    #[cfg(any(feature = "inject", test))]
    pub(crate) fn take_failure(&self, step: Step) -> io::Result<bool> {
        let left = self.read(step, FAILS)?;
        if left > 0 {
            self.write(step, FAILS, left - 1)?;
        }
        Ok(left > 0)
    }

    fn read(&self, step: Step, field: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, at(step, field))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&self, step: Step, field: u64, number: u32) -> io::Result<()> {
        self.0.write_all_at(&number.to_le_bytes(), at(step, field))
    }
}

const fn at(step: Step, field: u64) -> u64 {
    step as u64 * RECORD_BYTES + field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> (tempfile::NamedTempFile, Board) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let board = Board::create(file.path()).unwrap();
        (file, board)
    }

    #[test]
    fn a_step_is_held_until_it_is_released_and_tells_who_has_reached_it() {
        let (file, test) = board();
        let program = Board::open(file.path()).unwrap();
        assert!(!program.arrive(Step::SourcePause).unwrap());
        test.hold(Step::SourcePause).unwrap();
        assert_eq!(test.reached(Step::SourcePause).unwrap(), None);
        assert!(program.arrive(Step::SourcePause).unwrap() && !program.arrive(Step::SourceSave).unwrap());
        assert_eq!(test.reached(Step::SourcePause).unwrap(), Some(std::process::id()));
        test.release(Step::SourcePause).unwrap();
        assert!(!program.arrive(Step::SourcePause).unwrap());
        test.hold(Step::SourcePause).unwrap();
        assert_eq!(test.reached(Step::SourcePause).unwrap(), None, "that was an earlier time");
    }

    #[test]
    fn a_call_fails_as_often_as_asked() {
        let (_file, board) = board();
        board.fail(Step::SourceSave, 2).unwrap();
        assert_eq!([(); 3].map(|()| board.take_failure(Step::SourceSave).unwrap()), [true, true, false]);
        assert!(!board.take_failure(Step::ManagerSettled).unwrap());
    }
}
