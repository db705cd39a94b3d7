//! What is kept of a decision, and what became of its steps: the documents that the manager and its users exchange.

use godwit_types::{HostName, TaskId, VmName};
use serde::{Deserialize, Serialize};

use crate::decision::Decision;
use crate::planner::{Goal, KeptOn, Plan, Standing, Step, WhyNot};
use crate::policy::{Automation, Policy};
use crate::what_if::Change;

/// Where a step is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It waits for people to apply or to reject it.
    Recommended,
    /// It is to be done as soon as what it waits for is, and its hosts take it.
    Approved,
    Running,
    Done,
    Failed,
    /// People do not want it.
    Rejected,
    /// A later decision has taken its place, or what it waited for was not done.
    Dropped,
}

impl StepState {
    /// Whether something may still become of it.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Recommended | Self::Approved | Self::Running)
    }
}

/// A step, and how far it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StepRecord {
    #[serde(flatten)]
    pub step: Step,
    pub state: StepState,
    /// Whether people have applied it, and not the scheduler itself.
    #[serde(default)]
    pub applied: bool,
    /// When it came to this state, in milliseconds since 1970.
    pub changed_unix_ms: u64,
    /// What carries it out, or has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Why it failed or was dropped, in plain words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a plan says beside its steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outline {
    pub before: Standing,
    pub after: Standing,
    pub unmoved: Vec<WhyNot>,
    pub findings: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_on: Vec<KeptOn>,
}

impl From<&Plan> for Outline {
    fn from(plan: &Plan) -> Self {
        let Plan { before, after, unmoved, findings, kept_on, .. } = plan.clone();
        Self { before, after, unmoved, findings, kept_on }
    }
}

/// A decision without what it was concluded from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DecisionRecord {
    /// Grows with each decision.
    pub id: u64,
    /// When it was made, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What it was made for, in plain words.
    pub cause: String,
    #[serde(flatten)]
    pub goal: Goal,
    pub outline: Outline,
    pub steps: Vec<StepRecord>,
}

/// A decision with all that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WholeDecision {
    pub record: DecisionRecord,
    pub decision: Decision,
}

/// How the scheduler is: `GET /v1/scheduler`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SchedulerStatus {
    pub automation: Automation,
    pub threshold: u8,
    pub engine: u32,
    /// When it last looked at the cluster; never since the manager started if none.
    pub looked_unix_ms: Option<u64>,
    /// The last time that it looked at the whole cluster and had something to say.
    pub decision: Option<DecisionRecord>,
    /// Steps that wait for people.
    pub recommended: u32,
    /// Steps that are to be done, and that are being done.
    pub approved: u32,
    pub running: u32,
    /// VMs that it does not move now, for what they have been through.
    pub left_alone: Vec<LeftAlone>,
}

/// A VM that the scheduler does not move for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeftAlone {
    pub vm: VmName,
    pub reason: String,
    pub until_unix_ms: u64,
}

/// Asks for a decision now: `POST /v1/scheduler/run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunScheduler {
    #[serde(flatten)]
    pub goal: Goal,
    /// Only to be told: nothing is recorded, recommended or done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ran {
    /// None if nothing was recorded, since it was not wanted or nothing has changed.
    pub decision: Option<u64>,
    pub plan: Plan,
}

/// Names steps of a decision by their places, from 0; all of them if none is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NameSteps {
    #[serde(default)]
    pub steps: Vec<usize>,
}

/// Asks for a decision to be made again: `POST /v1/scheduler/decisions/{id}/replay`. Under its own policy if nothing is named.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AskReplay {
    /// Under this policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Under the policy of the last decision before this time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of_unix_ms: Option<u64>,
}

/// Asks what would be if something were otherwise: `POST /v1/scheduler/what-if`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AskWhatIf {
    /// One after the other.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// The policy that would be; the one in force if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// What would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Imagined {
    /// How the cluster is.
    pub now: Standing,
    /// What would be done, from how it would be to how it would then be. VMs that would have no host are placed.
    pub plan: Plan,
}

/// Which host a plan empties, as an answer to a question about it: `GET /v1/hosts/{host}/maintenance`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Emptying {
    pub host: HostName,
    /// The VMs that run on it now.
    pub vms: Vec<VmName>,
    pub plan: Plan,
}
