//! Network namespaces of this machine, by name (`ip netns`).

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{LabError, Result, exec};

/// How long one `ip` command may take.
const IP_LIMIT: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// A network namespace that the project made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self::existing(name);
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A namespace that was made before.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `ip ARGUMENTS` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Does the work on a thread that lives inside, and waits for it. Sockets keep the namespace they were opened in.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).map_err(LabError::io(format!("open {}", path.display())))?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(LabError::system(format!("enter {}", path.display())))
    }

    /// The processes inside.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let listing = exec::run(Command::new("ip").args(["netns", "pids", &self.name]), IP_LIMIT)?;
        Ok(listing.lines().filter_map(|line| line.trim().parse().ok()).map(Pid::from_raw).collect())
    }

    /// The taps inside, by name.
    pub fn taps(&self) -> Result<Vec<String>> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-oneline", "tuntap", "show"]);
        let listing = exec::run(&mut command, IP_LIMIT)?;
        Ok(listing.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect())
    }

    /// Kills every process inside, then removes the namespace and with it its interfaces.
    pub fn destroy(&self) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        let me = Pid::this();
        let empty = exec::poll(KILL_LIMIT, exec::POLL, || {
            let others: Vec<_> = self.pids()?.into_iter().filter(|pid| *pid != me).collect();
            for pid in &others {
                // A process that has just ended is as good as killed.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            Ok(others.is_empty().then_some(()))
        })?;
        ip(&["netns", "del", &self.name])?;
        empty.ok_or_else(|| LabError::Broken(format!("processes in {} could not be killed", self.name)))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

/// The namespaces whose names begin with `prefix`.
pub fn named(prefix: &str) -> Vec<Namespace> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).map(|name| Namespace { name }).collect()
}

fn ip(arguments: &[&str]) -> Result<()> {
    exec::run(Command::new("ip").args(arguments), IP_LIMIT).map(drop)
}
