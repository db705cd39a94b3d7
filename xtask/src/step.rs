//! Running the tools.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_lab::{LabError, exec, setup};

use crate::error::Result;

/// How long one tool may take: a build from nothing, or all tests.
const STEP_LIMIT: Duration = Duration::from_secs(50 * 60);

/// A cargo command in the source tree.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(setup::root());
    command
}

/// Runs a tool, with its output on standard error. Whether it succeeded.
pub(crate) fn shown(what: &str, command: &mut Command) -> Result<bool> {
    eprintln!("» {what}: {}", exec::describe(command));
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(std::io::stderr()).spawn();
    let mut child = child.map_err(LabError::io(format!("run `{}`", exec::describe(command))))?;
    let Some(status) = exec::wait(&mut child, STEP_LIMIT)? else {
        // Its children notice that their parent is gone, or end by their own limits.
        let _ = child.kill();
        let _ = child.wait();
        return Err(LabError::CommandTimeout { command: exec::describe(command), limit: STEP_LIMIT }.into());
    };
    let (seconds, outcome) = (begun.elapsed().as_secs(), if status.success() { "ok" } else { "FAILED" });
    eprintln!("» {what}: {outcome} after {seconds} s");
    Ok(status.success())
}

/// Runs a tool and returns what it prints.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    Ok(exec::run(command, STEP_LIMIT)?)
}

/// Runs a tool to its end, whether or not it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<exec::Output> {
    Ok(exec::output(command, STEP_LIMIT)?)
}

/// Whether `cargo NAME` is installed.
pub(crate) fn has_cargo_tool(name: &str) -> bool {
    let asked = exec::output(&mut cargo(&[name, "--version"]), Duration::from_secs(30));
    asked.is_ok_and(|output| output.status.success())
}
