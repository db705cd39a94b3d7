//! Fault injection in the programs that tests run.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Board, Step};

const POLL: Duration = Duration::from_millis(1);
/// A test that has died holds nobody for longer.
const HELD_MAX: Duration = Duration::from_secs(60);

static BOARD: OnceLock<Board> = OnceLock::new();

/// Opens the file, once and for all: a program in its sandbox may open none.
pub(crate) fn open(path: &Path) -> io::Result<()> {
    let board = Board::open(path)?;
    BOARD.get_or_init(|| board);
    Ok(())
}

/// Waits here for as long as a test holds the step.
pub fn reached(step: Step) {
    let deadline = Instant::now() + HELD_MAX;
    while is_held(step) && Instant::now() < deadline {
        sleep(POLL);
    }
}

/// Whether a test holds the step, which is told that it was reached: for callers with a way of their own to wait.
pub fn is_held(step: Step) -> bool {
    // A file that is gone holds nobody: its test has ended.
    BOARD.get().is_some_and(|board| board.arrive(step).unwrap_or(false))
}

/// Whether the call at this step is to fail now.
pub fn fails(step: Step) -> bool {
    BOARD.get().is_some_and(|board| board.take_failure(step).unwrap_or(false))
}
