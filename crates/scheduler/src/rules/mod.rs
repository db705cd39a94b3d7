//! Where VMs may run, beside what fits.

pub(crate) mod compatible;
mod shape;
pub(crate) mod table;

pub use shape::RuleFinding;

use std::collections::BTreeSet;

use godwit_types::{HostName, Name, VmName};
use serde::{Deserialize, Serialize};

/// Something that people have laid down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rule {
    pub name: Name,
    /// Whether it is never broken. One that is not is kept if that does not cost too much.
    pub must: bool,
    pub kind: RuleKind,
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RuleKind {
    /// All of them on one host.
    Together { vms: BTreeSet<VmName> },
    /// No two of them on one host.
    Apart { vms: BTreeSet<VmName> },
    /// No more than so many of them on one host.
    MaxPerHost { vms: BTreeSet<VmName>, most: u32 },
    /// Over at least so many failure domains, as evenly as can be: no domain has more than its part, rounded up.
    Spread { vms: BTreeSet<VmName>, domains: u32 },
    /// Only on these hosts. A licence is such a rule.
    RunOn { vms: BTreeSet<VmName>, hosts: Hosts },
    /// Not on these hosts.
    NotOn { vms: BTreeSet<VmName>, hosts: Hosts },
}

/// Hosts by name and by label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hosts {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<HostName>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<Name>,
}
