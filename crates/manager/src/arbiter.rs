//! Who may run a VM: the decision behind every commit, claim and abort, as a pure function.
//!
//! A migration's own state, of which the ownership record's change is a part:
//!
//! ```text
//!                      abort                    (no way from here to there)
//!  preparing ---------------------> aborted                ^
//!      |        .-----------------^    |                   |
//!      v       / abort                 '-- commit, claim: refused
//!   running --'------------------------------------------------.
//!      |  commit: owner source@n -> destination@n+1            | claim(n+1) by a destination that holds the locks
//!      v                                                       | of a dead source: taken over, as commit and claim
//!  committed -- commit: granted again; abort: too late         | at once
//!      |  claim(n+1)                                           |
//!      v                                                       |
//!   claimed --- claim: granted again, for as long as           |
//!      ^        the destination owns the VM at n+1             |
//!      '-------------------------------------------------------'
//! ```
//!
//! The caller reads the records, asks here, and writes the change, all in one transaction.

use godwit_types::ownership::{ClaimRequest, CommitRequest, Ownership, Verdict, Witness};
use godwit_types::{Epoch, HostName, MigrationId, TaskId, VmId};
use serde::{Deserialize, Serialize};

/// Where a migration is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// The destination builds its machine; the source knows nothing yet.
    Preparing,
    /// The source may have been told.
    Running,
    Committed,
    Claimed,
    Aborted,
}

/// One attempt to move one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    pub id: MigrationId,
    pub task: TaskId,
    pub vm: VmId,
    pub source: HostName,
    pub destination: HostName,
    /// The epoch at which the source runs the VM.
    pub epoch: Epoch,
    pub state: MigrationState,
    /// The destination took over from a source that died in the switchover, without its commit.
    pub taken_over: bool,
}

/// A verdict, and what must be written before it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    pub change: Option<Change>,
}

/// What a decision changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub ownership: Ownership,
    pub state: MigrationState,
    pub taken_over: bool,
}

/// Whether the source may hand the VM over.
pub fn commit(owned: Option<&Ownership>, migration: Option<&Migration>, asked: &CommitRequest) -> Decision {
    let Some(owned) = owned else {
        return refused(format!("the manager knows no owner of VM {}", asked.vm));
    };
    if let Some(m) = migration.filter(|m| m.matches_commit(asked))
        && matches!(m.state, MigrationState::Committed | MigrationState::Claimed)
    {
        return granted(m.epoch.next());
    }
    // A refused source runs on, which only an owner may. One that has lost the VM must never run it again, and
    // that is what `granted` tells it; its destination is judged on its own claim.
    if owned.owner != asked.source || owned.epoch > asked.epoch {
        return granted(owned.epoch);
    }
    let Some(m) = migration else {
        return refused(format!("the manager knows no migration {}", asked.migration));
    };
    if !m.matches_commit(asked) || owned.epoch != asked.epoch {
        return refused(format!("migration {} was planned otherwise: {m}", m.id));
    }
    if m.state == MigrationState::Aborted {
        return refused(format!("migration {} was aborted", m.id));
    }
    let epoch = asked.epoch.next();
    let ownership = Ownership { vm: asked.vm, owner: m.destination.clone(), epoch, claimed: false };
    let change = Change { ownership, state: MigrationState::Committed, taken_over: false };
    Decision { verdict: Verdict::Granted { epoch }, change: Some(change) }
}

/// Whether the destination may run the VM.
pub fn claim(owned: Option<&Ownership>, migration: Option<&Migration>, asked: &ClaimRequest) -> Decision {
    let Some(m) = migration.filter(|m| m.matches_claim(asked)) else {
        return refused(format!(
            "the manager knows no migration {} to {} at {}",
            asked.migration, asked.host, asked.epoch
        ));
    };
    match m.state {
        MigrationState::Running if asked.witness == Witness::SourceDead => return take_over(owned, m),
        MigrationState::Preparing | MigrationState::Running => {
            return Decision { verdict: Verdict::Undecided, change: None };
        }
        MigrationState::Aborted => return refused(format!("migration {} was aborted", m.id)),
        MigrationState::Committed | MigrationState::Claimed => {}
    }
    match owned {
        Some(owned) if owned.owner == asked.host && owned.epoch == asked.epoch => {
            let ownership = Ownership { claimed: true, ..owned.clone() };
            let change = Change { ownership, state: MigrationState::Claimed, taken_over: m.taken_over };
            let news = m.state == MigrationState::Committed || !owned.claimed;
            Decision { verdict: Verdict::Granted { epoch: asked.epoch }, change: news.then_some(change) }
        }
        Some(owned) => moved_on(owned),
        None => refused(format!("the manager knows no owner of VM {}", asked.vm)),
    }
}

/// The source can neither run the VM any more nor commit: the destination holds the locks that it would need.
fn take_over(owned: Option<&Ownership>, m: &Migration) -> Decision {
    match owned {
        Some(owned) if owned.owner == m.source && owned.epoch == m.epoch => {
            let epoch = m.epoch.next();
            let ownership = Ownership { vm: m.vm, owner: m.destination.clone(), epoch, claimed: true };
            let change = Change { ownership, state: MigrationState::Claimed, taken_over: true };
            Decision { verdict: Verdict::Granted { epoch }, change: Some(change) }
        }
        Some(owned) => moved_on(owned),
        None => refused(format!("the manager knows no owner of VM {}", m.vm)),
    }
}

/// Whether the migration is aborted now: `false` when it was committed first.
pub const fn abort(state: MigrationState) -> bool {
    !matches!(state, MigrationState::Committed | MigrationState::Claimed)
}

fn granted(epoch: Epoch) -> Decision {
    Decision { verdict: Verdict::Granted { epoch }, change: None }
}

fn moved_on(owned: &Ownership) -> Decision {
    refused(format!("the VM has moved on: {} owns it at epoch {}", owned.owner, owned.epoch))
}

fn refused(reason: String) -> Decision {
    Decision { verdict: Verdict::Refused { reason }, change: None }
}

impl Migration {
    fn matches_commit(&self, asked: &CommitRequest) -> bool {
        self.vm == asked.vm
            && self.source == asked.source
            && self.destination == asked.destination
            && self.epoch == asked.epoch
    }

    fn matches_claim(&self, asked: &ClaimRequest) -> bool {
        self.vm == asked.vm && self.destination == asked.host && self.epoch.next() == asked.epoch
    }
}

impl std::fmt::Display for Migration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VM {} from {} at epoch {} to {}", self.vm, self.source, self.epoch, self.destination)
    }
}

#[cfg(test)]
#[path = "arbiter_tests.rs"]
mod tests;
