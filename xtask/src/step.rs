//! Running the tools.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_lab::cleanup::Cleanup;
use godwit_lab::{LabError, exec, setup};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::Result;

/// How long one tool may take: a build from nothing, or all tests.
const STEP_LIMIT: Duration = Duration::from_secs(50 * 60);
/// How long a tool that was told to end may take to do so.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// Runs a tool, with its output on standard error. Whether it succeeded.
pub(crate) fn shown(what: &str, mut command: Command) -> Result<bool> {
    command.stdout(std::io::stderr());
    supervise(what, command)
}

/// Runs a tool that speaks for itself, in the foreground, for as long as it takes. Whether it succeeded.
pub(crate) fn handed(mut command: Command) -> Result<bool> {
    let text = exec::describe(&command);
    Ok(command.status().map_err(LabError::io(format!("run `{text}`")))?.success())
}

/// Runs a tool, with its messages on standard error. Whether it succeeded, and what it printed.
pub(crate) fn recorded(what: &str, mut command: Command) -> Result<(bool, String)> {
    let (mut read, write) = std::io::pipe().map_err(LabError::io("make a pipe"))?;
    command.stdout(write);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = read.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let succeeded = supervise(what, command)?;
    Ok((succeeded, reader.join().unwrap_or_default()))
}

/// Runs the command in a process group of its own, so that everything that it starts ends with it.
fn supervise(what: &str, mut command: Command) -> Result<bool> {
    let text = exec::describe(&command);
    eprintln!("» {what}: {text}");
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).process_group(0).spawn();
    let mut child = child.map_err(LabError::io(format!("run `{text}`")))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let ending = Cleanup::new(move || {
        // A group that has just ended by itself is what is wanted.
        let _ = killpg(group, Signal::SIGTERM);
    });
    let Some(status) = exec::wait(&mut child, STEP_LIMIT)? else {
        drop(ending);
        let _ = exec::wait(&mut child, ENDING_LIMIT)?;
        return Err(LabError::CommandTimeout { command: text, limit: STEP_LIMIT }.into());
    };
    ending.disarm();
    let (seconds, outcome) = (begun.elapsed().as_secs(), if status.success() { "ok" } else { "FAILED" });
    eprintln!("» {what}: {outcome} after {seconds} s");
    Ok(status.success())
}

/// Runs a tool and returns what it prints.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    Ok(exec::run(command, STEP_LIMIT)?)
}

/// Whether `cargo NAME` is installed.
pub(crate) fn has_cargo_tool(name: &str) -> bool {
    let asked = exec::output(&mut setup::cargo_command(&[name, "--version"]), Duration::from_secs(30));
    asked.is_ok_and(|output| output.status.success())
}
