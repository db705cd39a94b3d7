//! What is asked of the machine: files, and processor time.

use std::fs;
use std::path::Path;

use godwit_lab::LabError;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::error::Result;

/// A file's text.
pub(crate) fn read(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(LabError::io(format!("read {}", path.display())))?)
}

/// Processor time so far, in seconds.
pub(crate) fn cpu_s(of: UsageWho) -> Result<f64> {
    let usage = getrusage(of).map_err(LabError::system("read processor times"))?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}
