//! What is to be done, why, and in which order.

use std::fmt;

use godwit_types::{HostName, VmName};
use serde::{Deserialize, Serialize};

use crate::entitlement::Happiness;

/// Steps, and what they are good for. Executed as far as they come, they leave a cluster that is no worse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// Each after those that it waits for.
    pub steps: Vec<Step>,
    pub before: Standing,
    /// Once all steps are done.
    pub after: Standing,
    /// VMs that stay although they should not: unhappy, on a host that is to be emptied, or against a rule.
    pub unmoved: Vec<WhyNot>,
    /// What is wrong with the snapshot or the policy, in plain words with what to do. What is affected was left alone.
    pub findings: Vec<String>,
    /// With power management, why each host is kept on that is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_on: Vec<KeptOn>,
}

/// Why a host is not switched off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptOn {
    pub host: HostName,
    /// In plain words.
    pub why: String,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Step {
    pub action: Action,
    /// From 1, it must be done, to 5, it hardly helps.
    pub priority: u8,
    pub reason: Reason,
    /// By how much the cluster's score becomes better by it; below 0 if it only makes way for another step.
    pub gain: f64,
    pub cost: Cost,
    /// Places in the plan of the steps that must be done before it begins.
    pub after: Vec<usize>,
    /// When it begins and ends if all goes as expected, in milliseconds from the plan's beginning.
    pub begins_ms: u64,
    pub ends_ms: u64,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    Move {
        vm: VmName,
        from: HostName,
        to: HostName,
    },
    /// A VM that has no host is to start there.
    Place {
        vm: VmName,
        on: HostName,
    },
    /// Switches a host on.
    Wake {
        host: HostName,
    },
    /// Switches an empty host off.
    Standby {
        host: HostName,
    },
}

/// Why a step is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    /// The host that it leaves is to be emptied.
    Maintenance { host: HostName },
    /// A rule is broken.
    Rule { rule: godwit_types::Name },
    /// It, or others on its host, get less than they are entitled to, most of all of this.
    Entitlement { resource: crate::Resource },
    /// Hosts are used unevenly, most of all this.
    Evenness { resource: crate::Resource },
    /// Its host is used for more of this than hosts are to be, while power is managed.
    Band { resource: crate::Resource },
    /// It makes room for another VM, or for a step that could not be done otherwise.
    Room { vm: VmName },
    /// Its host is to be switched off, or another was switched on.
    Power { host: HostName },
    /// It is to start.
    Start,
}

/// What a migration is expected to cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cost {
    pub duration_ms: u64,
    pub bytes: u64,
    pub blackout_us: u64,
    /// Processor time at both ends together, in milliseconds.
    pub cpu_ms: u64,
}

/// How a cluster is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Standing {
    /// What the search makes less: the objective.
    pub score: f64,
    /// The mean of all VMs.
    pub happiness: Happiness,
    /// The VM that is worst off.
    pub unhappiest: Option<(VmName, Happiness)>,
    /// Rules that are broken.
    pub broken: Vec<godwit_types::Name>,
    /// What its hosts draw, in watts, those without a model left out.
    pub watts: u64,
}

/// Why a VM stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyNot {
    pub vm: VmName,
    /// What is wrong with where it is.
    pub wrong: String,
    /// For each host, or for all at once, what speaks against it, in plain words.
    pub reasons: Vec<(Option<HostName>, String)>,
}

impl Action {
    /// The VM that it moves or starts.
    pub fn vm(&self) -> Option<&VmName> {
        match self {
            Self::Move { vm, .. } | Self::Place { vm, .. } => Some(vm),
            Self::Wake { .. } | Self::Standby { .. } => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Move { vm, from, to } => write!(f, "move VM '{vm}' from host '{from}' to '{to}'"),
            Self::Place { vm, on } => write!(f, "start VM '{vm}' on host '{on}'"),
            Self::Wake { host } => write!(f, "wake host '{host}'"),
            Self::Standby { host } => write!(f, "switch host '{host}' off"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintenance { host } => write!(f, "since host '{host}' is to be emptied"),
            Self::Rule { rule } => write!(f, "for the sake of rule '{rule}'"),
            Self::Entitlement { resource } => {
                write!(f, "so that VMs get the {resource} they are entitled to")
            }
            Self::Evenness { resource } => write!(f, "so that hosts share {resource} evenly"),
            Self::Band { resource } => {
                write!(f, "since its host is used for more {resource} than the band allows")
            }
            Self::Room { vm } => write!(f, "to make room for VM '{vm}'"),
            Self::Power { host } => write!(f, "since host '{host}' is switched on or off"),
            Self::Start => write!(f, "since it is to start"),
        }
    }
}
