//! Running a program that switches something, within bounds.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a program may take: `ipmitool` alone tries for up to 20 s to reach a controller.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most that is read of what it prints, in bytes.
const OUTPUT_BYTES_MAX: u64 = 4096;

/// Why a program has not done what it is there for.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("{program} cannot be run: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} had not ended after {} s, and was ended", .after.as_secs_f64())]
    Slow { program: String, after: Duration },
    #[error("{program} failed ({status}): {said}")]
    Failed { program: String, status: String, said: String },
}

impl CommandError {
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Start { .. } => "install it on the manager's machine, and let the manager's user run it",
            Self::Slow { .. } => "check that it reaches what it is to switch, by running it by hand",
            Self::Failed { .. } => "run it by hand as the manager's user, and mend what it says",
        }
    }
}

/// What a program prints, without white space around it. It is ended if it takes too long, or if nobody waits any more.
pub(super) async fn run(program: &Path, arguments: &[&str]) -> Result<String, CommandError> {
    within(TIMEOUT, program, arguments).await
}

async fn within(limit: Duration, program: &Path, arguments: &[&str]) -> Result<String, CommandError> {
    let name = || program.display().to_string();
    let start = |source| CommandError::Start { program: name(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = timeout(limit, async { tokio::join!(read(stdout), read(stderr), child.wait()) });
    let Ok((printed, complained, status)) = ended.await else {
        return Err(CommandError::Slow { program: name(), after: limit });
    };
    let status = status.map_err(start)?;
    if status.success() {
        return Ok(printed);
    }
    let said = if complained.is_empty() { printed } else { complained };
    Err(CommandError::Failed { program: name(), status: status.to_string(), said })
}

/// The beginning of what comes; the rest is read and forgotten, so that the program is not held up.
async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    // What was read before an error is told all the same.
    let _ = (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;
    use std::time::Instant;

    use super::*;

    /// A program that does what `script` says.
    pub(in crate::power) fn program(dir: &Path, name: &str, script: &str) -> PathBuf {
        let path = dir.join(name);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path).unwrap();
        std::io::Write::write_all(&mut file, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        path
    }

    #[tokio::test]
    async fn what_a_program_says_is_told_whether_it_succeeds_or_fails() {
        let dir = tempfile::tempdir().unwrap();
        let good = program(dir.path(), "good", "echo \" $1 \"");
        assert_eq!(run(&good, &["on"]).await.unwrap(), "on");
        let bad = program(dir.path(), "bad", "echo 'no such controller' >&2; exit 3");
        let error = run(&bad, &[]).await.unwrap_err().to_string();
        assert!(error.contains("no such controller") && error.contains('3'), "{error}");
        let missing = run(&dir.path().join("missing"), &[]).await.unwrap_err();
        assert!(matches!(missing, CommandError::Start { .. }), "{missing}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", pid_file.display());
        let slow = program(dir.path(), "slow", &script);
        let error = within(Duration::from_millis(500), &slow, &[]).await.unwrap_err();
        assert!(matches!(error, CommandError::Slow { .. }), "{error}");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let began = Instant::now();
        // Gone, or dead and not yet waited for.
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while lives() {
            assert!(began.elapsed() < Duration::from_secs(20), "the program lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_prints_without_end_is_not_held_up_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let loud = program(dir.path(), "loud", "head -c 1000000 /dev/zero | tr '\\0' x");
        assert_eq!(run(&loud, &[]).await.unwrap().len() as u64, OUTPUT_BYTES_MAX);
    }
}
