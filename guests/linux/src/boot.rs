//! From the kernel's hand-over to a usable system: file systems, modules, network, and the way back.

use std::ffi::CStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::wait;
use nix::unistd::Pid;

/// Where the image's builder puts the modules, and the order in which they are to be loaded.
pub const MODULE_DIRECTORY: &str = "/lib/modules";
/// Names the modules in [`MODULE_DIRECTORY`], one a line; those that others need come first.
pub const MODULE_ORDER: &str = "/lib/modules/order";

const VIRTIO_CONSOLE: &str = "/dev/hvc0";
const PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";
/// How long a device may take to appear after its driver was loaded.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);
const DEVICE_POLL: Duration = Duration::from_millis(10);

/// Mounts what every program expects of a Linux system.
pub fn mount_basics() -> io::Result<()> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        mount_at(kind, kind, place)?;
    }
    Ok(())
}

/// Mounts `source` of type `kind` at `place`, which is made if need be.
pub fn mount_at(kind: &str, source: &str, place: &str) -> io::Result<()> {
    fs::create_dir_all(place)?;
    match mount(Some(source), place, Some(kind), MsFlags::empty(), None::<&CStr>) {
        Ok(()) => Ok(()),
        Err(errno) => Err(named(errno.into(), format!("mount {kind} at {place}"))),
    }
}

/// Loads the modules of the image. One that fails is named on the console and skipped: what needs it will say more.
pub fn load_modules() -> io::Result<()> {
    for name in fs::read_to_string(MODULE_ORDER)?.lines() {
        let path = Path::new(MODULE_DIRECTORY).join(name).with_extension("ko");
        match finit_module(File::open(&path)?, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => eprintln!("module {name}: {errno}"),
        }
    }
    Ok(())
}

/// Waits until a device node or a network interface is there; false if it does not come.
pub fn await_path(path: impl AsRef<Path>) -> bool {
    let deadline = Instant::now() + DEVICE_LIMIT;
    while !path.as_ref().exists() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(DEVICE_POLL);
    }
    true
}

/// Gives a network interface an address, or none, and switches it on. Uses busybox's `ip`.
pub fn configure_interface(name: &str, address: Option<(Ipv4Addr, u8)>) -> io::Result<()> {
    if let Some((address, prefix)) = address {
        run(&["ip", "addr", "add", &format!("{address}/{prefix}"), "dev", name])?;
    }
    run(&["ip", "link", "set", name, "up"])
}

/// Runs a busybox applet to its end.
pub fn run(words: &[&str]) -> io::Result<()> {
    let status = Command::new("/bin/busybox").args(words).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("`{}`: {status}", words.join(" ")))) }
}

/// Process 1's loop: starts this program again with the argument `role`, reaps every orphan, and powers off when the
/// program ends, since nothing is left to do then.
pub fn supervise(role: &str) -> io::Result<()> {
    let child = Command::new("/proc/self/exe").arg(role).env("PATH", PATH).spawn()?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match wait() {
            Ok(status) if status.pid() == Some(child) => {
                eprintln!("init: {role} ended: {status:?}");
                power(Power::Off);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Off,
    Reboot,
}

/// Writes back what is cached, and leaves.
pub fn power(how: Power) -> ! {
    nix::unistd::sync();
    let mode = if how == Power::Off { RebootMode::RB_POWER_OFF } else { RebootMode::RB_AUTOBOOT };
    let refused = reboot(mode);
    eprintln!("init: {how:?} refused: {refused:?}");
    loop {
        thread::park();
    }
}

/// The value of `KEY=VALUE` on the kernel's command line.
pub fn parameter<'a>(command_line: &'a str, key: &str) -> Option<&'a str> {
    command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// A shell on the console, and one on the virtio console, each again and again.
pub fn console_shells() {
    shell_for_ever(&["setsid", "cttyhack", "sh", "-l"]);
    if Path::new(VIRTIO_CONSOLE).exists() {
        shell_for_ever(&["setsid", "sh", "-l", "-c", &format!("exec sh <>{VIRTIO_CONSOLE} >&0 2>&0")]);
    }
}

fn shell_for_ever(words: &[&str]) {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    thread::spawn(move || {
        loop {
            let _: io::Result<ExitStatus> = Command::new("/bin/busybox").args(&words).status();
            thread::sleep(Duration::from_secs(1));
        }
    });
}

fn named(error: io::Error, what: String) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_by_its_whole_key() {
        let line = "quiet lab.name=host-a lab.names=x";
        assert_eq!(parameter(line, "lab.name"), Some("host-a"));
        assert_eq!(parameter(line, "lab"), None);
        assert_eq!(parameter(line, "name"), None);
    }
}
