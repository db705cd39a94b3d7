//! A cluster on this machine: each host is a network namespace with a real `godwit host run` inside.
//!
//! ```text
//!   manager ns            host-a ns                     host-b ns             client ns
//!   godwit manager run    godwit host run, VMMs         godwit host run       load
//!        | mgmt0               | mgmt0   | uplink0          |    |                 | guest0
//!   =====+=====================+=========|==================+====|======= bridge mgmt   10.76.0.0/24
//!                                        +=======================+=======+ bridge guest  10.77.0.0/24
//!                                     (both bridges are in the switch ns)
//! ```
//!
//! Everything is named after the process that made it, so that what a killed process left behind is known and swept
//! away by the next one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_types::{Bytes, HostName, Name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroups;
use crate::cleanup::Cleanup;
use crate::cluster::{Access, Cluster, Setting};
use crate::namespace::Namespace;
use crate::{LabError, Result, exec, logs};

mod kvm;
mod network;
mod processes;
mod run;

pub use kvm::require_root_and_kvm;
pub use network::MANAGEMENT_INTERFACE;
pub use processes::Process;

use network::Network;
use run::Run;

/// The datastore that each host has for itself.
pub const OWN_DATASTORE: &str = "local";
/// How long the manager and the hosts may take until they are up.
const UP_LIMIT: Duration = Duration::from_secs(30);
/// How long a line of shell in a host may take.
const SHELL_LIMIT: Duration = Duration::from_secs(30);

/// What lies behind hosts' own datastores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnDatastores {
    /// A file system that takes so much, and is gone with the host's agent.
    Bounded(Bytes),
    /// A directory of this machine.
    Lasting,
}

/// What a fabric is to look like.
#[derive(Debug, Clone)]
pub struct FabricOptions {
    /// The hosts' names.
    pub hosts: Vec<HostName>,
    /// Hosts of these that offer neither the guest network nor the datastore.
    pub bare: Vec<HostName>,
    /// Whether each host also has a datastore [`OWN_DATASTORE`] that only it reaches.
    pub own_datastores: Option<OwnDatastores>,
    /// What `godwit host run` is given on every host besides.
    pub agent_options: Vec<String>,
}

impl Default for FabricOptions {
    fn default() -> Self {
        Self {
            hosts: vec![name("host-a"), name("host-b")],
            bare: Vec::new(),
            own_datastores: None,
            agent_options: Vec::new(),
        }
    }
}

/// A cluster of processes in network namespaces. Dropping it removes them all.
#[derive(Debug)]
pub struct Fabric {
    options: FabricOptions,
    run: Run,
    network: Network,
    access: Access,
    children: Mutex<BTreeMap<Process, Child>>,
    _cleanup: Cleanup,
}

