//! What the people who run a cluster want of the scheduler.

use serde::{Deserialize, Serialize};

/// What the scheduler may do by itself, for the cluster or for one VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Automation {
    /// The cluster's, for a VM; for the cluster, as `Partial`.
    #[default]
    Inherit,
    /// It recommends; people apply.
    Manual,
    /// It places VMs that start, and recommends moves.
    Partial,
    /// It places and moves.
    Full,
}

/// See the module. Every field has a default, so a document names only what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub automation: Automation,
    /// From 1, only what must be, to 5, whatever helps: steps up to this priority are taken.
    pub threshold: u8,
    /// A host that was not heard of for longer neither gives nor gets, in milliseconds.
    pub stale_ms: u64,
    /// Most VMs that one plan moves, in thousandths of all; at least one may always.
    pub moved_max_permille: u32,
    /// A VM that has moved stays for at least so long, twice as long after each further move within a day, in milliseconds.
    pub cooldown_ms: u64,
    /// Hosts whose loss is prepared for.
    pub failures_to_tolerate: u32,
    /// For how long demand is taken to stay as it is, in milliseconds: what a move gains, it gains for so long.
    pub stable_ms: u64,
    /// Proposals of the search for each VM; more find more.
    pub proposals_per_vm: u32,
    pub power: PowerPolicy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            automation: Automation::Partial,
            threshold: 3,
            stale_ms: 60_000,
            moved_max_permille: 100,
            cooldown_ms: 15 * 60_000,
            failures_to_tolerate: 0,
            stable_ms: 30 * 60_000,
            proposals_per_vm: 2_000,
            power: PowerPolicy::default(),
        }
    }
}

/// Whether hosts are switched off when they are not needed, after VMware's DPM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerPolicy {
    pub enabled: bool,
    /// Hosts are to be used for so much of what they have, in per cent, give or take `band_percent`.
    pub target_percent: u32,
    pub band_percent: u32,
    /// Hosts that always stay on.
    pub hosts_on_min: u32,
    /// A host stays on for at least so long after it was woken, in milliseconds.
    pub uptime_min_ms: u64,
    /// Power saved must be worth so many times what it costs.
    pub benefit_ratio: u32,
}

impl Default for PowerPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            target_percent: 63,
            band_percent: 18,
            hosts_on_min: 1,
            uptime_min_ms: 600_000,
            benefit_ratio: 40,
        }
    }
}
