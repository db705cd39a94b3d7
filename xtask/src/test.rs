//! `cargo xtask test`: everything that this machine can run, and an honest count of what it cannot.

mod junit;
mod libtest;
pub(crate) mod tally;

use std::process::{Command, ExitCode};

use godwit_lab::setup::{self, packages};
use godwit_lab::{LabError, emulated};

use crate::error::Result;
use crate::{fuzz, output, step};
use tally::Tally;

/// Environment variable: why the tests on emulated hosts are left out.
const NO_LAB: &str = "GODWIT_NO_LAB";

/// Builds and runs everything; the last line on standard output is the count.
pub(crate) fn run(no_lab: bool) -> Result<ExitCode> {
    prepare(no_lab)?;
    let mut tally = Tally::default();
    tally.add(tests(&OTHERS, no_lab)?);
    tally.add(doc_tests()?);
    tally.add(fuzz::run(None, fuzz::Effort::Bounded)?);
    tally.add(tests(&END_TO_END, no_lab)?);
    for skip in &tally.skips {
        eprintln!("» skipped: {skip}");
    }
    for failure in &tally.failures {
        eprintln!("» FAILED: {failure}");
    }
    output::line(&tally);
    Ok(if tally.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the tests need. What cannot be had makes tests skip themselves, with the reason.
fn prepare(no_lab: bool) -> Result<()> {
    for needed in [&packages::NATIVE[..], &packages::TESTS] {
        if let Err(error) = packages::ensure(needed) {
            eprintln!("» {}", error.chain());
        }
    }
    setup::build_tested_programs()?;
    setup::build_reference_guest()?;
    if !no_lab && let Err(error) = emulated::linux_guest().and_then(|_| emulated::postgres_guest()) {
        eprintln!("» the tests on emulated hosts will be skipped: {}", error.chain());
    }
    Ok(())
}

/// Some of the tests. All are built of the same parts, so that nothing is compiled twice.
struct Part {
    what: &'static str,
    /// The test runner's profile, in `.config/nextest.toml`.
    profile: &'static str,
    /// Which they are, for the test runner.
    filter: &'static str,
    /// Which they are, and how many at a time, for cargo alone.
    packages: &'static [&'static str],
    threads: &'static [&'static str],
}

const OTHERS: Part = Part {
    what: "tests",
    profile: "default",
    filter: "not package(godwit-tests)",
    packages: &["--workspace", "--exclude", "godwit-tests", "--features", setup::FAULTS],
    threads: &[],
};

const END_TO_END: Part = Part {
    what: "end-to-end tests",
    profile: "end-to-end",
    filter: "package(godwit-tests)",
    packages: &["--package", "godwit-tests"],
    threads: &["--test-threads=1"],
};

fn tests(part: &Part, no_lab: bool) -> Result<Tally> {
    if step::has_cargo_tool("nextest") {
        return with_nextest(part, no_lab);
    }
    let mut command =
        setup::cargo_command(&[&["test", "--no-fail-fast", "--all-targets"], part.packages].concat());
    environment(&mut command, no_lab);
    command.args(["--", "--show-output"]).args(part.threads);
    with_cargo_test(part.what, command)
}

fn with_nextest(part: &Part, no_lab: bool) -> Result<Tally> {
    let report = setup::target_dir().join("nextest").join(part.profile).join("junit.xml");
    if report.exists() {
        let removing = LabError::io(format!("remove {}", report.display()));
        std::fs::remove_file(&report).map_err(removing)?;
    }
    let mut command = setup::cargo_command(&["nextest", "run", "--workspace", "--features", setup::FAULTS]);
    command.args(["--no-fail-fast", "--profile", part.profile, "--filterset", part.filter]);
    environment(&mut command, no_lab);
    let succeeded = step::shown(part.what, command)?;
    match std::fs::read_to_string(&report) {
        Ok(text) => Ok(junit::read(&text).and_failed_unless(succeeded, part.what)),
        Err(_) => Ok(Tally::failed(format!("the {} did not run", part.what))),
    }
}

fn with_cargo_test(what: &str, command: Command) -> Result<Tally> {
    let (succeeded, printed) = step::recorded(what, command)?;
    if !succeeded {
        eprint!("{printed}");
    }
    Ok(libtest::read(&printed).and_failed_unless(succeeded, what))
}

/// The test runner above knows no documentation tests.
fn doc_tests() -> Result<Tally> {
    let options = ["test", "--workspace", "--doc", "--no-fail-fast", "--features", setup::FAULTS];
    with_cargo_test("documentation tests", setup::cargo_command(&options))
}

fn environment(command: &mut Command, no_lab: bool) {
    if no_lab {
        command.env(NO_LAB, "left out by --no-lab");
    }
    command.env(setup::BUILT, "1");
}
