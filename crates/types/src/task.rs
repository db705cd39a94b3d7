//! A task: something the manager was asked to do that takes time.

use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::forecast::Forecast;
use crate::ids::{HostName, Name, TaskId, VmId, VmName};
use crate::migration::{MigrationProgress, MigrationReport};
use crate::storage::StorageProgress;

/// What a task does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TaskKind {
    StartVm {
        host: HostName,
    },
    StopVm {
        force: bool,
    },
    MigrateVm {
        from: HostName,
        to: HostName,
    },
    /// Disks of a VM on `host`, to the datastore `to`.
    MoveStorage {
        host: HostName,
        to: Name,
    },
    /// Empties `host`, and keeps it empty.
    EnterMaintenance {
        host: HostName,
    },
    /// Switches `host` off, which is empty, until it is needed.
    SendToStandby {
        host: HostName,
    },
    /// Switches `host` on.
    WakeHost {
        host: HostName,
    },
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Nothing was done yet: it waits for its turn.
    Waiting,
    Running,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

impl TaskState {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What a task waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Turn {
    /// Its place among those that wait for the same hosts, from 1.
    pub position: u32,
    /// The hosts that take part in as many migrations as they may, each with the direction that is full.
    pub full: Vec<FullHost>,
}

/// A host that takes part in as many migrations as it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FullHost {
    pub host: HostName,
    /// Of migrations to it, and not of those away from it.
    pub incoming: bool,
    /// How many it takes part in at once.
    pub moves_max: u32,
}

/// A task as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Task {
    pub id: TaskId,
    #[serde(flatten)]
    pub kind: TaskKind,
    /// Of one that is about a VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<VmName>,
    pub state: TaskState,
    /// What it is doing now, or how it ended, in plain words.
    pub message: String,
    /// When it was asked for.
    pub started_unix_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_unix_ms: Option<u64>,
    /// Of one that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Turn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<MigrationProgress>,
    /// Of disks that move to another datastore: how they get on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageProgress>,
    /// Of a migration: what it was expected to cost when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Of a migration that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<MigrationReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

impl Task {
    /// What it is about: a VM's name, or a host's.
    pub fn subject(&self) -> &str {
        match (&self.vm_name, &self.kind) {
            (Some(vm), _) => vm.as_str(),
            (
                None,
                TaskKind::EnterMaintenance { host }
                | TaskKind::SendToStandby { host }
                | TaskKind::WakeHost { host },
            ) => host.as_str(),
            (None, _) => "-",
        }
    }
}

/// What became of one of several VMs: `godwit vm migrate --json` prints a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmMove {
    pub vm: VmName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Why there is no task: the request was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// Changes what a migration may send, while it waits or runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetBandwidth {
    /// Bytes per second on the wire; none is no cap but those of its hosts.
    pub bytes_per_s_max: Option<u64>,
}
