//! One emulated host: a QEMU, and the server of the directory that it shares with the others.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use godwit_linux_guest::remote;
use nix::unistd::Pid;

use super::network::{self, Card};
use super::packages::{Kernel, Packages};
use crate::namespace::Namespace;
use crate::{LabError, Result, exec};

/// How long a host may take until it takes commands: 10 s on two quiet cores.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How often a host that does not come up is started.
const BOOTS_MAX: u32 = 2;
/// How much of a console an error shows, in bytes.
const TAIL_BYTES: usize = 3000;

/// What all hosts of a lab have in common.
#[derive(Debug)]
pub(super) struct Blueprint {
    pub(super) packages: Packages,
    pub(super) kernel: Kernel,
    pub(super) initrd: PathBuf,
    /// Where consoles and logs go.
    pub(super) dir: PathBuf,
    /// Seen by all hosts.
    pub(super) shared: PathBuf,
    /// Where the taps are.
    pub(super) switch: Namespace,
    pub(super) memory_mib: u32,
    pub(super) cpus: u8,
}

/// A host's processes.
#[derive(Debug)]
pub(super) struct Machine {
    server: Child,
    qemu: Child,
}

impl Machine {
    /// Fails if the emulator has ended.
    pub(super) fn check(&mut self, dir: &Path, name: &str) -> Result<()> {
        died(&mut self.qemu, &format!("QEMU of {name}"), &console(dir, name))
    }

    /// Starts a host and waits until it takes commands. Tried once more if it does not come up.
    pub(super) fn boot(blueprint: &Blueprint, name: &str, index: u8) -> Result<Self> {
        let mut boots = 1;
        loop {
            let mut machine = Self::start(blueprint, name, index)?;
            match machine.await_ready(blueprint, name, index) {
                Ok(()) => return Ok(machine),
                Err(error) if boots == BOOTS_MAX => return Err(error),
                Err(error) => eprintln!("warning: {}; starting {name} once more", error.chain()),
            }
            drop(machine);
            let console = console(&blueprint.dir, name);
            // Kept for whoever looks into it; without it there is nothing to look at, but the next boot may do.
            let _ = fs::rename(&console, console.with_extension(format!("{boots}.log")));
            boots += 1;
        }
    }

    fn start(blueprint: &Blueprint, name: &str, index: u8) -> Result<Self> {
        let socket = format!("{name}.virtiofs");
        let mut virtiofsd = blueprint.inside(&blueprint.virtiofsd(), &format!("{name}.virtiofsd.log"))?;
        virtiofsd.stdin(OwnedFd::from(listen(&blueprint.dir, &socket)?));
        let mut server = spawn(&mut virtiofsd)?;
        let qemu = blueprint.inside(&blueprint.qemu(name, index, &socket), &format!("{name}.qemu.log"));
        match qemu.and_then(|mut qemu| spawn(&mut qemu)) {
            Ok(qemu) => Ok(Self { server, qemu }),
            Err(error) => {
                end(&mut server);
                Err(error)
            }
        }
    }

    fn await_ready(&mut self, blueprint: &Blueprint, name: &str, index: u8) -> Result<()> {
        let address = network::service(index);
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            died(
                &mut self.qemu,
                &format!("QEMU of {name}"),
                &blueprint.dir.join(format!("{name}.qemu.log")),
            )?;
            let answer = blueprint.switch.within(|| remote::run(address, &["/bin/true"], ANSWER_LIMIT))?;
            if answer.is_ok_and(|answer| answer.exit_code == 0) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                eprintln!("the end of {name}'s console:\n{}", tail(&console(&blueprint.dir, name)));
                return Err(blueprint.timeout(&format!("the boot of {name}"), BOOT_LIMIT));
            }
            std::thread::sleep(exec::POLL_COMMAND);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.qemu);
        end(&mut self.server);
    }
}

