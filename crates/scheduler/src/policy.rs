//! What the people who run a cluster want of the scheduler.

use serde::{Deserialize, Serialize};

/// What the scheduler may do by itself, for the cluster or for one VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Whether VMs that move take disks along that other hosts do not reach; else they stay, unless their host is emptied and they were
    /// said to.
    pub move_disks: bool,
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
            move_disks: false,
            power: PowerPolicy::default(),
        }
    }
}

/// A field of a policy that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFinding {
    #[error("the threshold {0} is none of 1 to 5")]
    Threshold(u8),
    #[error("`stale_ms` is {0}: every host would be stale between two of its reports")]
    Stale(u64),
    #[error("`stable_ms` is 0: no move could gain anything")]
    Stable,
    #[error("`moved_max_permille` is {0}, which is more than all VMs")]
    Moved(u32),
    #[error("`proposals_per_vm` is {0}, and not 1 to {PROPOSALS_MAX}")]
    Proposals(u32),
    #[error("hosts cannot be used for {target} %, give or take {band} %")]
    Band { target: u32, band: u32 },
    #[error("`hosts_on_min` is 0: a cluster without a host that is on places no VM")]
    HostsOn,
    #[error("`benefit_ratio` is 0: hosts would be switched off however little that saves")]
    BenefitRatio,
}

/// Shortest silence after which a host may be called stale, in milliseconds: its agent reports every 2 s.
const STALE_MS_MIN: u64 = 5_000;
/// Most proposals for each VM: a search over a thousand VMs stays within minutes.
const PROPOSALS_MAX: u32 = 1_000_000;

impl PolicyFinding {
    /// What the person who has written it can do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Threshold(_) => "name 1, only what must be, to 5, whatever helps".into(),
            Self::Stale(_) => format!("set `stale_ms` to {STALE_MS_MIN} or more"),
            Self::Stable => "set `stable_ms` to how long demand stays as it is, such as 1800000".into(),
            Self::Moved(_) => "name 1000 or less".into(),
            Self::Proposals(_) => "leave it at 2000, or name more to find more".into(),
            Self::Band { .. } => {
                "keep `target_percent` and the band on both sides of it within 0 and 100".into()
            }
            Self::HostsOn => "keep at least 1 host on".into(),
            Self::BenefitRatio => "name 1 or more".into(),
        }
    }
}

impl Policy {
    /// Everything in it that makes no sense, in the order of the fields.
    pub fn findings(&self) -> Vec<PolicyFinding> {
        let power = &self.power;
        let (target, band) = (power.target_percent, power.band_percent);
        let is_band = target > 0 && band <= target && target.saturating_add(band) <= 100;
        let checks = [
            ((1..=5).contains(&self.threshold), PolicyFinding::Threshold(self.threshold)),
            (self.stale_ms >= STALE_MS_MIN, PolicyFinding::Stale(self.stale_ms)),
            (self.moved_max_permille <= 1000, PolicyFinding::Moved(self.moved_max_permille)),
            (self.stable_ms > 0, PolicyFinding::Stable),
            (
                (1..=PROPOSALS_MAX).contains(&self.proposals_per_vm),
                PolicyFinding::Proposals(self.proposals_per_vm),
            ),
            (is_band, PolicyFinding::Band { target, band }),
            (power.hosts_on_min > 0, PolicyFinding::HostsOn),
            (power.benefit_ratio > 0, PolicyFinding::BenefitRatio),
        ];
        checks.into_iter().filter(|(is_well, _)| !is_well).map(|(_, finding)| finding).collect()
    }
}

/// Whether hosts are switched off when they are not needed, after VMware's DPM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wrong_with_the_policy_that_nobody_has_written() {
        assert_eq!(Policy::default().findings(), []);
    }

    #[test]
    fn everything_that_makes_no_sense_is_found_at_once() {
        let power = PowerPolicy {
            target_percent: 90,
            band_percent: 18,
            hosts_on_min: 0,
            benefit_ratio: 0,
            ..PowerPolicy::default()
        };
        let policy = Policy {
            threshold: 6,
            stale_ms: 1,
            moved_max_permille: 1001,
            stable_ms: 0,
            proposals_per_vm: 0,
            power,
            ..Policy::default()
        };
        let found = [
            PolicyFinding::Threshold(6),
            PolicyFinding::Stale(1),
            PolicyFinding::Moved(1001),
            PolicyFinding::Stable,
            PolicyFinding::Proposals(0),
            PolicyFinding::Band { target: 90, band: 18 },
            PolicyFinding::HostsOn,
            PolicyFinding::BenefitRatio,
        ];
        assert_eq!(policy.findings(), found);
        assert!(found.iter().all(|finding| !finding.remedy().is_empty()));
    }

    #[test]
    fn a_band_ends_where_hosts_do() {
        let with = |target_percent, band_percent| {
            let power = PowerPolicy { target_percent, band_percent, ..PowerPolicy::default() };
            Policy { power, ..Policy::default() }.findings().len()
        };
        assert_eq!([with(80, 20), with(81, 20), with(20, 20), with(20, 21), with(0, 0)], [0, 1, 0, 1, 1]);
        assert_eq!(with(u32::MAX, u32::MAX), 1);
    }
}
