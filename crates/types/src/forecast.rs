//! What a migration will probably cost, and what that is concluded from.

use serde::{Deserialize, Serialize};

use crate::ApiError;
use crate::check::{HostCheck, Verdict};
use crate::ids::{HostName, VmName};
use crate::migration::{Budget, MoveDisks};
use crate::units::Bytes;

/// How long a survey watches the guest that somebody waits for, in milliseconds.
pub const SAMPLE_MS_DEFAULT: u32 = 1_000;
/// The longest that one may watch, in milliseconds.
pub const SAMPLE_MS_MAX: u32 = 10_000;

/// Asks what a migration would cost: `POST /v1/vms/{vm}/plan-migration`. Moves and reserves nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlanMigration {
    pub to: HostName,
    #[serde(default)]
    pub budget: Budget,
    /// As in [`MigrateVm`](crate::migration::MigrateVm).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_disks: Option<MoveDisks>,
    /// How long to watch the guest, in milliseconds, up to [`SAMPLE_MS_MAX`].
    #[serde(default = "sample_ms_default")]
    pub sample_ms: u32,
}

fn sample_ms_default() -> u32 {
    SAMPLE_MS_DEFAULT
}

/// The answer: whether the VM can move there, and what it would cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationPlan {
    pub vm: VmName,
    /// The host that owns it.
    pub from: Option<HostName>,
    /// Everything that speaks against the move, as `GET /v1/vms/{vm}/migration-check` tells it.
    pub check: HostCheck,
    pub budget: Budget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Why there is no forecast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

impl MigrationPlan {
    /// Whether the VM can move, and is expected to keep to the budget.
    pub fn can_be_met(&self) -> bool {
        let expected = self.forecast.as_ref().is_some_and(|forecast| forecast.outlook.is_expected());
        expected && self.check.verdict < Verdict::Blocked
    }
}

/// What a running guest does to its memory, as seen by its VMM in a short time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Survey {
    /// All RAM.
    pub memory: Bytes,
    /// Pages that were looked at, spread evenly over RAM.
    pub sampled_pages: u64,
    /// Those of them that were all zeros.
    pub zero_pages: u64,
    /// In their order. Fewer than wanted if a migration began meanwhile.
    pub readings: Vec<Reading>,
    /// Pages that each vCPU has written; an even part each where the log does not tell them apart, empty where nothing is known.
    #[serde(default)]
    pub vcpu_pages: Vec<u64>,
}

/// One reading of the dirty log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reading {
    /// Since the log was started, in milliseconds.
    pub at_ms: f64,
    /// Pages written since the reading before.
    pub written_pages: u64,
    /// Pages written since the log was started, each counted once.
    pub distinct_pages: u64,
    /// How long the reading took, in milliseconds.
    pub took_ms: f64,
}

/// A number that is not known exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Estimate {
    pub low: f64,
    pub expected: f64,
    pub high: f64,
}

impl Estimate {
    /// The smallest range that holds three values, the second of which is expected.
    pub fn around([one, expected, other]: [f64; 3]) -> Self {
        Self { low: one.min(expected).min(other), expected, high: one.max(expected).max(other) }
    }
}

/// What is known of moving VMs from one host to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Link {
    /// Page contents per second over the whole of a migration, in bytes, without a cap.
    pub bytes_per_s: Estimate,
    /// The same in the rounds after the first: quicker, since the destination's memory is then in place.
    pub later_bytes_per_s: Estimate,
    /// The blackout without its last pages, in milliseconds.
    pub handoff_ms: Estimate,
    /// The part of a VM's contents that is not sent, since the destination has kept it from before; the rates count it all the same.
    #[serde(default)]
    pub kept_part: Estimate,
    pub known_from: KnownFrom,
}

/// What a link's numbers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum KnownFrom {
    /// Migrations between the two hosts, either way.
    Pair { migrations: u32 },
    /// Migrations from the source to other hosts.
    Source { migrations: u32 },
    /// The slower of the two hosts' interfaces.
    Interface { bits_per_s: u64 },
    /// Nothing: a common network is assumed.
    Assumption,
}

/// What a migration will probably cost.
///
/// The ranges come from imagining it three times: with a quick link and a guest as calm as the survey allows, as
/// expected, and with a slow link and a guest as busy as it allows. Where the budget is not met in one of them, its
/// numbers tell of a switchover at the deadline, whatever the budget says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Forecast {
    pub outlook: Outlook,
    /// In milliseconds, as [`MigrationReport::total_ms`](crate::migration::MigrationReport::total_ms).
    pub total_ms: Estimate,
    /// In milliseconds.
    pub blackout_ms: Estimate,
    pub rounds: Estimate,
    /// Everything on the wire, in bytes.
    pub sent_bytes: Estimate,
    /// The brownout: vCPU time that the guest loses while it runs on, in milliseconds.
    pub lost_ms: Estimate,
    /// What the most slowed vCPU loses of its speed at the worst moment, in percent; 0 if none has to be slowed.
    #[serde(default)]
    pub slowdown_percent: Estimate,
    /// Why the budget is not met for sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Budgets that are expected to be met instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
    pub basis: Basis,
}

/// Whether the budget will be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outlook {
    /// Even at the bad end of all ranges.
    Met,
    /// As the engine is expected to see it when it stops the guest, but not at the bad end.
    Likely,
    /// Only at the good end.
    Unlikely,
    /// Not even there.
    Missed,
}

impl Outlook {
    /// Whether it is expected to be met.
    pub const fn is_expected(self) -> bool {
        matches!(self, Self::Met | Self::Likely)
    }
}

/// What a forecast is concluded from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Basis {
    pub memory: Bytes,
    /// Memory that is all zeros, and goes by name alone.
    pub zero: Bytes,
    /// How long the guest was watched, in milliseconds.
    pub sample_ms: f64,
    /// What it wrote in that time, each page counted once: the beginning of its working set.
    pub written: Bytes,
    /// What it wrote for the first time towards the end of it, in bytes per second.
    pub fresh_bytes_per_s: f64,
    pub link: Link,
}

/// What was predicted of a migration before it began, in milliseconds; to be held against what it then reports.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Predicted {
    pub total_ms: Estimate,
    pub blackout_ms: Estimate,
}

impl From<&Forecast> for Predicted {
    fn from(forecast: &Forecast) -> Self {
        Self { total_ms: forecast.total_ms, blackout_ms: forecast.blackout_ms }
    }
}
