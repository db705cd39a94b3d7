//! Debian packages, installed only when something is missing.

use std::process::Command;
use std::time::Duration;

use super::say;
use crate::{LabError, Result, exec};

/// How long fetching the package lists, and installing, may take.
const APT_LIMIT: Duration = Duration::from_secs(15 * 60);
const QUERY_LIMIT: Duration = Duration::from_secs(30);

/// What every native cluster needs: `ip`, and a C compiler for the manager's SQLite.
pub const NATIVE: [&str; 2] = ["iproute2", "gcc"];

/// What the tests need besides: `qemu-img`, which looks at qcow2 images with other eyes than ours.
pub const TESTS: [&str; 1] = ["qemu-utils"];

/// Installs those of the packages that are missing.
pub fn ensure(packages: &[&str]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::Unsupported(format!(
            "packages are missing: run `apt-get install {list}` as root"
        )));
    }
    say(format_args!("installing {list}"));
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], &missing[..]].concat())
}

/// Those of the packages that are not installed.
pub fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut missing = Vec::new();
    for package in packages {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat", "${db:Status-Status}", package]);
        let answer = exec::output(&mut query, QUERY_LIMIT).map_err(|_| {
            let list = packages.join(", ");
            LabError::Unsupported(format!(
                "this is not a Debian system (no dpkg-query): install what the packages {list} hold by hand"
            ))
        })?;
        if !answer.status.success() || answer.stdout.trim() != "installed" {
            missing.push(*package);
        }
    }
    Ok(missing)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet").args(arguments);
    exec::run(&mut command, APT_LIMIT).map(drop)
}
