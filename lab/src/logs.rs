//! The ends of a cluster's logs, for whoever has to find out what went wrong.

use std::path::{Path, PathBuf};

/// How much of each log is shown, in bytes.
const TAIL_BYTES: usize = 2000;

/// The end of one log.
pub fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let start = bytes.len().saturating_sub(TAIL_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// The ends of all `.log` files below a folder, each under its name.
pub fn tails(folder: &Path) -> String {
    let mut logs = below(folder);
    logs.sort();
    let tails = logs.iter().map(|log| format!("--- {} ---\n{}\n", log.display(), tail(log)));
    tails.collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut logs = Vec::new();
    for entry in entries {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            logs.extend(below(&path));
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
    logs
}
