//! The cluster of emulated hosts: the manager on this machine, the agents in the hosts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_linux_guest::remote;
use godwit_types::HostName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::{self, Blueprint, Machine};
use super::network::{self, Card, MANAGER_ADDRESS, Network};
use super::packages::Packages;
use super::programs::{MANAGER_PORT, Manager, start_agent};
use super::state::{Ownership, State, sweep};
use super::{Cache, image};
use crate::cleanup::Cleanup;
use crate::cluster::{Access, Cluster, Setting};
use crate::namespace::Namespace;
use crate::setup::{self, say};
use crate::{LabError, Result};

/// Packages of this machine that the lab calls: `ip`, and `strip`.
const TOOLS: [&str; 2] = ["iproute2", "binutils"];
/// How long all hosts may take to join the manager.
const JOIN_LIMIT: Duration = Duration::from_secs(90);
/// Shows what a host knows of its VMs, and how it is.
const INSIDE: &str = "free; dmesg | tail -n 15; for log in /var/lib/godwit/host/vms/*/*.log; do echo \"== $log\"; tail -c 800 $log; done";
/// How long a short command in a host may take.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// What the hosts are like.
#[derive(Debug, Clone)]
pub struct EmulatedOptions {
    /// 2 or 3.
    pub hosts: u8,
    pub memory_mib: u32,
    pub cpus: u8,
}

impl Default for EmulatedOptions {
    fn default() -> Self {
        Self { hosts: 2, memory_mib: 1280, cpus: 1 }
    }
}

/// Emulated hosts with a manager. Dropping it removes them all, unless [`EmulatedCluster::detach`] let it stand.
#[derive(Debug)]
pub struct EmulatedCluster {
    state: State,
    network: Network,
    access: Access,
    datastore: PathBuf,
    dir: PathBuf,
    manager: Option<Manager>,
    machines: Mutex<Vec<Machine>>,
    /// Hosts that are dead because somebody wanted it.
    killed: Mutex<BTreeSet<HostName>>,
    // After the processes, whose directory it removes.
    cleanup: Option<Cleanup>,
    ownership: Option<Ownership>,
}

impl EmulatedCluster {
    /// Boots the hosts, starts the manager and the agents, and waits until all have joined.
    pub fn up(options: &EmulatedOptions) -> Result<Self> {
        Self::start(State::transient(host_names(options.hosts)), options)
    }

    pub(super) fn start(state: State, options: &EmulatedOptions) -> Result<Self> {
        require_root_and_tun()?;
        setup::packages::ensure(&TOOLS)?;
        sweep();
        let packages = prepare()?;
        let godwit = setup::godwit()?;
        let programs = [godwit.clone(), godwit.with_file_name("godwit-vmm")];
        let cleanup = Cleanup::new({
            let state = state.clone();
            move || state.remove()
        });
        let ownership = state.save()?;
        let initrd = state.dir().join("host.initrd");
        std::fs::write(&initrd, image::host(&packages, &programs)?)
            .map_err(LabError::io(format!("write {}", initrd.display())))?;
        let network = Network::create(&state.prefix(), options.hosts)?;
        let blueprint = Blueprint {
            kernel: packages.kernel()?,
            packages,
            initrd,
            dir: state.dir(),
            shared: state.shared(),
            switch: network.switch.clone(),
            memory_mib: options.memory_mib,
            cpus: options.cpus,
        };
        let mut cluster = Self::existing(state);
        cluster.cleanup = Some(cleanup);
        cluster.ownership = Some(ownership);
        cluster.machines = boot_all(&blueprint, &cluster.state.hosts)?.into();
        cluster.manager = Some(Manager::start(&godwit, &cluster)?);
        for (index, host) in (0..).zip(&cluster.state.hosts) {
            start_agent(&cluster, host, index, &cluster.access.manager)?;
        }
        (&cluster as &dyn Cluster).await_hosts(JOIN_LIMIT).map_err(|error| cluster.explain(error))?;
        Ok(cluster)
    }

    /// A cluster that is up already; dropping this leaves it so.
    pub(super) fn existing(state: State) -> Self {
        let network = Network::existing(&state.prefix());
        let access = Access {
            namespace: network.manager.clone(),
            manager: format!("http://{MANAGER_ADDRESS}:{MANAGER_PORT}"),
            token_file: state.token_file(),
        };
        let (datastore, dir) = (state.datastore(), state.dir());
        Self {
            state,
            network,
            access,
            datastore,
            dir,
            manager: None,
            machines: Mutex::default(),
            killed: Mutex::default(),
            cleanup: None,
            ownership: None,
        }
    }

    /// Lets everything stand after this process.
    pub(super) fn detach(self) {
        // Neither the cleanup nor the children's owners may run their destructors; the process ends soon.
        std::mem::forget(self);
    }

    /// Runs a command in a host, and returns its exit code and output.
    ///
    /// # Errors
    /// When the host does not answer, or the command has not ended after `limit`; it is killed then.
    pub fn exec(&self, host: &HostName, words: &[&str], limit: Duration) -> Result<remote::Output> {
        let address = network::service(self.state.index(host.as_str())?);
        let outcome = self.network.switch.within(|| remote::run(address, words, limit))?;
        outcome.map_err(LabError::io(format!("run `{}` in {host}", words.join(" "))))
    }

