//! Holding a cluster's programs at a step of the handoff; see `godwit-faults`.

use std::time::Duration;

use godwit_faults::{Board, Step};

use super::Cluster;
use crate::{LabError, Result, exec};

/// How long a program that reached a step may have taken to get there.
const REACH_LIMIT: Duration = Duration::from_secs(60);

/// A step at which whoever takes it is held, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    step: Step,
    board: Board,
}

impl dyn Cluster + '_ {
    /// Holds the next program that takes `step`.
    pub fn hold(&self, step: Step) -> Result<Hold> {
        let board = self.board()?;
        board.hold(step).map_err(LabError::io(format!("hold {}", step.name())))?;
        Ok(Hold { step, board })
    }

    /// Makes the call at `step` fail so many times.
    pub fn fail(&self, step: Step, times: u32) -> Result<()> {
        self.board()?.fail(step, times).map_err(LabError::io(format!("fail {}", step.name())))
    }

    fn board(&self) -> Result<Board> {
        let path = self.faults();
        Board::open(&path).map_err(LabError::io(format!("open {}", path.display())))
    }
}

impl Hold {
    /// Waits until a program has taken the step, and is held.
    pub fn await_reached(&self) -> Result<()> {
        let reached = || self.board.reached(self.step).map_err(LabError::io("read who was held"));
        let found = exec::poll(REACH_LIMIT, exec::POLL, reached)?;
        let limit = REACH_LIMIT.as_secs();
        found.map(drop).ok_or_else(|| {
            LabError::Broken(format!("nobody took the step {} within {limit} s", self.step.name()))
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Programs that are held go on by themselves in the end.
        let _ = self.board.release(self.step);
    }
}
