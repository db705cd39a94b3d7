//! Initial file systems: of an emulated host, and of the Linux guest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cpio::Archive;
use super::modules;
use super::packages::Packages;
use crate::{LabError, Result, exec, setup};

/// What a host needs beyond what is built into its kernel.
const HOST_MODULES: [&str; 9] =
    ["kvm_amd", "tun", "bridge", "8021q", "virtio_net", "virtio_rng", "virtio_balloon", "button", "evdev"];
/// What the guest needs.
const GUEST_MODULES: [&str; 6] =
    ["virtio_net", "virtio_blk", "virtio_rng", "virtio_balloon", "button", "evdev"];
/// What a guest needs besides that mounts a file system; its checksums come first, which it does not ask for by name.
const FILE_SYSTEM_MODULES: [&str; 2] = ["crc32c_generic", "ext4"];
const DIRECTORIES: [&str; 18] = [
    "bin",
    "sbin",
    "dev",
    "etc",
    "home",
    "lib",
    "lib/modules",
    "lib64",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "var",
    "var/lib",
];
/// Without a C library of its own in it.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// The host's initial file system, with `programs` and their libraries in it.
pub(super) fn host(packages: &Packages, programs: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = base(packages, &HOST_MODULES, "godwit-emulated-host")?;
    let mut made = BTreeSet::from(DIRECTORIES.map(str::to_owned));
    for library in libraries(programs)? {
        make_parents(&mut archive, &mut made, &library);
        archive.program(inside(&library), &read(Path::new(&library))?);
    }
    for program in programs {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        archive.program(&format!("usr/bin/{name}"), &stripped(program)?);
    }
    Ok(archive.finish())
}

/// The guest's initial file system.
pub(super) fn guest(packages: &Packages) -> Result<Vec<u8>> {
    Ok(base(packages, &GUEST_MODULES, "godwit-linux-guest")?.finish())
}

/// That of a guest that mounts a file system.
pub(super) fn mounting_guest(packages: &Packages) -> Result<Vec<u8>> {
    let modules = [&GUEST_MODULES[..], &FILE_SYSTEM_MODULES].concat();
    Ok(base(packages, &modules, "godwit-linux-guest")?.finish())
}

/// Builds the first processes of hosts and guests.
pub(super) fn build_first_processes() -> Result<()> {
    let configuration = format!("target.{STATIC_TARGET}.rustflags=['-C','target-feature=+crt-static']");
    let target_dir = first_process_dir();
    let target_dir = target_dir.to_string_lossy();
    setup::cargo(
        "the first processes of hosts and guests",
        &[
            "build",
            "--quiet",
            "--release",
            "-p",
            "godwit-linux-guest",
            "--target",
            STATIC_TARGET,
            "--target-dir",
            &target_dir,
            "--config",
            &configuration,
            "--config",
            "profile.release.strip=true",
        ],
    )
}

fn first_process_dir() -> PathBuf {
    setup::target_dir().join("guests")
}

/// Busybox, modules and the first process.
fn base(packages: &Packages, wanted: &[&str], init: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    // The kernel opens it for the first process before /dev is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.program("bin/busybox", &read(&packages.busybox())?);
    archive.link("bin/sh", "busybox");
    let modules = modules::closure(&packages.kernel()?.modules, &packages.busybox(), wanted)?;
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    archive.file("lib/modules/order", order.as_bytes());
    for module in &modules {
        archive.file(&format!("lib/modules/{}.ko", module.name), &module.content);
    }
    let init = first_process_dir().join(STATIC_TARGET).join("release").join(init);
    archive.program("init", &read(&init)?);
    Ok(archive)
}

/// The loader and the shared libraries of the programs.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let listing = exec::run(Command::new("ldd").arg(program), TOOL_LIMIT)?;
        if let Some(line) = listing.lines().find(|line| line.contains("not found")) {
            return Err(LabError::Unsupported(format!(
                "{} lacks a library: {}",
                program.display(),
                line.trim()
            )));
        }
        found
            .extend(listing.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    Ok(found)
}

fn make_parents(archive: &mut Archive, made: &mut BTreeSet<String>, path: &str) {
    let parents = Path::new(inside(path)).ancestors().skip(1);
    for parent in
        parents.map(|parent| parent.to_string_lossy().into_owned()).collect::<Vec<_>>().into_iter().rev()
    {
        if !parent.is_empty() && made.insert(parent.clone()) {
            archive.directory(&parent);
        }
    }
}

fn inside(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// The program without its debug information, which would fill the host's memory.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().map_err(LabError::io("create a temporary file"))?;
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg("-o").arg(file.path()).arg(program);
    exec::run(&mut command, TOOL_LIMIT)?;
    read(file.path())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(LabError::io(format!("read {}", path.display())))
}