impl Fabric {
    /// Makes the namespaces, starts the manager and the hosts, and waits until they are up.
    pub fn start(options: FabricOptions) -> Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        require_root_and_kvm()?;
        run::sweep();
        let run = Run::create(RUNS.fetch_add(1, Ordering::Relaxed))?;
        let cleanup = Cleanup::new({
            let run = run.clone();
            move || run.remove()
        });
        let network = Network::create(run.prefix(), &options.hosts)?;
        let access = Access {
            namespace: network.manager.clone(),
            manager: format!("http://{}:{}", network::MANAGER_ADDRESS, processes::MANAGER_PORT),
            token_file: run.dir().join("manager/token"),
        };
        let fabric = Self { options, run, network, access, children: Mutex::default(), _cleanup: cleanup };
        fabric.start_process(Process::Manager)?;
        fabric.await_manager()?;
        for host in fabric.options.hosts.clone() {
            fabric.start_process(Process::Agent(host))?;
        }
        (&fabric as &dyn Cluster).await_hosts(UP_LIMIT).map_err(|error| fabric.explain(error))?;
        Ok(fabric)
    }

    /// Starts the manager or an agent, which must not be running.
    pub fn start_process(&self, process: Process) -> Result<()> {
        let child = processes::spawn(self, &process)?;
        self.children().insert(process, child);
        Ok(())
    }

    /// Kills the manager or an agent with SIGKILL. An agent's VMs run on.
    pub fn kill_process(&self, process: &Process) -> Result<()> {
        let Some(mut child) = self.children().remove(process) else {
            return Err(LabError::Broken(format!("{process} is not running")));
        };
        child.kill().and_then(|()| child.wait()).map(drop).map_err(LabError::io(format!("kill {process}")))
    }

    /// The process id of the manager or an agent.
    pub fn pid(&self, process: &Process) -> Result<Pid> {
        let id = self.children().get(process).map(Child::id);
        id.map(|id| Pid::from_raw(id.cast_signed()))
            .ok_or_else(|| LabError::Broken(format!("{process} is not running")))
    }

    /// The network namespace of a host.
    pub fn host_namespace(&self, host: &HostName) -> Result<&Namespace> {
        let known = self.network.hosts.get(host);
        known.ok_or_else(|| LabError::Broken(format!("the fabric has no host {host}")))
    }

    /// A host's address on the management network, which migrations use as well.
    pub fn host_address(&self, host: &HostName) -> Result<Ipv4Addr> {
        let known = self.network.address(host);
        known.ok_or_else(|| LabError::Broken(format!("the fabric has no host {host}")))
    }

    /// The VMMs on a host.
    pub fn vmms(&self, host: &HostName) -> Result<Vec<Pid>> {
        processes::vmms(self.host_namespace(host)?)
    }

    /// The cgroups of all hosts' VMs; none where this machine has no version 2.
    pub fn cgroups(&self) -> Option<Cgroups> {
        self.run.cgroups()
    }

    /// The taps on a host.
    pub fn taps(&self, host: &HostName) -> Result<Vec<String>> {
        self.host_namespace(host)?.taps()
    }

    /// The content of a host's [`OWN_DATASTORE`], as a directory of this machine, for as long as its agent runs.
    pub fn own_datastore(&self, host: &HostName) -> Result<PathBuf> {
        let inside = self.run.own_datastore(host);
        if self.options.own_datastores == Some(OwnDatastores::Lasting) {
            return Ok(inside);
        }
        let pid = self.pid(&Process::Agent(host.clone()))?;
        Ok(Path::new("/proc")
            .join(pid.to_string())
            .join("root")
            .join(inside.strip_prefix("/").unwrap_or(&inside)))
    }

    /// The directory of the manager.
    pub fn manager_state(&self) -> PathBuf {
        self.run.dir().join("manager")
    }

    /// The directory of a host's agent.
    pub fn host_state(&self, host: &HostName) -> PathBuf {
        self.run.dir().join(host.as_str())
    }

    fn await_manager(&self) -> Result<()> {
        let answers = exec::poll(UP_LIMIT, exec::POLL_COMMAND, || {
            self.check_children()?;
            if !self.access.token_file.exists() {
                return Ok(None);
            }
            let asked = (self as &dyn Cluster).cli().text(&["host", "ls"], UP_LIMIT);
            Ok(asked.ok().map(drop))
        })?;
        let logs = self.run.logs();
        answers.ok_or_else(|| LabError::Timeout { what: "the manager's start".into(), limit: UP_LIMIT, logs })
    }

    /// An early death explains more than the time-out that follows from it.
    fn explain(&self, error: LabError) -> LabError {
        self.check_children().err().unwrap_or(error)
    }

    fn check_children(&self) -> Result<()> {
        for (process, child) in self.children().iter_mut() {
            let status = child.try_wait().map_err(LabError::io(format!("look at {process}")))?;
            if let Some(status) = status {
                let log = self.run.log(process);
                let (process, status, tail) = (process.to_string(), status.to_string(), logs::tail(&log));
                return Err(LabError::Died { process, status, log, tail });
            }
        }
        Ok(())
    }

    fn children(&self) -> std::sync::MutexGuard<'_, BTreeMap<Process, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster for Fabric {
    fn setting(&self) -> Setting {
        Setting::Kvm
    }

    fn hosts(&self) -> &[HostName] {
        &self.options.hosts
    }

    fn access(&self) -> &Access {
        &self.access
    }

    fn client(&self) -> &Namespace {
        &self.network.client
    }

    fn datastore(&self) -> &Path {
        self.run.datastore()
    }

    fn logs(&self) -> &Path {
        self.run.dir()
    }

    fn faults(&self) -> PathBuf {
        self.run.dir().join("faults")
    }

    fn cut(&self, host: &HostName) -> Result<()> {
        self.network.cut(host)
    }

    fn mend(&self, host: &HostName) -> Result<()> {
        self.network.mend(host)
    }

    fn kill(&self, host: &HostName) -> Result<()> {
        self.kill_process(&Process::Agent(host.clone()))?;
        self.kill_vmms(host).map(drop)
    }

    fn kill_vmms(&self, host: &HostName) -> Result<usize> {
        let vmms = self.vmms(host)?;
        for pid in &vmms {
            kill(*pid, Signal::SIGKILL).map_err(LabError::system(format!("kill the VMM {pid}")))?;
        }
        Ok(vmms.len())
    }

    fn shell(&self, host: &HostName, line: &str) -> Result<String> {
        exec::run(self.host_namespace(host)?.command("/bin/sh").args(["-c", line]), SHELL_LIMIT)
    }

    fn check_foundation(&self) -> Result<()> {
        Ok(())
    }

    fn collect_logs(&self) {}
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for (_, mut child) in std::mem::take(&mut *self.children()) {
            // What has already ended needs no killing; it is reaped either way.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A name from the source code.
fn name(text: &str) -> Name {
    text.parse().expect("names in the source code are valid")
}
