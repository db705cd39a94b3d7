//! `cargo xtask fuzz`: hostile input for everything that reads what a peer, a guest or a client has written.

use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_lab::cleanup::Cleanup;
use godwit_lab::{LabError, setup};

use crate::error::Result;
use crate::step;
use crate::test::tally::Tally;

/// The targets in `fuzz/targets`, and how many inputs each is given where a test wants the same ones every time.
pub(crate) const TARGETS: [(&str, u32); 5] =
    [("wire", 20_000), ("engines", 30_000), ("core", 30_000), ("devices", 600), ("control", 1_500)];
/// The largest single allocation that input may cause, in MiB. A frame is read in pieces of 1 MiB.
const ALLOCATION_MIB_MAX: u32 = 32;
/// What the whole process may use, in MiB; the sanitizer takes most of it.
const MEMORY_MIB_MAX: u32 = 1536;
/// A single input that takes longer is a finding, in seconds.
const INPUT_SECONDS_MAX: u32 = 20;
/// Longest input, in bytes.
const INPUT_BYTES_MAX: u32 = 2048;
/// Inputs to begin with.
const SEEDS: u32 = 24;

/// How long to go on.
#[derive(Clone, Copy)]
pub(crate) enum Effort {
    /// A fixed number of inputs from a fixed seed.
    Bounded,
    /// Each target for this many seconds, from another seed each time.
    Seconds(u32),
}

/// Runs one target, or all; each counts as one test.
pub(crate) fn run(only: Option<&str>, effort: Effort) -> Result<Tally> {
    if !step::has_cargo_tool("fuzz") {
        let mut command = setup::cargo_command(&["install", "cargo-fuzz", "--locked", "--target-dir"]);
        command.arg(setup::target_dir().join("tools"));
        if !step::shown("installing cargo-fuzz", command)? {
            return Ok(Tally {
                skips: vec!["fuzzing: cargo-fuzz is not installed and cannot be".into()],
                ..Tally::default()
            });
        }
    }
    if !step::shown("building the fuzzing targets", build())? {
        return Ok(Tally::failed("the fuzzing targets cannot be built".into()));
    }
    // Targets are ended by their findings, and clean nothing up. Sockets' paths are short, so it is not a folder of ours.
    let scratch = folder(std::env::temp_dir().join(format!("godwit-fuzz-{}", std::process::id())))?;
    let _cleaning = Cleanup::new({
        let scratch = scratch.clone();
        move || drop(std::fs::remove_dir_all(&scratch))
    });
    let mut tally = Tally::default();
    for (target, runs) in TARGETS.into_iter().filter(|(target, _)| only.is_none_or(|only| only == *target)) {
        let mut command = fuzzing(target, runs, effort, &scratch)?;
        command.env("TMPDIR", &scratch);
        if step::shown(&format!("fuzzing {target}"), command)? {
            tally.passed += 1;
        } else {
            eprintln!("» to replay it: {} {}/FILE", binary(target).display(), artifacts(target).display());
            tally.add(Tally::failed(format!("fuzzing {target}")));
        }
    }
    Ok(tally)
}

fn fuzzing(target: &str, runs: u32, effort: Effort, scratch: &Path) -> Result<Command> {
    let mut command = Command::new(binary(target));
    let found = folder(artifacts(target))?;
    if let Effort::Seconds(_) = effort {
        command.arg(folder(target_dir().join("corpus").join(target))?);
    }
    command.arg(seeds(folder(scratch.join(target))?)?);
    match effort {
        Effort::Bounded => command.args(["-seed=1".into(), format!("-runs={runs}")]),
        Effort::Seconds(seconds) => command.arg(format!("-max_total_time={seconds}")),
    };
    command.args([
        format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-artifact_prefix={}/", found.display()),
        "-len_control=0".into(),
        "-verbosity=0".into(),
        "-print_final_stats=1".into(),
    ]);
    Ok(command)
}

/// Inputs to begin with, the same every time. A target makes messages and steps of whatever bytes it gets; long inputs
/// make whole lives of them, and from none the fuzzer takes long to find any.
fn seeds(folder: PathBuf) -> Result<PathBuf> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for seed in 0..SEEDS {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            // Xorshift, by G. Marsaglia.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .take(INPUT_BYTES_MAX as usize >> (seed % 4))
        .collect();
        let path = folder.join(seed.to_string());
        std::fs::write(&path, bytes).map_err(LabError::io(format!("write {}", path.display())))?;
    }
    Ok(folder)
}

/// Sanitizers and coverage counters are unstable options, which a stable compiler takes only when it is told so. It is
/// told in this command alone: it would build everything else anew.
fn build() -> Command {
    let mut command = setup::cargo_command(&["fuzz", "build", "--target-dir"]);
    command.arg(target_dir()).env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Run as it is: `cargo fuzz run` would begin with what earlier runs have left.
fn binary(target: &str) -> PathBuf {
    target_dir().join("x86_64-unknown-linux-gnu/release").join(target)
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).map_err(LabError::io(format!("make {}", path.display())))?;
    Ok(path)
}

fn target_dir() -> PathBuf {
    setup::target_dir().join("fuzz")
}

fn artifacts(target: &str) -> PathBuf {
    target_dir().join("found").join(target)
}
