//! Passwords, each in a file of its own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::PowerError;

/// Longest password, in bytes.
const BYTES_MAX: u64 = 4096;

/// Nobody but its owner may use the file.
pub(super) async fn require(path: &Path) -> Result<(), PowerError> {
    let refused = |why: String| PowerError::Password { path: path.to_owned(), why };
    let facts = tokio::fs::metadata(path).await.map_err(|error| refused(error.to_string()))?;
    if facts.mode() & 0o077 != 0 {
        return Err(refused(format!("others than its owner may use it (mode {:o})", facts.mode() & 0o777)));
    }
    if facts.len() > BYTES_MAX {
        return Err(refused(format!(
            "it has {} bytes, and no password has more than {BYTES_MAX}",
            facts.len()
        )));
    }
    Ok(())
}

/// The password, without the end of its line.
pub(super) async fn read(path: &Path) -> Result<String, PowerError> {
    require(path).await?;
    let refused =
        |error: std::io::Error| PowerError::Password { path: path.to_owned(), why: error.to_string() };
    let text = tokio::fs::read_to_string(path).await.map_err(refused)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
