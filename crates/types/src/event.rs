//! Events: what happened in the cluster, in order.

use serde::{Deserialize, Serialize};

use crate::ids::{HostName, TaskId, VmName};

/// One event. `GET /v1/events` streams them as server-sent events whose id is [`Event::sequence`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Grows by one with every event.
    pub sequence: u64,
    pub unix_ms: u64,
    /// A dotted word for programs, such as `vm.migrated`.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
}
