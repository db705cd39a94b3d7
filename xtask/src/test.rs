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

/// The package of end-to-end tests. They run one after another, because each is a cluster of its own.
const END_TO_END: &str = "godwit-tests";
/// The test runner's profile for them, in `.config/nextest.toml`.
const END_TO_END_PROFILE: &str = "end-to-end";
/// Environment variable: why the tests on emulated hosts are left out.
const NO_LAB: &str = "GODWIT_NO_LAB";

/// Builds and runs everything; the last line on standard output is the count.
pub(crate) fn run(no_lab: bool) -> Result<ExitCode> {
    prepare(no_lab)?;
    let mut tally = Tally::default();
    tally.add(tests("tests", &["--workspace", "--exclude", END_TO_END], None, no_lab)?);
    tally.add(doc_tests()?);
    tally.add(fuzz::run(None, fuzz::Effort::Bounded)?);
    tally.add(tests("end-to-end tests", &["--package", END_TO_END], Some(END_TO_END_PROFILE), no_lab)?);
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
    setup::build_programs()?;
    setup::build_reference_guest()?;
    if !no_lab && let Err(error) = emulated::linux_guest().and_then(|_| emulated::postgres_guest()) {
        eprintln!("» the tests on emulated hosts will be skipped: {}", error.chain());
    }
    Ok(())
}

fn tests(what: &str, packages: &[&str], profile: Option<&str>, no_lab: bool) -> Result<Tally> {
    if step::has_cargo_tool("nextest") {
        return with_nextest(what, packages, profile, no_lab);
    }
    let mut command = step::cargo(&[&["test", "--no-fail-fast", "--all-targets"], packages].concat());
    environment(&mut command, no_lab);
    command.args(["--", "--show-output"]);
    if profile.is_some() {
        command.arg("--test-threads=1");
    }
    with_cargo_test(what, command)
}

fn with_nextest(what: &str, packages: &[&str], profile: Option<&str>, no_lab: bool) -> Result<Tally> {
    let profile = profile.unwrap_or("default");
    let report = setup::target_dir().join("nextest").join(profile).join("junit.xml");
    if report.exists() {
        let removing = LabError::io(format!("remove {}", report.display()));
        std::fs::remove_file(&report).map_err(removing)?;
    }
    let options = ["nextest", "run", "--no-fail-fast", "--profile", profile];
    let mut command = step::cargo(&[&options[..], packages].concat());
    environment(&mut command, no_lab);
    let succeeded = step::shown(what, command)?;
    match std::fs::read_to_string(&report) {
        Ok(text) => Ok(junit::read(&text).and_failed_unless(succeeded, what)),
        Err(_) => Ok(Tally::failed(format!("the {what} did not run"))),
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
    with_cargo_test("documentation tests", step::cargo(&["test", "--workspace", "--doc", "--no-fail-fast"]))
}

fn environment(command: &mut Command, no_lab: bool) {
    if no_lab {
        command.env(NO_LAB, "left out by --no-lab");
    }
    command.env(setup::BUILT, "1");
}
