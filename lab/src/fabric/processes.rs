//! The real programs inside the namespaces.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use godwit_types::HostName;
use nix::unistd::Pid;

use super::network::{MANAGER_ADDRESS, UPLINK};
use super::{Fabric, OWN_DATASTORE, OwnDatastores};
use crate::cluster::{Cluster, DATASTORE, NETWORK};
use crate::namespace::Namespace;
use crate::{LabError, Result, setup};

/// The manager's port.
pub(super) const MANAGER_PORT: u16 = 7400;
const AGENT_PORT: u16 = 7401;
const BRIDGE: &str = "br-lan";

/// A program that the fabric runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    Manager,
    Agent(HostName),
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::Agent(host) => write!(f, "agent-{host}"),
        }
    }
}

/// Starts it in its namespace, with its log as its output, away from the terminal's signals.
pub(super) fn spawn(fabric: &Fabric, process: &Process) -> Result<Child> {
    let mut command = match process {
        Process::Manager => manager(fabric)?,
        Process::Agent(host) => agent(fabric, host)?,
    };
    let path = fabric.run.log(process);
    let opening = LabError::io(format!("open {}", path.display()));
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(opening)?;
    let errors = log.try_clone().map_err(LabError::io("duplicate a log's descriptor"))?;
    if setup::can_be_reached_into() {
        command.env(godwit_faults::FILE, fabric.faults());
    }
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    command.spawn().map_err(LabError::io(format!("start the {process}")))
}

fn manager(fabric: &Fabric) -> Result<Command> {
    let mut command = fabric.access.namespace.command(setup::godwit()?);
    command.args(["manager", "run", "--listen", &format!("{MANAGER_ADDRESS}:{MANAGER_PORT}"), "--state"]);
    command.arg(fabric.manager_state());
    command.arg("--token-file").arg(&fabric.access.token_file);
    Ok(command)
}

fn agent(fabric: &Fabric, host: &HostName) -> Result<Command> {
    let namespace = fabric.host_namespace(host)?;
    let address = fabric.network.address(host);
    let address = address.ok_or_else(|| LabError::Broken(format!("{host} has no address")))?;
    // A namespace of `ip` has a /sys of its own, in which no cgroups are mounted. What is mounted in it ends with it.
    let mut mounts = String::from("mount -t cgroup2 cgroup2 /sys/fs/cgroup");
    let own = fabric.run.own_datastore(host);
    if fabric.options.own_datastores.is_some() {
        std::fs::create_dir_all(&own).map_err(LabError::io(format!("create {}", own.display())))?;
    }
    if let Some(OwnDatastores::Bounded(size)) = fabric.options.own_datastores {
        mounts += &format!("; mount -t tmpfs -o size={} tmpfs {}", size.0, own.display());
    }
    let mut command = namespace.command("/bin/sh");
    command.args(["-c", &format!("{mounts}; exec \"$0\" \"$@\"")]).arg(setup::godwit()?);
    command.args(["host", "run", "--name", host.as_str(), "--manager", &fabric.access.manager]);
    command.arg("--token-file").arg(&fabric.access.token_file);
    command.args(["--listen", &format!("{address}:{AGENT_PORT}")]);
    command.args(["--advertise", &format!("{address}:{AGENT_PORT}")]);
    command.args(["--migration-address", &address.to_string()]);
    command.arg("--state").arg(fabric.host_state(host)).args(["--cgroup", &fabric.run.cgroup()]);
    command.args(&fabric.options.agent_options);
    if !fabric.options.bare.contains(host) {
        command.args(["--network", &format!("{NETWORK}={BRIDGE},uplink={UPLINK}"), "--datastore"]);
        command.arg(format!("{DATASTORE}={}", fabric.datastore().display()));
    }
    if fabric.options.own_datastores.is_some() {
        command.args(["--datastore", &format!("{OWN_DATASTORE}={}", own.display())]);
    }
    Ok(command)
}

/// The VMMs in a namespace.
pub(super) fn vmms(namespace: &Namespace) -> Result<Vec<Pid>> {
    let mut pids = namespace.pids()?;
    pids.retain(|pid| {
        let exe = std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe"));
        exe.is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "godwit-vmm"))
    });
    Ok(pids)
}