    /// Runs a command in a host with its output on standard output and standard error; returns its exit code.
    pub(super) fn exec_here(&self, host: &str, words: &[&str], limit: Duration) -> Result<i32> {
        let address = network::service(self.state.index(host)?);
        let outcome = self.network.switch.within(|| {
            remote::stream(address, words, limit, &mut std::io::stdout(), &mut std::io::stderr())
        })?;
        outcome.map_err(LabError::io(format!("run `{}` in {host}", words.join(" "))))
    }

    /// The hosts that run, with their QEMU's process.
    pub(super) fn running(&self) -> Result<Vec<(String, Pid)>> {
        machine::running(&self.network.switch)
    }

    /// What the agents logged, and a death of the manager, explain more than the time-out that follows from it.
    fn explain(&self, error: LabError) -> LabError {
        for host in &self.state.hosts {
            let log = self.state.agent_log(host);
            eprintln!("the end of {}:\n{}", log.display(), machine::tail(&log));
        }
        let manager = self.manager.as_ref().map_or(Ok(()), Manager::check);
        manager.err().unwrap_or(error)
    }
}

impl Cluster for EmulatedCluster {
    fn setting(&self) -> Setting {
        Setting::Lab
    }

    fn hosts(&self) -> &[HostName] {
        &self.state.hosts
    }

    fn access(&self) -> &Access {
        &self.access
    }

    fn client(&self) -> &Namespace {
        &self.network.client
    }

    fn datastore(&self) -> &Path {
        &self.datastore
    }

    fn logs(&self) -> &Path {
        &self.dir
    }

    fn faults(&self) -> PathBuf {
        self.state.faults()
    }

    fn cut(&self, host: &HostName) -> Result<()> {
        self.network.set_port(Card::Management, self.state.index(host.as_str())?, "down")
    }

    fn mend(&self, host: &HostName) -> Result<()> {
        self.network.set_port(Card::Management, self.state.index(host.as_str())?, "up")
    }

    fn kill(&self, host: &HostName) -> Result<()> {
        self.state.index(host.as_str())?;
        let running = self.running()?;
        let found = running.iter().find(|(name, _)| name == host.as_str());
        self.killed.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone());
        let (_, pid) = found.ok_or_else(|| LabError::Unsupported(format!("{host} is not running")))?;
        kill(*pid, Signal::SIGKILL).map_err(LabError::system(format!("kill QEMU of {host}")))
    }

    fn kill_vmms(&self, host: &HostName) -> Result<usize> {
        let script = "pids=$(pidof godwit-vmm); [ -z \"$pids\" ] || kill -9 $pids; echo $pids";
        let output = self.exec(host, &["/bin/sh", "-c", script], COMMAND_LIMIT)?;
        Ok(String::from_utf8_lossy(&output.stdout).split_ascii_whitespace().count())
    }

    fn shell(&self, host: &HostName, line: &str) -> Result<String> {
        let remote::Output { exit_code, stdout, stderr } =
            self.exec(host, &["/bin/sh", "-c", line], COMMAND_LIMIT)?;
        if exit_code != 0 {
            let status = format!("exit code {exit_code}");
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(LabError::Command { command: line.to_owned(), status, stderr });
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    fn check_foundation(&self) -> Result<()> {
        let killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let unwanted = self.state.hosts.iter().zip(&mut *machines).filter(|(host, _)| !killed.contains(host));
        for (host, machine) in unwanted {
            machine.check(&self.dir, host.as_str())?;
        }
        Ok(())
    }

    fn collect_logs(&self) {
        for host in &self.state.hosts {
            // A host that does not answer has nothing to give.
            if let Ok(said) = self.exec(host, &["/bin/sh", "-c", INSIDE], COMMAND_LIMIT) {
                let log = self.dir.join(format!("{host}.inside.log"));
                if let Err(error) = std::fs::write(&log, said.stdout) {
                    eprintln!("warning: {} cannot be written: {error}", log.display());
                }
            }
        }
    }
}

/// `host-a`, `host-b`, and so on.
pub(super) fn host_names(count: u8) -> Vec<HostName> {
    let names = (b'a'..).take(count.into()).map(|letter| format!("host-{}", char::from(letter)));
    names.map(|name| name.parse().expect("names in the source code are valid")).collect()
}

fn prepare() -> Result<Packages> {
    let cache = Cache::open()?;
    let packages = Packages::ensure(&cache.dir)?;
    image::build_first_processes()?;
    Ok(packages)
}

fn boot_all(blueprint: &Blueprint, hosts: &[HostName]) -> Result<Vec<Machine>> {
    let begun = std::time::Instant::now();
    let machines = std::thread::scope(|scope| {
        let boots = (0..)
            .zip(hosts)
            .map(|(index, host)| scope.spawn(move || Machine::boot(blueprint, host.as_str(), index)));
        let boots: Vec<_> = boots.collect();
        boots
            .into_iter()
            .map(|boot| boot.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    say(format_args!("{} emulated hosts booted in {:.0} s", hosts.len(), begun.elapsed().as_secs_f64()));
    machines
}

/// What no package can help with.
pub(super) fn require_root_and_tun() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::Unsupported("network namespaces and taps need root: run it as root".into()));
    }
    if Path::new("/dev/net/tun").exists() {
        return Ok(());
    }
    Err(LabError::Unsupported(
        "/dev/net/tun is missing: load the kernel module tun, or use a machine that has it".into(),
    ))
}
