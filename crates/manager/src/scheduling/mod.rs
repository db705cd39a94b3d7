//! The scheduler at work: it is shown the cluster, and what it decides is recorded, recommended and carried out.
//!
//! ```text
//!   a minute passes, an event --> rounds: settle --> snapshot --> plan --> record --> execute
//!   people ask, apply, reject --'   |                  (scheduler crate)     |           |  ordinary migrations
//!                                   '-- what became of steps under way       |           v
//!                                                                 decisions in the store  their ends are events: next round
//! ```
//!
//! Nothing is remembered between two rounds but what the store has: a manager that was restarted goes on where the last one
//! stopped. Each round makes a new plan; what an earlier one has left undone is dropped, but for what people have applied.

mod ask;
mod execute;
mod place;
mod record;
mod rounds;
mod settle;
mod snapshot;

use godwit_scheduler::decision::Decision;
use godwit_scheduler::planner::Goal;
use godwit_scheduler::policy::Policy;
use godwit_scheduler::snapshot::Snapshot;
use godwit_types::{ApiError, ErrorCode};

use tokio::sync::watch;

use crate::manager::Limits;

pub(crate) use ask::{apply, emptying, explain, reject, replay, run, status, unknown_decision, what_if};
pub(crate) use place::place;
pub(crate) use rounds::follow;
pub(crate) use snapshot::contradictions;

use crate::store::{StoreError, Tx};

/// What of the scheduler is not in the store: who looks, and who places.
#[derive(Debug, Default)]
pub(crate) struct Scheduling {
    /// Held by who looks, so that never two do.
    alone: tokio::sync::Mutex<()>,
    last: watch::Sender<Option<Look>>,
    /// Held by who looks for a host on which a VM is to start: the next one must know of it.
    placing: tokio::sync::Mutex<()>,
}

/// A look at the cluster.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// When it was, in milliseconds since 1970.
    unix_ms: u64,
    /// When a VM that is left alone no longer is.
    again_unix_ms: Option<u64>,
}

/// What the scheduler goes by.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// What people want.
    pub policy: Policy,
    /// See [`Limits::retry`], in milliseconds.
    pub retry_ms: u64,
}

impl Terms {
    fn of(tx: &Tx<'_>, limits: &Limits) -> Result<Self, StoreError> {
        let retry_ms = u64::try_from(limits.retry.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { policy: tx.policy()?, retry_ms })
    }
}

/// Makes a plan, beside whatever else goes on: it may take a while. The seed follows from the time of the snapshot.
async fn decide(snapshot: Snapshot, policy: Policy, goal: Goal) -> Result<Decision, ApiError> {
    let made = tokio::task::spawn_blocking(move || {
        let seed = snapshot.at_unix_ms;
        Decision::make(snapshot, policy, goal, seed)
    });
    made.await.map_err(|error| ApiError::new(ErrorCode::Internal, format!("no plan was made: {error}")))
}
