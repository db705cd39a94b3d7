//! The API of a host's agent, which only the manager calls.
//!
//! ```text
//! GET    /v1/host                              HostReport
//! POST   /v1/vms/{id}/start        StartVm     -> LocalVm
//! POST   /v1/vms/{id}/stop         StopVm      -> {}           returns once the process is gone
//! POST   /v1/vms/{id}/fence        Fence       -> {}           ends a copy that was left behind
//! GET    /v1/vms/{id}                          LocalVm
//! GET    /v1/vms/{id}/guest                    GuestFacts       what the running VM would need elsewhere
//! POST   /v1/vms/{id}/survey       AskSurvey    -> Survey       what the running guest does to its memory
//! POST   /v1/vms/{id}/admission    AskAdmission -> [Finding]    why it could not arrive here; moves and reserves nothing
//! GET    /v1/vms/{id}/console                  upgrade to a raw byte stream of the serial console
//! DELETE /v1/vms/{id}/kept                     forgets what is kept of its memory
//! POST   /v1/vms/{id}/incoming     PrepareIncoming -> Incoming  builds the destination's machine
//! DELETE /v1/vms/{id}/incoming/{migration}     discards it, if it does not run the VM
//! POST   /v1/vms/{id}/outgoing     StartOutgoing -> {}          starts the migration on the source
//! GET    /v1/vms/{id}/outgoing/{migration}     Outgoing         progress, or how it ended
//! DELETE /v1/vms/{id}/outgoing/{migration}     cancels it, if it is not committed
//! POST   /v1/vms/{id}/left          RemoveLeft -> {}            removes the images that a VM which has moved with its disks has left behind
//! POST   /v1/vms/{id}/storage       BeginStorage -> StorageStatus   begins to move disks to another datastore of this host
//! GET    /v1/vms/{id}/storage/{migration}      StorageStatus    how they get on
//! POST   /v1/vms/{id}/storage/{migration}/hold -> StorageStatus lets nothing but a switch or a cancel end it
//! POST   /v1/vms/{id}/storage/{migration}/switch -> {}          the VM's record names the new images: they are its own
//! DELETE /v1/vms/{id}/storage/{migration}      cancels it, and removes the new images
//! POST   /v1/vms/{id}/outgoing/{migration}/bandwidth  SetBandwidth -> {}   what it may send, beside its host's own cap
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, HostName, MigrationId, VmId, VmName};
use crate::key::MigrationKey;
use crate::migration::{Budget, MigrationOutcome, MigrationProgress};
use crate::units::Bytes;
use crate::vm::{DatastorePath, MacAddress, VmSpec};

/// A VM's process on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LocalVm {
    pub id: VmId,
    pub name: VmName,
    pub epoch: Epoch,
    pub state: LocalState,
    /// Why it is so, in plain words: a crash's last lines of output, or what keeps a question to the arbiter open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The guest's addresses as seen on its network cards, for [`PrepareIncoming::addresses`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GuestAddress>,
    /// What it uses; none until that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<crate::usage::VmUsage>,
    /// Its disks, in their order, as they were found some time ago; none until they were looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<crate::capability::DiskFacts>,
}

/// An address that a guest was seen to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestAddress {
    /// Of the network card behind which the address is.
    pub mac: MacAddress,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: IpAddr,
}

/// What a VM's process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum LocalState {
    Running,
    /// Waiting to receive a migration, or receiving one.
    Incoming,
    /// Has received all of a migration, and waits for the arbiter. It takes over if the source turns out to be dead.
    Prepared,
    /// Running, and being migrated away.
    Outgoing,
    /// Handed over to another host; about to end.
    HandedOver,
    /// The guest shut itself down or was stopped.
    Stopped,
    /// The process ended by itself.
    Crashed,
}

/// Boots a VM that this host owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartVm {
    pub name: VmName,
    pub epoch: Epoch,
    pub spec: VmSpec,
}

/// Stops a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StopVm {
    /// End the process at once instead of pressing the power button.
    pub force: bool,
    /// How long the guest may take after the power button, in milliseconds.
    pub timeout_ms: u64,
}

/// Ends whatever of a VM runs on this host at an epoch before `epoch`, at which `owner` has it: first its network, then
/// its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub owner: HostName,
    pub epoch: Epoch,
}

/// Builds the destination's machine for a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareIncoming {
    pub migration: MigrationId,
    pub name: VmName,
    pub spec: VmSpec,
    /// The epoch at which this host will run the VM, if the commit is granted.
    pub epoch: Epoch,
    pub source: HostName,
    /// What both sides of the migration share; without it memory goes in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<MigrationKey>,
    /// What the source last reported in [`LocalVm::addresses`]: the destination announces them on arrival. Without
    /// them it announces the network cards' MAC addresses only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GuestAddress>,
    /// Disks that arrive with the VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<MovedDisk>,
}

/// A disk that moves with its VM: a new image is made where the specification has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedDisk {
    /// Which of the specification's disks it is, from 0.
    pub index: u32,
    /// What the guest sees of it.
    pub size: Bytes,
}

/// Removes what a VM that has moved with its disks has left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveLeft {
    /// At which the VM last ran here.
    pub epoch: Epoch,
    pub images: Vec<DatastorePath>,
}

/// Begins to move disks of a VM to another datastore of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginStorage {
    /// The id of the move.
    pub migration: MigrationId,
    /// At which the VM is this host's.
    pub epoch: Epoch,
    pub disks: Vec<NewDiskPlace>,
    /// The specification of a VM that does not run; none: it runs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_rest: Option<VmSpec>,
    /// Bytes per second to copy; none is no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s_max: Option<u64>,
}

/// Where a disk moves to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDiskPlace {
    /// Which of the specification's disks it is, from 0.
    pub index: u32,
    pub image: DatastorePath,
}

/// Asks how large the disks of a VM are that does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskDisks {
    pub spec: VmSpec,
    /// At which the VM is this host's.
    pub epoch: Epoch,
}

/// Files of a VM that was to arrive here with its disks, and has no process any more, or of disks that move to another
/// datastore. Whether they are the VM's by now, the manager knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Leftover {
    pub vm: VmId,
    pub migration: MigrationId,
}

/// Asks what a running guest does to its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskSurvey {
    /// How long to watch, in milliseconds, up to [`SAMPLE_MS_MAX`](crate::forecast::SAMPLE_MS_MAX).
    pub sample_ms: u32,
}

/// Asks whether a VM could arrive here now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskAdmission {
    pub spec: VmSpec,
    /// The epoch at which this host would run the VM.
    pub epoch: Epoch,
    /// Disks that would arrive with it, by their numbers.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub disks: BTreeSet<u32>,
}

/// Where the destination's VMM listens for the migration's streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    pub address: SocketAddr,
}

/// Starts a migration on the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOutgoing {
    pub migration: MigrationId,
    pub destination: HostName,
    pub address: SocketAddr,
    /// See [`PrepareIncoming::key`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<MigrationKey>,
    /// Disks that go along, by their numbers.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub disks: BTreeSet<u32>,
    pub budget: Budget,
}

/// A migration as seen from its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outgoing {
    pub migration: MigrationId,
    pub progress: Option<MigrationProgress>,
    pub outcome: Option<MigrationOutcome>,
}

/// `POST /v1/host/standby`: the host shuts itself down, unless a VM is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {}
