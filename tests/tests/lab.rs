//! The lab to try things on, as `cargo xtask lab` handles it.

use std::process::Command;
use std::time::Duration;

use godwit_lab::{LabError, Result, emulated, exec, setup};
use godwit_tests::{VERB_LIMIT, ensure, with_standing_lab};

/// How long a host may take to be missed, or to be back.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_lab_stands_is_reached_as_its_status_says_and_leaves_nothing() {
    with_standing_lab(2, || {
        let status = emulated::status()?;
        ensure(status.contains("host-a: running") && status.contains("host-b: running"), &status)?;
        ensure(is_up(&listed(&status)?, "host-b"), listed(&status)?)?;
        ensure(emulated::up(2, setup::build_tested_programs).is_err(), "a second lab was started")?;

        ensure(emulated::exec("host-a", &command("test -e /dev/kvm"))? == 0, "host-a has no KVM")?;
        ensure(emulated::exec("host-a", &command("exit 3"))? == 3, "an exit code is lost")?;

        emulated::cut("host-b")?;
        seen(&status, "host-b is missed", |hosts| !is_up(hosts, "host-b"))?;
        emulated::mend("host-b")?;
        seen(&status, "host-b is back", |hosts| is_up(hosts, "host-b"))?;
        emulated::kill("host-b")?;
        let dead = exec::poll(NOTICE_LIMIT, exec::POLL_COMMAND, || {
            Ok(emulated::status()?.contains("host-b: dead").then_some(()))
        })?;
        ensure(dead.is_some(), emulated::status()?)?;

        emulated::down()?;
        ensure(emulated::status()?.contains("cargo xtask lab up"), "it is down, and does not say so")?;
        let namespaces = exec::run(Command::new("ip").args(["netns", "list"]), VERB_LIMIT)?;
        ensure(!namespaces.contains("gwlab-standing"), namespaces)
    });
}

fn command(line: &str) -> Vec<String> {
    ["sh", "-c", line].map(str::to_owned).to_vec()
}

/// What the command prints that the status gives for the manager.
fn listed(status: &str) -> Result<String> {
    let given = status.lines().find_map(|line| line.strip_prefix("manager: "));
    let given = given.ok_or_else(|| LabError::Broken(format!("no command for the manager: {status}")))?;
    let godwit = setup::godwit()?;
    let given = given.replace(" godwit ", &format!(" {} ", godwit.display()));
    exec::run(Command::new("sh").args(["-c", &given]), VERB_LIMIT)
}

fn seen(status: &str, what: &str, is_so: impl Fn(&str) -> bool) -> Result<()> {
    let seen = exec::poll(NOTICE_LIMIT, exec::POLL_COMMAND, || Ok(is_so(&listed(status)?).then_some(())))?;
    ensure(seen.is_some(), format!("not seen: {what}"))
}

fn is_up(hosts: &str, host: &str) -> bool {
    hosts.lines().any(|line| line.split_whitespace().take(2).eq([host, "up"]))
}
