//! A plan with all that it followed from.

mod difference;
mod explain;

pub use difference::{Difference, Replay};
pub use explain::{Explanation, Offer};

use godwit_types::VmName;
use serde::{Deserialize, Serialize};

use crate::planner::{Goal, Plan, plan};
use crate::policy::Policy;
use crate::snapshot::Snapshot;

/// The version of what computes plans: raised with each change after which the same input may give another plan.
pub const ENGINE_VERSION: u32 = 3;

/// Recorded so that the plan can be computed again, to the bit by the same engine, or under another policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Decision {
    pub engine: u32,
    pub seed: u64,
    pub goal: Goal,
    pub policy: Policy,
    pub snapshot: Snapshot,
    pub plan: Plan,
}

impl Decision {
    /// Plans, and keeps all that the plan follows from.
    pub fn make(snapshot: Snapshot, policy: Policy, goal: Goal, seed: u64) -> Self {
        let plan = plan(&snapshot, &policy, &goal, seed);
        Self { engine: ENGINE_VERSION, seed, goal, policy, snapshot, plan }
    }

    /// Plans again: as it was decided, or under another policy.
    pub fn replay(&self, policy: Option<&Policy>) -> Replay {
        self.replay_on(&self.snapshot, policy)
    }

    /// Plans again for another snapshot, under the recorded policy or another.
    pub fn replay_on(&self, snapshot: &Snapshot, policy: Option<&Policy>) -> Replay {
        let now = plan(snapshot, policy.unwrap_or(&self.policy), &self.goal, self.seed);
        Replay {
            engine_then: self.engine,
            engine_now: ENGINE_VERSION,
            difference: Difference::between(&self.plan, &now),
            plan: now,
        }
    }

    /// All there is to say about one VM; none if the snapshot does not know it.
    pub fn explain(&self, vm: &VmName) -> Option<Explanation> {
        Explanation::new(self, vm)
    }
}
