//! Emulated hosts: QEMU machines with nested KVM, each running Debian's stock kernel and the real `godwit host run`.
//! Slow, but a stock Linux guest boots in them whatever this machine's own `/dev/kvm` is.
//!
//! ```text
//!   packages   QEMU, virtiofsd, busybox and the kernel, unpacked beside the machine
//!   image      initial file systems of hosts and guests     (modules, cpio)
//!   postgres   a disk with PostgreSQL for a guest, and its clients
//!   network    bridges and taps in namespaces
//!   machine    one host's processes
//!   programs   the manager, and the hosts' agents
//!   cluster    all of it
//!   state      what is on the machine, for later processes to find
//! ```
//!
//! The hosts share one directory by virtiofs without a cache. Its server passes locks on to this machine's kernel, so
//! a lock that one host holds is seen by the others, and is gone when its holder, or the whole host, is.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use godwit_types::HostName;

mod cluster;
mod cpio;
mod image;
mod machine;
mod modules;
mod network;
mod packages;
mod postgres;
mod programs;
mod state;

pub use cluster::{EmulatedCluster, EmulatedOptions};
pub use godwit_linux_guest::remote::Output;
pub use postgres::Postgres;

use crate::cluster::Cluster;
use crate::guest::GuestFiles;
use crate::setup::{self, say};
use crate::{LabError, Result};

/// What the guest's command line begins with. Every byte on the console is slow where hosts are emulated.
const GUEST_COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";
const NOT_UP: &str = "the lab is not up: start it with `cargo xtask lab up`";
/// How long a command of [`exec`] may take.
const EXEC_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Debian's cloud kernel, unmodified, with a first process that keeps the guest contract.
pub fn linux_guest() -> Result<GuestFiles> {
    let cache = Cache::open()?;
    let packages = packages::Packages::ensure(&cache.dir)?;
    image::build_first_processes()?;
    guest_files(&cache, &packages, "linux-guest.initrd", &image::guest(&packages)?)
}

/// The same guest for a disk with PostgreSQL, and that disk.
pub fn postgres_guest() -> Result<(GuestFiles, Postgres)> {
    let cache = Cache::open()?;
    let packages = packages::Packages::ensure(&cache.dir)?;
    image::build_first_processes()?;
    let postgres = Postgres::ensure(&cache, &packages)?;
    let initrd = image::mounting_guest(&packages)?;
    Ok((guest_files(&cache, &packages, "linux-guest-mounting.initrd", &initrd)?, postgres))
}

fn guest_files(
    cache: &Cache,
    packages: &packages::Packages,
    name: &str,
    initrd: &[u8],
) -> Result<GuestFiles> {
    let image = packages.kernel()?.image;
    let content = fs::read(&image).map_err(LabError::io(format!("read {}", image.display())))?;
    let kernel = cache.put("linux-guest.vmlinuz", &content)?;
    let initrd = cache.put(name, initrd)?;
    Ok(GuestFiles { kernel, initrd: Some(initrd), cmdline: GUEST_COMMAND_LINE.to_owned() })
}

/// QEMU itself, without arguments but those that it needs to find its own files. Fetches it if it is not there yet.
pub fn qemu() -> Result<Command> {
    Ok(packages::Packages::ensure(&Cache::open()?.dir)?.qemu())
}

/// Fails with the reason and the remedy when emulated hosts cannot run on this machine. Fetches their packages.
pub fn unavailable() -> Result<()> {
    cluster::require_root_and_tun()?;
    packages::Packages::ensure(&Cache::open()?.dir).map(drop)
}

/// Two or three emulated hosts and a manager, which end with this process.
pub fn start_cluster(hosts: u8) -> Result<Box<dyn Cluster>> {
    Ok(Box::new(EmulatedCluster::up(&EmulatedOptions { hosts, ..EmulatedOptions::default() })?))
}

