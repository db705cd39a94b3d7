//! Taking over the VMs that an earlier agent started, and clearing away what is left of those that are gone.

use std::sync::Arc;
use std::time::Duration;

use godwit_types::agent::LocalState;
use godwit_types::control::{Role, Status, VmmConfig, VmmState};
use godwit_types::{Bytes, Epoch};
use tokio::time::timeout;

use super::control::Control;
use super::dir::VmDir;
use super::machine::{Machine, blocking, remove_cgroup, unplug_all};
use super::process::Process;
use super::state::{Ended, State};
use super::supervise::{supervise, tell_network};
use crate::agent::Agent;
use crate::net::Port;

/// How long a process that is found may take to say how it is, before it is taken as its configuration says.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// Goes through all VMs that have been here.
pub(crate) async fn adopt_all(agent: &Arc<Agent>) -> std::io::Result<()> {
    for (vm, dir) in VmDir::all(&agent.config.state_dir)? {
        match dir.read_config() {
            Ok(config) if config.vm == vm => adopt(agent, dir, config).await,
            // Only the logs of a crash are there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            _ => tracing::warn!("{} is not a VM's configuration, and is left alone", dir.config().display()),
        }
    }
    Ok(())
}

async fn adopt(agent: &Arc<Agent>, dir: VmDir, config: VmmConfig) {
    let ports = ports(agent, &config);
    let control = Control::new(dir.control());
    let process = match control.peer().await {
        Ok(pid) => Process::adopt(pid),
        Err(error) => Err(error),
    };
    match process {
        Ok(process) => adopt_live(agent, dir, config, ports, process).await,
        Err(error) => clear_dead(agent, dir, config, ports, &error).await,
    }
}

async fn adopt_live(agent: &Arc<Agent>, dir: VmDir, config: VmmConfig, ports: Vec<Port>, process: Process) {
    let (status, answered) = match timeout(STATUS_TIMEOUT, Control::new(dir.control()).status()).await {
        Ok(Ok(status)) => (status, true),
        Ok(Err(error)) => (presumed(&config, &process, &error.to_string()), false),
        Err(_) => (presumed(&config, &process, "it does not answer"), false),
    };
    let incoming = match config.role {
        Role::Boot => None,
        Role::Incoming { migration, .. } => Some(migration),
    };
    let state = State::new(&status, incoming);
    tracing::info!("{} is here, in process {} ({:?})", config.name, process.pid(), state.local());
    let machine = Arc::new(Machine::new(config, dir, process, ports, &[], state));
    agent.vms.insert(Arc::clone(&machine));
    if answered && machine.is_here() {
        // The agent before may have been ended before anybody heard that the VM has come here.
        tell_network(agent, &machine);
    }
    agent.spawn(supervise(Arc::clone(agent), machine));
}

/// What is assumed of a process that runs and does not say how it is.
fn presumed(config: &VmmConfig, process: &Process, why: &str) -> Status {
    tracing::warn!("{}: the process {} does not say how it is: {why}", config.name, process.pid());
    let (vm, epoch, pid) = (config.vm, config.epoch, process.pid());
    let state = if config.role == Role::Boot { VmmState::Running } else { VmmState::Incoming };
    Status { vm, epoch, pid, state, listening: None, migration: None, balloon: Bytes(0), disk_operations: 0 }
}

async fn clear_dead(
    agent: &Arc<Agent>,
    dir: VmDir,
    config: VmmConfig,
    ports: Vec<Port>,
    error: &std::io::Error,
) {
    let ran_here = config.role == Role::Boot;
    tracing::warn!("{}: its process is gone ({error}); clearing up", config.name);
    if ran_here {
        let words = dir.last_words();
        let detail = format!("the VM's process ended while no agent watched it: {words}");
        let ended = crash(config.epoch, detail.trim_end_matches([':', ' ']));
        agent.vms.found_dead(config.vm, config.name.clone(), ended);
    }
    blocking(move || {
        unplug_all(&ports);
        remove_cgroup(config.cgroup);
        let cleared = if ran_here { dir.keep_logs() } else { dir.remove() };
        if let Err(error) = cleared {
            tracing::warn!("a VM's directory was not cleared: {error}");
        }
    })
    .await;
}

fn crash(epoch: Epoch, detail: &str) -> Ended {
    Ended { state: LocalState::Crashed, epoch, detail: Some(detail.to_owned()), outgoing: None }
}

/// The taps in the configuration, on the networks as this agent knows them.
fn ports(agent: &Agent, config: &VmmConfig) -> Vec<Port> {
    let nics = config.nics.iter().zip(&config.spec.nics);
    nics.map(|(backing, nic)| {
        let network = agent.config.networks.iter().find(|network| network.name == nic.network);
        Port {
            tap: backing.tap.clone(),
            mac: backing.mac,
            bridge: network.map(|network| network.bridge.clone()).unwrap_or_default(),
            uplink: network.and_then(|network| network.uplink.clone()),
        }
    })
    .collect()
}
