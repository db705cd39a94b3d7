//! What is simulated: the protocol, or one that is broken on purpose to show that the checks see it.

use serde::Serialize;

/// Which protocol both sides follow. The broken ones are wrappers around the real machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
pub enum Protocol {
    #[default]
    Real,
    /// The source drops its locks and says COMMITTED before it asks the arbiter, and the destination believes it.
    CommitSwapped,
    /// A destination that is in doubt after PREPARED resumes without asking.
    ResumeOnTimeout,
    /// The disk lock's record is not compared.
    LockWithoutEpoch,
    /// A source whose destination may have everything runs on without saying so in the disk lock's record.
    RunOnUnrecorded,
    /// A source takes what it has sent for arrived, whatever happened to the connections since.
    TrustSent,
    /// A source decides what it need not send, because the destination has kept it, before its dirty log has begun.
    LookBeforeLog,
    /// A source whose vCPUs were slowed goes on slowing them, whatever it is told.
    NeverLift,
}

/// How the manager writes a commit down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
pub enum Commit {
    /// On the disk before it is told, as the manager does it.
    #[default]
    Durable,
    /// A power cut may undo it, and nothing else changes.
    Forgetful,
    /// A power cut may undo it; the intent is durable, the grant travels through the source, and a manager that was
    /// restarted learns the outcome from the hosts before it decides anything.
    Intent,
}

/// The rules of a world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    pub protocol: Protocol,
    pub commit: Commit,
    /// The datastore carries locks from host to host; otherwise the lock file's record alone orders the owners.
    pub shared_locks: bool,
    /// Messages reach an engine while its machine still carries out what it was told, as behind a slow call.
    pub slow_calls: bool,
    /// Whether a VM must survive its source's death as soon as its commit was granted, whatever else fails.
    pub grants_outlive_sources: bool,
    /// Part of memory follows the guest, and connections that break meanwhile are made again.
    pub post_copy: bool,
    /// By how much of its speed a vCPU may be slowed, in percent.
    pub slowdown_percent_max: u8,
    /// What the guest writes by itself while it is being migrated, if it does: more than the link carries, or about as much.
    pub writes_pages_per_ms: u16,
}
