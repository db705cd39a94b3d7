//! A host: what it offers and how it is.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::capability::VmmOffer;
use crate::ids::{HostName, Name, TaskId, VmId, VmName};
use crate::units::Bytes;

/// What a host's agent tells the manager when it joins, and again with every heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostReport {
    pub name: HostName,
    /// Where the manager reaches the agent's API.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub agent: SocketAddr,
    pub facts: HostFacts,
    /// The VMs whose process runs here now.
    pub vms: Vec<crate::agent::LocalVm>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<crate::agent::Leftover>,
}

/// Facts about a host, measured and not configured, except for its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostFacts {
    /// Godwit's version on this host.
    pub version: String,
    pub kernel: String,
    pub cpu_model: String,
    pub cpus: u32,
    pub memory: Bytes,
    /// What `MemAvailable` says now, and what is kept, since that is given up when it is needed.
    pub memory_available: Bytes,
    /// Memory of VMs that have left this host and may come back to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptMemory>,
    pub kvm: KvmFacts,
    /// What its `godwit-vmm` can run; none until that has been asked, or if it cannot run anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmOffer>,
    pub networks: Vec<NetworkOffer>,
    pub datastores: Vec<DatastoreOffer>,
    /// How much it moves at once.
    #[serde(default)]
    pub migration: MigrationLimits,
    /// What all that runs on it uses; none until that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<crate::usage::HostUsage>,
    /// Milliseconds since 1970 by the host's clock when the facts were taken, to see skew.
    pub clock_unix_ms: u64,
}

/// Migrations at once of a host whose network and cores say nothing else, each way: while one hands over, another sends.
pub const MOVES_DEFAULT_MIN: u32 = 2;

/// How much a host moves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationLimits {
    /// Migrations away from it at a time, and as many to it.
    pub moves_max: u32,
    /// What all of them may send in bytes per second, and as much arrive; none is no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s_max: Option<u64>,
    /// Speed of the interface that migrations use, in bits per second, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_bits_per_s: Option<u64>,
}

impl Default for MigrationLimits {
    fn default() -> Self {
        Self::derived(None, 1)
    }
}

impl MigrationLimits {
    /// What suits a host with such a network, if it is known, and so many cores. Two keep a network busy that one fills; a
    /// faster one takes more streams, and those as many cores.
    pub fn derived(link_bits_per_s: Option<u64>, cores: u32) -> Self {
        const GIGABIT: u64 = 1_000_000_000;
        let of_link = match link_bits_per_s.unwrap_or(0) / GIGABIT {
            0..10 => MOVES_DEFAULT_MIN,
            10..25 => 4,
            _ => 8,
        };
        let moves_max = of_link.min((cores / 2).max(MOVES_DEFAULT_MIN));
        Self { moves_max, bandwidth_bytes_per_s_max: None, link_bits_per_s }
    }
}

/// What a host has kept of the memory of a VM that is elsewhere: if it comes back, only what has changed is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptMemory {
    pub vm: VmId,
    pub name: VmName,
    /// What it takes of this host's memory.
    pub memory: Bytes,
    /// Milliseconds since the VM has left.
    pub age_ms: u64,
}

/// What `/dev/kvm` is on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KvmFacts {
    pub flavour: KvmFlavour,
    /// Why it is unusable or limited, in plain words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<String>,
}

/// The kind of virtualisation behind `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KvmFlavour {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// PVM: no hardware virtualisation; stock kernels do not boot on it.
    Pvm,
    /// No usable `/dev/kvm`.
    None,
}

/// A guest network that the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkOffer {
    pub name: Name,
    pub bridge: String,
    /// The interface that connects the bridge to the other hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
}

/// A datastore that the host reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DatastoreOffer {
    pub name: Name,
    /// Where it is mounted on this host.
    pub path: String,
    pub size: Bytes,
    pub free: Bytes,
    /// What is the same on all hosts that reach the same storage, and differs between storages. None where a host cannot
    /// write it, or is of a release that does not: then hosts with one name for a datastore are taken to share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
}

impl DatastoreOffer {
    /// Whether it is known to be another storage than `other`.
    pub fn differs_from(&self, other: &Self) -> bool {
        self.id.zip(other.id).is_some_and(|(ours, theirs)| ours != theirs)
    }
}

/// Whether the manager hears from a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    Up,
    /// No heartbeat for longer than the manager's limit.
    Down,
}

/// That a host is being emptied, or is empty, to be patched. It gets no VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Maintenance {
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The task that empties it.
    pub task: TaskId,
    /// Whether no VM runs on it any more.
    pub empty: bool,
    /// Whether VMs take disks along that other hosts do not reach.
    #[serde(default)]
    pub move_disks: bool,
}

/// That a host is switched off to save power, or on its way there or back. It gets no VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Standby {
    pub phase: StandbyPhase,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// The task that has brought it there, or does.
    pub task: TaskId,
}

/// How far a host is on its way to standby and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StandbyPhase {
    /// It is being switched off.
    Going,
    Off,
    /// It was woken, and is not heard from yet.
    Waking,
}

/// A host as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    pub name: HostName,
    pub state: HostState,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub agent: SocketAddr,
    pub facts: HostFacts,
    /// Milliseconds since the last heartbeat.
    pub last_seen_ms: u64,
    /// VMs that it owns.
    pub vms: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_moves_as_many_at_once_as_its_link_and_its_cores_allow_and_never_fewer_than_two() {
        let moves =
            |gigabits: u64, cores| MigrationLimits::derived(Some(gigabits * 1_000_000_000), cores).moves_max;
        assert_eq!([moves(1, 64), moves(10, 64), moves(25, 64), moves(100, 64)], [2, 4, 8, 8]);
        assert_eq!([moves(100, 2), moves(100, 6), moves(10, 6)], [2, 3, 3]);
        assert_eq!(MigrationLimits::default().moves_max, 2);
    }
}
