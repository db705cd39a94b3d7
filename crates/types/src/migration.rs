//! What is asked of a migration, how it gets on, and what it reports.

use serde::{Deserialize, Serialize};

use crate::forecast::Predicted;
use crate::ids::{HostName, MigrationId, Name};
use crate::units::Bytes;

/// Default blackout budget, in milliseconds.
pub const BLACKOUT_MS_DEFAULT: u32 = 50;

/// A request to migrate: `POST /v1/vms/{vm}/migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrateVm {
    pub to: HostName,
    #[serde(default)]
    pub budget: Budget,
    /// Lets disks move along that the destination does not share with the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_disks: Option<MoveDisks>,
}

/// The largest disks that move with their VM, all together: the engine counts their pages, in memory that a VM's process has
/// beside its guest's.
pub const MOVED_DISKS_MAX: Bytes = Bytes::mib(512 << 10);

/// Where disks go that move with their VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveDisks {
    /// The destination's datastore, under the same path; without it the one of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<Name>,
}

/// What the user allows a migration to cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Budget {
    /// The engine switches over when it predicts a blackout of at most this many milliseconds.
    pub blackout_ms_max: u32,
    /// When the prediction does not come under the budget within this many milliseconds: see `on_deadline`.
    pub deadline_ms: u64,
    #[serde(default)]
    pub on_deadline: OnDeadline,
    /// Bytes per second on the wire; none is no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s_max: Option<u64>,
    /// Send memory and state in clear, for a network that nobody else can read or change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// If rounds do not bring the blackout under the budget, switch over all the same, with a short blackout: the rest of
    /// memory follows while the guest runs at the destination. If the source's host or VMM dies before it has, the VM
    /// is lost; a network that fails is waited for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub post_copy: bool,
    /// Once the guest has left, compare all of its memory at the source with what arrived, and report the outcome. It costs
    /// processor time on both sides, none of it while the guest stands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify: bool,
    /// If rounds do not bring the blackout under the budget, vCPUs that write may be slowed, each by at most so many percent of
    /// its speed, up to [`SLOWDOWN_PERCENT_MAX`]; 0: none ever is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slowdown_percent_max: u8,
}

/// The largest slow-down that can be allowed, in percent: a guest that loses all of its speed is stopped.
pub const SLOWDOWN_PERCENT_MAX: u8 = 99;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_zero(percent: &u8) -> bool {
    *percent == 0
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            blackout_ms_max: BLACKOUT_MS_DEFAULT,
            deadline_ms: 10 * 60 * 1000,
            on_deadline: OnDeadline::default(),
            bandwidth_bytes_per_s_max: None,
            plain: false,
            post_copy: false,
            verify: false,
            slowdown_percent_max: 0,
        }
    }
}

/// What happens when the memory never comes to rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnDeadline {
    /// The migration fails and the VM stays.
    #[default]
    Cancel,
    /// Switch over all the same, and report the longer blackout.
    Switch,
}

/// The phases of a migration, in order; the same names in the protocol, progress and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Handshake, compatibility, reservation.
    Preflight,
    /// Memory moves while the guest runs.
    PreCopy,
    /// The guest is stopped: last pages and device state move.
    Switchover,
    /// The destination holds everything; the arbiter is asked.
    Commit,
    /// The destination claims the VM and resumes it.
    Resume,
    /// The guest runs at the destination, and the rest of its memory follows.
    PostCopy,
    /// The guest runs at the destination, and the source reads its memory once more, to compare.
    Verify,
    Done,
}

/// How a migration gets on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationProgress {
    pub phase: Phase,
    /// Pre-copy rounds begun.
    pub round: u32,
    pub bytes_sent: u64,
    /// Bytes still to send as known now.
    pub remaining: Bytes,
    /// Measured over the last seconds, in guest-memory bytes settled per second.
    pub goodput_bytes_per_s: u64,
    /// How fast the guest dirties memory, in bytes per second.
    pub dirty_bytes_per_s: u64,
    /// Blackout if it switched over now.
    pub predicted_blackout_ms: Option<f64>,
    /// Milliseconds until the predicted finish.
    pub predicted_finish_ms: Option<u64>,
    /// What the most slowed vCPU loses of its speed now, in percent.
    #[serde(default)]
    pub slowdown_percent: f64,
    pub elapsed_ms: u64,
}

/// What a finished migration reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationReport {
    pub migration: MigrationId,
    pub from: HostName,
    pub to: HostName,
    /// From the request's arrival at the source VMM to the destination's resume.
    pub total_ms: f64,
    pub blackout: Blackout,
    /// What the engine predicted when it chose to stop the guest.
    pub predicted_blackout_ms: f64,
    pub rounds: u32,
    pub bytes: BytesByKind,
    /// Guest memory settled per second over the whole migration.
    pub goodput_bytes_per_s: u64,
    /// Time during which pages were on their way, in milliseconds.
    #[serde(default)]
    pub busy_ms: f64,
    /// Page contents per second in the rounds after the first, in bytes. They find the destination's memory in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub later_bytes_per_s: Option<f64>,
    /// Whether a cap has held it back at some time, be it because others were under way: its rates then say little of the link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub capped: bool,
    /// What was predicted before it began; added by the manager, if there was a forecast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    /// How the rest of memory followed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_copy: Option<Box<PostCopyReport>>,
    /// Whether memory arrived as it was, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Box<Verification>>,
    /// How wrong the guest's clock was when it ran at the destination, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_clock: Option<GuestClock>,
    /// The vCPUs that were slowed, so that rounds became smaller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slowed: Vec<SlowedVcpu>,
}