/// Starts the lab that stays until [`down`], with programs that are built by `build` if that has not been done.
pub fn up(hosts: u8, build: fn() -> Result<()>) -> Result<()> {
    crate::cleanup::on_interrupt();
    if is_up()? {
        return Err(LabError::Unsupported(
            "the lab is already up: take it down with `cargo xtask lab down`".into(),
        ));
    }
    build()?;
    let state = state::State::standing(cluster::host_names(hosts));
    // What an earlier one left behind, without its directory, would be in the way.
    network::Network::remove(&state.prefix());
    let options = EmulatedOptions { hosts, ..EmulatedOptions::default() };
    EmulatedCluster::start(state, &options)?.detach();
    say("the lab is up: `cargo xtask lab status` shows how to reach it, `cargo xtask lab down` removes it");
    Ok(())
}

/// Runs a command in a host of the lab, with its output on standard output and error. Returns its exit code.
pub fn exec(host: &str, command: &[String]) -> Result<i32> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    standing()?.exec_here(host, &words, EXEC_LIMIT)
}

/// Takes a host of the lab off the management network.
pub fn cut(host: &str) -> Result<()> {
    standing()?.cut(&name(host)?)
}

/// Puts it back.
pub fn mend(host: &str) -> Result<()> {
    standing()?.mend(&name(host)?)
}

/// Cuts the power of a host of the lab.
pub fn kill(host: &str) -> Result<()> {
    standing()?.kill(&name(host)?)
}

/// Whether there is a lab that stays.
pub fn is_up() -> Result<bool> {
    Ok(state::State::load(state::STANDING)?.is_some())
}

/// The lab in words: which hosts run, and how to reach the manager.
pub fn status() -> Result<String> {
    let Some(state) = state::State::load(state::STANDING)? else {
        return Ok(NOT_UP.into());
    };
    let cluster = EmulatedCluster::existing(state);
    let running = cluster.running()?;
    let mut text = String::new();
    for host in cluster.hosts() {
        let runs = running.iter().find(|(name, _)| name == host.as_str());
        let shown = runs.map_or("dead".to_owned(), |(_, pid)| format!("running, QEMU is process {pid}"));
        let _infallible = writeln!(text, "{host}: {shown}");
    }
    let access = cluster.access();
    let _infallible = write!(
        text,
        "manager: ip netns exec {} godwit --manager {} --token-file {} host ls\nguests:  ip netns exec {} ping 10.77.0.10\n\
         logs:    {}",
        access.namespace.name(),
        access.manager,
        access.token_file.display(),
        cluster.client().name(),
        cluster.logs().display(),
    );
    Ok(text)
}

/// Removes the lab, or whatever of it is left.
pub fn down() -> Result<()> {
    state::State::standing(Vec::new()).remove();
    Ok(())
}

fn standing() -> Result<EmulatedCluster> {
    let state = state::State::load(state::STANDING)?;
    state.map(EmulatedCluster::existing).ok_or_else(|| LabError::Unsupported(NOT_UP.into()))
}

fn name(host: &str) -> Result<HostName> {
    host.parse().map_err(|_| LabError::Unsupported(format!("`{host}` is no host's name")))
}

/// Downloads and what is made of them, for all labs. Locked until dropped: several processes may want it at once.
#[derive(Debug)]
struct Cache {
    dir: PathBuf,
    _lock: File,
}

impl Cache {
    fn open() -> Result<Self> {
        let dir = setup::target_dir().join("lab-cache");
        fs::create_dir_all(&dir).map_err(LabError::io(format!("create {}", dir.display())))?;
        let locking = || LabError::io(format!("lock {}", dir.display()));
        let lock = File::create(dir.join("lock")).map_err(locking())?;
        lock.lock().map_err(locking())?;
        Ok(Self { dir, _lock: lock })
    }

    /// A file of the cache with this content. Replaced as a whole: somebody may still be reading the old one.
    fn put(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let (path, new) = (self.dir.join(name), self.dir.join("new"));
        fs::write(&new, content).map_err(LabError::io(format!("write {}", new.display())))?;
        fs::rename(&new, &path).map_err(LabError::io(format!("rename to {}", path.display())))?;
        Ok(path)
    }
}
