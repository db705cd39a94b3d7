//! A plan with all that it followed from.

use serde::{Deserialize, Serialize};

use crate::planner::{Goal, Plan};
use crate::policy::Policy;
use crate::snapshot::Snapshot;

/// The version of what computes plans: raised with each change after which the same input may give another plan.
pub const ENGINE_VERSION: u32 = 1;

/// Recorded so that the plan can be computed again, to the bit by the same engine, or under another policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub engine: u32,
    pub seed: u64,
    pub goal: Goal,
    pub policy: Policy,
    pub snapshot: Snapshot,
    pub plan: Plan,
}
