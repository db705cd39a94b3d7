//! The real programs of the cluster: the manager on this machine, an agent in each host.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_types::HostName;

use super::cluster::{COMMAND_LIMIT, EmulatedCluster};
use super::machine::{died, end, log_to};
use super::network::{self, MANAGER_ADDRESS, UPLINK};
use super::state::State;
use crate::cluster::{Cli, Cluster, DATASTORE, NETWORK};
use crate::{LabError, Result, exec, setup};

pub(super) const MANAGER_PORT: u16 = 7400;
const AGENT_PORT: u16 = 7401;
const BRIDGE: &str = "br-lan";
const MANAGER_LIMIT: Duration = Duration::from_secs(60);

/// The manager's process; it ends with this.
#[derive(Debug)]
pub(super) struct Manager {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Manager {
    /// Starts the manager, and waits until it answers.
    pub(super) fn start(godwit: &Path, cluster: &EmulatedCluster) -> Result<Self> {
        let (access, dir) = (cluster.access(), cluster.logs());
        let mut command = access.namespace.command(godwit);
        command.args(["manager", "run", "--listen", &format!("{MANAGER_ADDRESS}:{MANAGER_PORT}"), "--state"]);
        if setup::can_be_reached_into() {
            command.env(godwit_faults::FILE, cluster.faults());
        }
        command.arg(dir.join("manager")).arg("--token-file").arg(&access.token_file);
        let log = dir.join("manager.log");
        log_to(&mut command, &log)?;
        let child = Mutex::new(command.spawn().map_err(LabError::io("start the manager"))?);
        let manager = Self { child, log };
        let answers = exec::poll(MANAGER_LIMIT, exec::POLL_COMMAND, || {
            manager.check()?;
            if !access.token_file.exists() {
                return Ok(None);
            }
            Ok(Cli::new(access).text(&["host", "ls"], COMMAND_LIMIT).ok())
        })?;
        let (what, limit, logs) = ("the manager's start".into(), MANAGER_LIMIT, dir.to_owned());
        answers.map(|_| manager).ok_or(LabError::Timeout { what, limit, logs })
    }

    /// Fails if the manager has ended.
    pub(super) fn check(&self) -> Result<()> {
        died(&mut self.child.lock().unwrap_or_else(PoisonError::into_inner), "the manager", &self.log)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        end(self.child.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

/// On emulated processors making digests of kept memory takes longer than sending it.
const KEEP_NOTHING: &str = "--keep-memory 0s";

/// Starts the agent in a host.
pub(super) fn start_agent(
    cluster: &EmulatedCluster,
    host: &HostName,
    index: u8,
    manager: &str,
) -> Result<()> {
    let address = network::management(index);
    let faults = if setup::can_be_reached_into() {
        format!("{}=/shared/faults", godwit_faults::FILE)
    } else {
        String::new()
    };
    let script = format!(
        "{faults} exec /usr/bin/godwit host run --name {host} --manager {manager} --token-file /shared/token \
         --listen {address}:{AGENT_PORT} --advertise {address}:{AGENT_PORT} --migration-address {address} \
         --network {NETWORK}={BRIDGE},uplink={UPLINK} --datastore {DATASTORE}=/shared/datastore {KEEP_NOTHING} \
         </dev/null >>/shared/{log} 2>&1 &",
        log = State::agent_log_in_shared(host),
    );
    let started = cluster.exec(host, &["/bin/sh", "-c", &script], COMMAND_LIMIT)?;
    if started.exit_code == 0 {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&started.stderr).trim().to_owned();
    let status = format!("exit code {}", started.exit_code);
    Err(LabError::Command { command: format!("godwit host run in {host}"), status, stderr })
}
