//! The CPU that new VMs see: what all hosts of a cluster have, so that every VM moves between any two of them.

use serde::{Deserialize, Serialize};

use crate::check::Finding;
use crate::ids::HostName;
use crate::vm::CpuProfile;

/// The cluster's baseline: the CPU profile of VMs that are defined without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuBaseline {
    pub profile: CpuProfile,
    /// The hosts whose CPUs it is what they have in common; empty if it has a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<HostName>,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// Chooses it: `POST /v1/cpu-baseline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum SetCpuBaseline {
    /// The CPU profile of that name.
    X86_64V2,
    /// What these hosts have in common; all hosts if none is named.
    Hosts {
        #[serde(default)]
        hosts: Vec<HostName>,
    },
}

/// The baseline, and what hosts lack of it: `GET /v1/cpu-baseline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuBaselineReport {
    /// None if VMs see all that the host offers on which they start.
    pub baseline: Option<CpuBaseline>,
    /// By name.
    pub hosts: Vec<BaselineOnHost>,
}

/// Whether VMs with the baseline run on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BaselineOnHost {
    pub host: HostName,
    /// What it lacks; they run there if nothing.
    pub findings: Vec<Finding>,
}
