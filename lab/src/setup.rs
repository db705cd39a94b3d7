//! What must be there before a cluster can start: packages, programs, guests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub mod packages;

use crate::{LabError, Result, exec};

/// How long one build may take, from nothing on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(45 * 60);
/// Builds that take longer than this are announced as done, with their time.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(2);

/// Environment variable: when set, the programs are taken as they are, because the caller has just built them.
pub const BUILT: &str = "GODWIT_BUILT";

/// What tests need to reach into the programs; see `godwit-faults`.
pub const FAULTS: &str = "godwit/faults,godwit-vmm/faults";

/// Cargo's folder of the programs that this process runs, once it is settled.
static PROGRAMS: OnceLock<&str> = OnceLock::new();
const RELEASED: &str = "release";
const TESTED: &str = "debug";

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a folder of the source tree")
}

/// Where cargo puts what it builds for this machine.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The user's program, with `godwit-vmm` beside it: the one that tests run, if this process has asked for those.
pub fn godwit() -> Result<PathBuf> {
    built(target_dir().join(PROGRAMS.get().unwrap_or(&RELEASED)).join("godwit"))
}

/// Whether tests can reach into the programs that this process runs. Released ones refuse to start when they are told where.
pub(crate) fn can_be_reached_into() -> bool {
    PROGRAMS.get() == Some(&TESTED)
}

/// The reference guest's kernel.
pub fn reference_guest() -> Result<PathBuf> {
    built(target_dir().join("guests/release/godwit-reference-guest"))
}

/// Builds `godwit` and `godwit-vmm` as they are released, if their sources have changed. At most once in a process.
pub fn build_released_programs() -> Result<()> {
    build_programs(RELEASED, &["build", "--release", "-p", "godwit", "-p", "godwit-vmm"])
}

/// Builds them as tests want them: they can be reached into, and look after themselves with debug assertions. The tests are
/// built along with them: cargo would give programs alone other features, and compile nearly everything a second time.
pub fn build_tested_programs() -> Result<()> {
    let programs = ["--bin", "godwit", "--bin", "godwit-vmm"];
    let build = [&["build", "--workspace", "--tests"], &programs[..], &["--features", FAULTS]].concat();
    build_programs(TESTED, &build)
}

fn build_programs(folder: &'static str, build: &[&str]) -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    if *PROGRAMS.get_or_init(|| folder) != folder {
        return Err(LabError::Broken("one process runs released programs or tested ones, not both".into()));
    }
    once(&DONE, || cargo("godwit and godwit-vmm", build))
}

/// Builds the reference guest if its sources have changed. At most once in a process.
pub fn build_reference_guest() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let manifest = root().join("guests/reference/Cargo.toml");
    let target = target_dir().join("guests");
    let (manifest, target) = (manifest.to_string_lossy(), target.to_string_lossy());
    let build = ["build", "--release", "--manifest-path", &manifest, "--target-dir", &target];
    once(&DONE, || cargo("the reference guest", &build))
}

/// A cargo command in the source tree, the same whoever gives it. What cargo tells a program that it runs of that program's
/// package would be taken for a change by build scripts that look at it, and half of Godwit be built anew for each asker.
pub fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Runs cargo in the source tree, with its output on standard error.
pub fn cargo(what: &str, arguments: &[&str]) -> Result<()> {
    let mut command = cargo_command(arguments);
    // Standard output belongs to the caller's own document.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let begun = Instant::now();
    let mut child = command.spawn().map_err(LabError::io("run cargo"))?;
    let Some(status) = exec::wait(&mut child, BUILD_LIMIT)? else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(LabError::CommandTimeout { command: exec::describe(&command), limit: BUILD_LIMIT });
    };
    if !status.success() {
        let (command, status) = (exec::describe(&command), status.to_string());
        return Err(LabError::Command { command, status, stderr: "its messages are above".into() });
    }
    if begun.elapsed() > ANNOUNCE_AFTER {
        say(format_args!("built {what} in {:.0} s", begun.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Tells the person at the terminal what is going on.
pub fn say(text: impl std::fmt::Display) {
    eprintln!("» {text}");
}

fn once(done: &OnceLock<Result<(), String>>, build: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(BUILT).is_some() {
        return Ok(());
    }
    done.get_or_init(|| build().map_err(|error| error.chain())).clone().map_err(LabError::Broken)
}

fn built(path: PathBuf) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    Err(LabError::Unsupported(format!("{} is missing: run `cargo xtask build`", path.display())))
}
