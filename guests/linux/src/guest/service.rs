//! A system of its own on the second disk, with programs and libraries: its [`PROGRAM`] runs in it, as the user to whom
//! that file belongs.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Uid, chdir, chroot, setgid, setgroups, setuid};

use crate::boot;

/// The argument with which this program becomes the service.
pub const ROLE: &str = "service";

/// The second virtio disk.
const DISK: &str = "/dev/vdb";
const ROOT: &str = "/mnt/service";
const PROGRAM: &str = "/service";

/// Runs the service to its end, which it is not expected to have.
pub(super) fn run() -> io::Result<()> {
    if !boot::await_path(DISK) {
        return Err(io::Error::other(format!("there is no {DISK}")));
    }
    fs::create_dir_all(ROOT)?;
    mount(Some(DISK), ROOT, Some("ext4"), MsFlags::MS_NOATIME, None::<&CStr>)?;
    boot::mount_at("devtmpfs", "devtmpfs", &format!("{ROOT}/dev"))?;
    let status = Command::new("/proc/self/exe").arg(ROLE).status()?;
    Err(io::Error::other(format!("it has ended: {status}")))
}

/// Becomes the service; returns only if that fails.
pub fn enter() -> io::Result<()> {
    chroot(ROOT)?;
    chdir("/")?;
    let owner = fs::metadata(PROGRAM)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(owner.gid()))?;
    setuid(Uid::from_raw(owner.uid()))?;
    Err(Command::new(PROGRAM).exec())
}
