//! Running commands with a time limit.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{LabError, Result};

/// How often a waiter looks again at something that costs nothing to look at.
pub const POLL: Duration = Duration::from_millis(10);
/// How often a waiter runs a command again.
pub const POLL_COMMAND: Duration = Duration::from_millis(100);
/// How long the output of a command that has ended may take to arrive.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
const POLL_DRAIN: Duration = Duration::from_millis(1);

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the command to its end, with nothing on its standard input; killed when `limit` has passed.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let text = describe(command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(LabError::io(format!("run `{text}`")))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let Some(status) = wait(&mut child, limit)? else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(LabError::CommandTimeout { command: text, limit });
    };
    Ok(Output { status, stdout: collect(stdout), stderr: collect(stderr) })
}

/// Like [`output`], but an unsuccessful end is an error. Returns the standard output.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(command, limit)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(LabError::Command {
        command: describe(command),
        status: output.status.to_string(),
        stderr: output.stderr.trim().to_owned(),
    })
}

/// Waits for the child; `None` when it still runs after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(LabError::io("wait for a child process"))? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Looks every `pause` until `look` finds something or `limit` has passed.
pub fn poll<T>(
    limit: Duration,
    pause: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
    }
}

/// The command as a person would type it.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What a pipe has said so far, and the thread that listens.
struct Drain {
    said: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> Drain {
    let said = Arc::new(Mutex::new(Vec::new()));
    let sink = said.clone();
    let thread = std::thread::spawn(move || {
        let (mut buffer, Some(mut pipe)) = ([0; 8192], pipe) else { return };
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
        }
    });
    Drain { said, thread }
}

/// A grandchild that keeps the pipe open holds this up for a moment only.
fn collect(drain: Drain) -> String {
    let deadline = Instant::now() + DRAIN_LIMIT;
    while !drain.thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(POLL_DRAIN);
    }
    let said = drain.said.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&said).into_owned()
}