impl Blueprint {
    /// The server of the shared directory, which QEMU reaches through the socket that is its standard input.
    fn virtiofsd(&self) -> Command {
        let mut command = self.packages.virtiofsd();
        command.args(["--fd=0", "-f"]);
        command.arg("-o").arg(format!("source={}", self.shared.display()));
        // Without a cache, and with locks and direct I/O passed on: what one host writes or locks, the others see.
        command.args(["-o", "cache=none", "-o", "posix_lock", "-o", "flock", "-o", "allow_direct_io"]);
        command.args(["-o", "sandbox=chroot"]);
        command
    }

    fn qemu(&self, name: &str, index: u8, socket: &str) -> Command {
        let memory = self.memory_mib;
        let mut command = self.packages.qemu();
        command.args(["-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // `max` has SVM with nested paging; the microvm machine hangs as a host of guests.
        command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max"]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &memory.to_string()]);
        // The server of the shared directory reads and writes the host's memory.
        command.args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")]);
        command.args(["-numa", "node,memdev=memory"]);
        command.args(["-chardev", &format!("socket,id=shared,path={socket}")]);
        command.args(["-device", "vhost-user-fs-pci,chardev=shared,tag=shared", "-device", "virtio-rng-pci"]);
        command.args(["-serial", &format!("file:{name}.console.log")]);
        for card in Card::ALL {
            let (tap, mac) = (card.tap(index), card.mac(index));
            command
                .args(["-netdev", &format!("tap,id={tap},ifname={tap},script=no,downscript=no,vnet_hdr=on")]);
            command.args(["-device", &format!("virtio-net-pci,netdev={tap},mac={mac},romfile=")]);
        }
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&self.initrd);
        // Every byte on the console stops the host for a moment.
        let identity = network::identity(name, index);
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 {identity}")]);
        command
    }

    /// The command in the switch's namespace and the lab's directory, with a log as its output.
    fn inside(&self, command: &Command, log: &str) -> Result<Command> {
        let mut inside = self.switch.command(command.get_program());
        inside.args(command.get_args()).current_dir(&self.dir);
        inside.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        log_to(&mut inside, &self.dir.join(log))?;
        Ok(inside)
    }

    fn timeout(&self, what: &str, limit: Duration) -> LabError {
        LabError::Timeout { what: what.to_owned(), limit, logs: self.dir.clone() }
    }
}

/// A host's console log.
pub(super) fn console(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.console.log"))
}

/// A socket in `dir`. Named by way of the directory's descriptor: a socket's whole name may have 107 bytes at most.
fn listen(dir: &Path, name: &str) -> Result<UnixListener> {
    let doing = || LabError::io(format!("listen on {}", dir.join(name).display()));
    let handle = File::open(dir).map_err(doing())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())).join(name);
    // There is one if this is the host's second boot.
    let _ = fs::remove_file(&path);
    UnixListener::bind(&path).map_err(doing())
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().map_err(LabError::io(format!("start `{}`", exec::describe(command))))
}

/// Sends a command's output to a log, and keeps the terminal's signals from it.
pub(super) fn log_to(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).map_err(LabError::io(format!("create {}", log.display())))?;
    let errors = file.try_clone().map_err(LabError::io("duplicate a log's descriptor"))?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    Ok(())
}

/// Fails if the process has ended.
pub(super) fn died(child: &mut Child, process: &str, log: &Path) -> Result<()> {
    match child.try_wait().map_err(LabError::io(format!("look at {process}")))? {
        None => Ok(()),
        Some(status) => Err(LabError::Died {
            process: process.to_owned(),
            status: status.to_string(),
            log: log.to_owned(),
            tail: tail(log),
        }),
    }
}

/// Kills the process and reaps it. One that has already ended is only reaped.
pub(super) fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The end of a log.
pub(super) fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

/// The emulated machines in a namespace, by the name that their QEMU was given.
pub(super) fn running(switch: &Namespace) -> Result<Vec<(String, Pid)>> {
    let mut machines = Vec::new();
    for pid in switch.pids()? {
        // A process that has just ended is not there any more.
        let line =
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        if let Some(at) = words.iter().position(|word| *word == "-name") {
            machines.extend(words.get(at + 1).map(|name| ((*name).to_owned(), pid)));
        }
    }
    Ok(machines)
}
