//! What people have laid down about one VM or one host.

use std::collections::BTreeSet;

use godwit_types::power::PowerDriver;
use godwit_types::{Name, VmName};
use serde::{Deserialize, Serialize};

use crate::entitlement::Controls;
use crate::policy::Automation;
use crate::resource::PerResource;
use crate::snapshot::PowerModel;

/// What is directly in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolMembers {
    pub pools: Vec<Name>,
    pub vms: Vec<VmName>,
}

/// Of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct VmSettings {
    pub automation: Automation,
    /// The pool that it is in; none directly below the cluster.
    pub pool: Option<Name>,
    pub controls: PerResource<Controls>,
}

/// Of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HostSettings {
    /// Names that rules may give to several hosts.
    pub labels: BTreeSet<Name>,
    /// With which other hosts it would be lost at once: a rack, a power feed.
    pub domain: Option<Name>,
    /// How it is switched off and on.
    pub driver: PowerDriver,
    /// What it draws.
    pub power: PowerModel,
    /// Speed of its network in bits per second, if that is not what its interface says.
    pub network_bits_per_s: Option<u64>,
    /// Reads and writes per second that its disks can do; not known if none.
    pub storage_ops_per_s: Option<u64>,
}

impl HostSettings {
    /// What switching it off would save; none if nobody but people can switch it.
    pub fn power_model(&self) -> Option<PowerModel> {
        (self.driver != PowerDriver::None).then(|| self.power.clone())
    }
}
