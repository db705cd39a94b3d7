//! What this host's `godwit-vmm` can run, as it says itself.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use godwit_types::capability::VmmOffer;
use tokio::process::Command;
use tokio::time::timeout;

/// How long it may take to say so.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks it, or says why it does not tell.
pub(crate) async fn offer(vmm: &Path) -> Result<VmmOffer, String> {
    let mut command = Command::new(vmm);
    command.arg("--offer").stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(OFFER_TIMEOUT, command.output()).await;
    let ended = ended.map_err(|_| format!("it does not answer within {} s", OFFER_TIMEOUT.as_secs()))?;
    let output = ended.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("it answers something else: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_or_answers_otherwise_offers_nothing_and_says_why() {
        let missing = offer(Path::new("/nonexistent/godwit-vmm")).await.unwrap_err();
        assert!(missing.contains("No such file"), "{missing}");
        let other = offer(Path::new("/bin/echo")).await.unwrap_err();
        assert!(other.contains("something else"), "{other}");
        assert!(offer(Path::new("/bin/false")).await.is_err());
    }
}
