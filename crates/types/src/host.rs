//! A host: what it offers and how it is.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::capability::VmmOffer;
use crate::ids::{HostName, Name, VmId, VmName};
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
    /// Milliseconds since 1970 by the host's clock when the facts were taken, to see skew.
    pub clock_unix_ms: u64,
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
}
