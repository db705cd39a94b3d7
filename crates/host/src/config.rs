//! What an agent is started with.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use godwit_api::BaseUrl;
use godwit_types::{Bytes, HostName, Name};

/// An agent's configuration.
#[derive(Debug, Clone)]
pub struct HostConfig {
    pub name: HostName,
    /// The manager's API.
    pub manager: BaseUrl,
    /// Holds the token for the manager's API and for the agent's own.
    pub token_file: PathBuf,
    /// Where the agent's API listens.
    pub listen: SocketAddr,
    /// Where the manager reaches the agent's API.
    pub advertise: SocketAddr,
    /// Where the VMMs listen for incoming migrations.
    pub migration_address: IpAddr,
    /// Made if it is missing. Two agents never share one.
    pub state_dir: PathBuf,
    pub networks: Vec<NetworkConfig>,
    pub datastores: Vec<DatastoreConfig>,
    /// The users that VMs' processes become, one each. Without effect if the agent is not root.
    pub vm_users: RangeInclusive<u32>,
    /// Where the VMs' cgroups are made, below the root of the hierarchy.
    pub cgroup: PathBuf,
    /// Migrations away at a time, and as many to here; none is what its network and cores allow.
    pub moves_max: Option<u32>,
    /// What all migrations away may send in bytes per second, and as much may come; none is no cap.
    pub bandwidth_bytes_per_s_max: Option<u64>,
    /// How memory of VMs that have left is kept; none: not at all.
    pub keep: Option<KeepConfig>,
    /// What switches this host off, to be woken by a magic packet: a program and its arguments.
    pub standby: Vec<String>,
    /// The `godwit-vmm` binary; none is the one beside the agent's own.
    pub vmm: Option<PathBuf>,
}

/// How memory of VMs that have left is kept for their return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepConfig {
    /// For so long.
    pub age: Duration,
    /// At most so much of it; none is half of the host's memory.
    pub max: Option<Bytes>,
}

/// A guest network that the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    pub name: Name,
    /// Created if it is missing; never removed.
    pub bridge: String,
    /// Plugged into the bridge if it is not yet.
    pub uplink: Option<String>,
}

/// A datastore that the host reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatastoreConfig {
    pub name: Name,
    /// Where it is mounted.
    pub path: PathBuf,
}
