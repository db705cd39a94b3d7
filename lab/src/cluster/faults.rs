//! Holding a cluster's programs at a step of the handoff; see `godwit-faults`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_faults::Step;

use super::Cluster;
use crate::{LabError, Result, exec};

/// How long a program that reached a step may have taken to get there.
const REACH_LIMIT: Duration = Duration::from_secs(60);

/// A step at which whoever takes it is held, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    step: Step,
    file: PathBuf,
}

impl dyn Cluster + '_ {
    /// Holds the next program that takes `step`.
    pub fn hold(&self, step: Step) -> Result<Hold> {
        let file = self.faults().join(step.name());
        // One that an earlier hold left.
        let _ = std::fs::remove_file(file.with_extension("reached"));
        write(&file, "")?;
        Ok(Hold { step, file })
    }

    /// Makes the call at `step` fail so many times.
    pub fn fail(&self, step: Step, times: u32) -> Result<()> {
        write(&self.faults().join(format!("{}.fails", step.name())), &times.to_string())
    }
}

impl Hold {
    /// Waits until a program has taken the step, and is held.
    pub fn await_reached(&self) -> Result<()> {
        let reached = self.file.with_extension("reached");
        let found = exec::poll(REACH_LIMIT, exec::POLL, || Ok(reached.exists().then_some(())))?;
        let limit = REACH_LIMIT.as_secs();
        found.ok_or_else(|| {
            LabError::Broken(format!("nobody took the step {} within {limit} s", self.step.name()))
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The directory may be gone already, with the cluster.
        let _ = std::fs::remove_file(&self.file);
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))
}
