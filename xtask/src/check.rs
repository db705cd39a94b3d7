//! `cargo xtask check`: what can be known without running the project.

mod bans;
mod layering;
mod purity;

use std::process::{Command, ExitCode};

use godwit_lab::setup;

use crate::error::Result;
use crate::metadata::Metadata;
use crate::step;

/// The reference guest is a workspace of its own, because it is built for a machine without an operating system.
const REFERENCE: &str = "guests/reference/Cargo.toml";
/// The fuzzing targets are one as well, because they are built with a sanitizer.
const FUZZ: &str = "fuzz/Cargo.toml";

/// Runs every check, also after one has failed, and names those that failed.
pub(crate) fn run() -> Result<ExitCode> {
    let mut failed = Vec::new();
    let mut tool = |what: &'static str, command: Command| -> Result<()> {
        if !step::shown(what, command)? {
            failed.push(what.to_owned());
        }
        Ok(())
    };
    tool("formatting", setup::cargo_command(&["fmt", "--all", "--check"]))?;
    tool("lints", setup::cargo_command(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    if setup::root().join(REFERENCE).exists() {
        tool(
            "formatting of the reference guest",
            setup::cargo_command(&["fmt", "--check", "--manifest-path", REFERENCE]),
        )?;
        tool("lints of the reference guest", reference_clippy())?;
    }
    tool(
        "formatting of the fuzzing targets",
        setup::cargo_command(&["fmt", "--check", "--manifest-path", FUZZ]),
    )?;
    if step::has_cargo_tool("deny") {
        tool("cargo-deny", setup::cargo_command(&["deny", "check", "bans", "licenses", "sources"]))?;
    } else {
        eprintln!(
            "» cargo-deny: SKIPPED, it is not installed (`cargo install cargo-deny --locked` takes minutes)"
        );
    }
    let metadata = Metadata::load()?;
    for (what, faults) in [
        ("layering", layering::faults(&metadata)),
        ("purity", purity::faults()?),
        ("duplicate versions", bans::duplicates(&metadata)),
        ("licences", bans::licences(&metadata)),
    ] {
        eprintln!("» {what}: {}", if faults.is_empty() { "ok" } else { "FAILED" });
        for fault in &faults {
            eprintln!("  {fault}");
        }
        if !faults.is_empty() {
            failed.push(what.to_owned());
        }
    }
    if failed.is_empty() {
        eprintln!("» all checks passed");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("» failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn reference_clippy() -> Command {
    let target = setup::target_dir().join("guests");
    let mut command =
        setup::cargo_command(&["clippy", "--release", "--manifest-path", REFERENCE, "--target-dir"]);
    command.arg(target).args(["--", "-D", "warnings"]);
    command
}