/// The error that the move has added to the guest's clock: by how much more than the time that has really passed it went on.
/// Its clock stands with the guest's state, and is advanced by the real time until it runs at the destination. What the two hosts'
/// clocks differ by is measured, and taken off as far as it is certain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestClock {
    /// In milliseconds; positive: the guest's clock is ahead.
    pub error_ms: f64,
    /// How far off `error_ms` may be, in milliseconds: half of the quickest round trip between the hosts.
    pub within_ms: f64,
    /// How far the destination's real-time clock is ahead of the source's, in milliseconds, within the same; 0 by releases that
    /// do not say.
    #[serde(default)]
    pub hosts_differ_ms: f64,
}

/// A comparison of the guest's memory: as it was at the source when the guest was stopped, read after it had left, and as it
/// was put in its place at the destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verification {
    pub memory: Comparison,
    /// How much memory was compared.
    pub size: Bytes,
    /// Its digest at the source and at the destination, in hexadecimal digits; equal only within one migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub there: Option<String>,
    /// How long reading it took at the source, in milliseconds, while the guest ran at the destination.
    pub took_ms: f64,
}

/// What a comparison has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    Same,
    Different,
    /// There was nothing to compare: the guest began anew before all of its memory had followed, or one side could not read it.
    Unknown,
}

/// What a vCPU lost of its speed while its memory moved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SlowedVcpu {
    /// Counted from 0.
    pub vcpu: u32,
    /// The part of that time for which it was held, as measured, in percent.
    pub mean_percent: f64,
    /// The largest part that it was to be held for, in percent.
    pub highest_percent: f64,
    /// How long it was slowed, in milliseconds.
    pub time_ms: f64,
}

/// What the guest went through while it ran at the destination and the rest of its memory followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PostCopyReport {
    /// Pages that were missing when it was stopped.
    pub pages: u64,
    /// Times that a vCPU or a device waited for a page.
    pub faults: u64,
    /// How long they waited: the sum over all faults, in milliseconds.
    pub waited_ms: f64,
    /// The longest of these waits, in milliseconds.
    pub longest_wait_ms: f64,
    /// From the resume to the last page, in milliseconds.
    pub rest_ms: f64,
    /// How often the connections broke and were made again.
    pub reconnects: u32,
}

/// The blackout and its parts, in milliseconds: from the last vCPU stopped on the source to the first running on
/// the destination. The parts add up to the total.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Blackout {
    pub total_ms: f64,
    /// Stopping the vCPUs.
    pub stop_ms: f64,
    /// Draining device I/O.
    #[serde(default)]
    pub drain_ms: f64,
    /// The last reading of the dirty log and the pages that it named.
    pub last_pages_ms: f64,
    /// Saving, sending, validating and loading device state, up to PREPARED.
    pub state_ms: f64,
    /// The arbiter's compare-and-set.
    pub commit_ms: f64,
    /// From the commit's grant to the destination's claim of the VM: the source's disk locks dropped, COMMITTED, the claim.
    #[serde(default)]
    pub claim_ms: f64,
    /// The destination's taking of the disk locks.
    #[serde(default)]
    pub locks_ms: f64,
    /// Resuming the devices, up to the first vCPU running.
    pub resume_ms: f64,
    /// After the blackout, and no part of its total: from the first vCPU running until the guest's first packet left; if one did
    /// within 100 ms, and its memory was not to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_packet_ms: Option<f64>,
}

/// Bytes on the wire by what they were, and pages by how they were sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BytesByKind {
    /// Everything on the wire, in bytes.
    pub sent: u64,
    /// Page contents sent as they are, in bytes.
    pub raw: u64,
    /// Page contents sent packed, in bytes as they were sent.
    #[serde(default)]
    pub packed: u64,
    /// Device state, in bytes.
    pub state: u64,
    /// Framing, handshake, acknowledgements, in bytes.
    pub overhead: u64,
    pub raw_pages: u64,
    /// Pages whose contents were packed (LZ4, zstd).
    #[serde(default)]
    pub packed_pages: u64,
    /// Pages of which only what had changed since they were last sent went, packed or not.
    #[serde(default)]
    pub delta_pages: u64,
    /// Pages named as zero, without contents.
    pub zero_pages: u64,
    /// Pages that the destination had kept from an earlier stay of the VM, and that were as they had been.
    #[serde(default)]
    pub reused_pages: u64,
}

/// How a migration ended, as the source VMM tells its agent and the agent tells the manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum MigrationOutcome {
    /// The VM runs at the destination.
    Completed { report: Box<MigrationReport> },
    /// The VM runs on at the source.
    Failed { phase: Phase, error: crate::ApiError },
    /// The VM's process at the source ended by itself, before a commit was granted as far as its host knows. The
    /// destination takes over if it has everything.
    Died { error: crate::ApiError },
    /// The commit was granted, and the destination's resume was never confirmed to the source. The VM belongs to
    /// the destination; the manager learns from it whether it runs.
    HandedOver { error: crate::ApiError },
}

impl MigrationOutcome {
    /// Whether the VM has left its source for good.
    pub const fn has_left(&self) -> bool {
        matches!(self, Self::Completed { .. } | Self::HandedOver { .. })
    }
}
