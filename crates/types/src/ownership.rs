//! The ownership record and the questions that hosts ask the arbiter about it.
//!
//! ```text
//!            commit(source@n -> destination@n+1)           claim(n+1)
//!  owned by source@n ----------------------> owned by destination@n+1 ----> claimed: it runs there
//!         '----------- claim(n+1), the disks' locks witness that the source is dead ------^
//! ```

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, HostName, MigrationId, VmId};

/// Which host may run a VM. Only the manager's arbiter changes it, by compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ownership {
    pub vm: VmId,
    pub owner: HostName,
    pub epoch: Epoch,
    /// Whether the owner has confirmed that it runs the VM at this epoch.
    pub claimed: bool,
}

/// Step 7: the source hands the VM over. `POST /v1/arbiter/commit`, sent by the source's agent.
///
/// Safe to repeat: a commit that has already happened is granted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommitRequest {
    pub vm: VmId,
    pub migration: MigrationId,
    pub source: HostName,
    /// The epoch at which the source runs the VM.
    pub epoch: Epoch,
    pub destination: HostName,
}

/// Step 9: the destination asks whether it may run the VM. `POST /v1/arbiter/claim`, sent by the destination's agent.
///
/// Safe to repeat: a claim that has already happened is granted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClaimRequest {
    pub vm: VmId,
    pub migration: MigrationId,
    pub host: HostName,
    pub epoch: Epoch,
    /// What the disks' locks say about the source.
    #[serde(default)]
    pub witness: Witness,
}

/// What the disks' locks say about the source to a destination that has everything and is in doubt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "witness", rename_all = "snake_case")]
pub enum Witness {
    /// Nothing, yet: a lock is held, so the source lives.
    #[default]
    None,
    /// It is dead, or has let go for good unless the arbiter gives the VM back to it: the destination holds all locks,
    /// and the guest has not run on there since it was stopped.
    SourceDead,
    /// Nothing, ever.
    Blind { reason: String },
}

/// The arbiter's word on a commit or a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Yes. After a granted commit the source never runs the VM again; after a granted claim the destination runs it.
    Granted { epoch: Epoch },
    /// Only for a claim: the migration is still under way and not committed. Ask again.
    Undecided,
    /// No, and it will not become yes. A refused source runs on; a refused destination discards its copy.
    Refused { reason: String },
}
