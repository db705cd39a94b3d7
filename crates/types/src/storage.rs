//! Moving a VM's disks to another datastore of its host.

use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::ids::{MigrationId, Name};
use crate::units::Bytes;
use crate::vm::DatastorePath;

/// A request to move disks: `POST /v1/vms/{vm}/move-storage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveStorage {
    /// The datastore to move them to, where each keeps its path.
    pub to: Name,
    /// Which, by where they lie now; none: all that lie elsewhere and that the guest can write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub disks: Vec<DatastorePath>,
    /// What is copied at most, in bytes per second; none is no cap. What the guest writes meanwhile comes on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s_max: Option<u64>,
}

/// How far disks are on their way, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StoragePhase {
    /// What they hold is copied; what the guest writes to what was copied goes to both images.
    Copying,
    /// Everything was copied, and is being made durable.
    Settling,
    /// Both images of each disk hold the same, and each write goes to both.
    InSync,
    /// The same, until the record of where the disks lie is decided.
    Held,
    /// The VM's process uses the new images alone.
    Switched,
}

/// How disks that move get on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StorageProgress {
    pub phase: StoragePhase,
    /// What was copied of what the disks hold.
    pub copied: Bytes,
    /// What is still to be copied; what the disks hold is counted disk by disk.
    pub remaining: Bytes,
    /// Bytes copied per second, from the beginning on.
    pub bytes_per_s: u64,
    pub elapsed_ms: u64,
}

/// Disks that move, as the VM's process has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    pub migration: MigrationId,
    pub progress: StorageProgress,
    /// Why they do not move any more: they are where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<ApiError>,
}

impl StorageStatus {
    /// Before anything was copied.
    pub fn begins(migration: MigrationId) -> Self {
        let (phase, none) = (StoragePhase::Copying, Bytes(0));
        let progress =
            StorageProgress { phase, copied: none, remaining: none, bytes_per_s: 0, elapsed_ms: 0 };
        Self { migration, progress, ended: None }
    }
}
