//! What is known of a cluster at one moment: all that a decision rests on.
//!
//! It is recorded with each decision, so a decision can be made again. Times are milliseconds since 1970, amounts in the units of
//! [`Resource`](crate::Resource).

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::{HostName, Name, VmName};
use serde::{Deserialize, Serialize};

use crate::entitlement::{Controls, Pool};
use crate::policy::Automation;
use crate::resource::PerResource;
use crate::rules::Rule;

/// Of how long the most that a VM has wanted is told ([`Vm::demand_long`]), in milliseconds.
pub const LATELY_MS: u64 = 40 * 60_000;
/// The length of a slot of [`Vm::recent_mhz`] and [`Vm::ahead_mhz`], in milliseconds, and how many recent ones are told: an hour.
pub const SLOT_MS: u64 = 5 * 60_000;
pub const RECENT_SLOTS: usize = 12;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    pub at_unix_ms: u64,
    pub hosts: Vec<Host>,
    pub vms: Vec<Vm>,
    pub pools: Vec<Pool>,
    pub rules: Vec<Rule>,
}

/// A host as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = SnapshotHost))]
pub struct Host {
    pub name: HostName,
    pub state: HostState,
    /// Since when it is in that state.
    pub since_unix_ms: u64,
    /// When it was last heard of.
    pub seen_unix_ms: u64,
    /// What it has for VMs, without what it needs itself. Of network and storage 0 if nobody knows: a resource of which one host
    /// does not tell counts for none.
    pub capacity: PerResource<u64>,
    /// Its kind of CPU; hosts of one class run the same VMs. Unknown if none.
    pub cpu_class: Option<Name>,
    pub networks: BTreeSet<Name>,
    pub datastores: BTreeSet<Name>,
    /// Room for disks that VMs bring along, by the name of the datastore there.
    #[serde(default)]
    pub rooms: BTreeMap<Name, Room>,
    /// Whether VMs that leave it, since it is to be emptied, take disks along that other hosts do not reach.
    #[serde(default)]
    pub move_disks: bool,
    /// With which other hosts it would be lost at once: a rack, a power feed.
    pub domain: Option<Name>,
    /// Names that rules may give to several hosts.
    pub labels: BTreeSet<Name>,
    pub migration: MigrationRoom,
    /// None if it cannot be switched off and on by itself.
    pub power: Option<PowerModel>,
}

/// What a host is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = SnapshotHostState))]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// It runs VMs.
    On,
    /// It is being emptied, or is empty, to be patched. It gets no VM.
    Maintenance,
    /// It is switched off to save power, and can be woken.
    Standby,
    /// It was woken, and is not there yet.
    Waking,
    /// It is not heard of. Its VMs can be neither moved nor counted on to be gone.
    Lost,
}

/// What a host finds under a datastore's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Room {
    /// The same for all hosts that reach the same storage.
    pub storage: Name,
    /// In bytes.
    pub free: u64,
}

/// How much a host moves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationRoom {
    /// Migrations away from it at a time, and as many to it.
    pub moves_max: u32,
    /// What all of them send in bytes per second, and as much arrives.
    pub bytes_per_s: u64,
    /// Whether nobody knows how fast its network is, and that is an assumption.
    #[serde(default)]
    pub is_assumed: bool,
}

/// What a host draws, in watts: linear between the points, which stand for 0 % of its CPU, evenly on to 100 %.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PowerModel {
    /// At least two.
    pub watts: Vec<u32>,
    /// Drawn while it is switched off.
    pub standby_watts: u32,
    /// How long it takes to be there, in milliseconds.
    pub wake_ms: u64,
}

impl Default for PowerModel {
    /// A small server that takes three minutes to start.
    fn default() -> Self {
        Self { watts: vec![100, 200], standby_watts: 5, wake_ms: 180_000 }
    }
}

/// A VM that runs, or is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = SnapshotVm))]
pub struct Vm {
    pub name: VmName,
    /// None if it is to be placed.
    pub host: Option<HostName>,
    /// Directly below the cluster if none.
    pub pool: Option<Name>,
    pub controls: PerResource<Controls>,
    /// What it would use now if nothing held it back.
    pub demand: PerResource<u64>,
    /// The most that it is expected to want within the next hour; 0 if nothing is known.
    pub expected: PerResource<u64>,
    /// The most that it has wanted within the last 40 minutes; 0 if nothing is known.
    #[serde(default)]
    pub demand_long: PerResource<u64>,
    /// What it has wanted of CPU lately, in MHz: by slots that are the same for all VMs, the newest last. Empty if nothing is known,
    /// or nobody asks: only power management does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_mhz: Vec<u64>,
    /// What it is expected to want of CPU, slot by slot of the next hour, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ahead_mhz: Vec<u64>,
    /// When demand was measured; never if none, and then it is not moved for its own sake.
    pub measured_unix_ms: Option<u64>,
    pub vcpus: u32,
    /// What a host must have free for it, in bytes, whatever it uses.
    pub memory: u64,
    pub needs: Needs,
    /// Disks that could move with it to where their storage is not reached.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Why it cannot be moved now, in plain words: a task under way, a disk that only its host reaches.
    pub pinned: Option<String>,
    pub automation: Automation,
    pub writes: Writes,
    /// When it was moved within the last day, in order.
    pub moved_unix_ms: Vec<u64>,
}

/// What a host must have for a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Needs {
    /// Classes of CPU that it runs on; any if none.
    pub cpu_classes: Option<BTreeSet<Name>>,
    pub networks: BTreeSet<Name>,
    pub datastores: BTreeSet<Name>,
}

/// A disk that only some hosts reach.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Disk {
    /// The name of the datastore in which it is, and in which it would be elsewhere.
    pub datastore: Name,
    /// What that is where the VM runs; one of its [`Needs::datastores`].
    pub storage: Name,
    /// What it holds.
    pub bytes: u64,
}

/// What decides how long a migration takes: memory that was touched, and how it is written. The model is mVM's (BtrPlace).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Writes {
    /// Memory that is not zero, in bytes.
    pub used: u64,
    /// Memory that is written over and over, in bytes.
    pub hot: u64,
    /// Bytes of memory that are written anew each second, the hot ones counted once.
    pub bytes_per_s: u64,
}
