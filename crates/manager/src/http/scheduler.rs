//! `/v1/scheduler`. Its documents are those of the crate `godwit-scheduler`.

use axum::extract::State;
use godwit_api::server::{Json, Path, Query};
use godwit_scheduler::decision::{Explanation, Replay};
use godwit_scheduler::record::{
    AskReplay, AskWhatIf, DecisionRecord, Imagined, NameSteps, Ran, RunScheduler, SchedulerStatus,
    WholeDecision,
};
use godwit_types::{ApiError, VmName};
use serde::Deserialize;

use super::{Answer, Shared};
use crate::scheduling;

/// Decisions that are listed if nothing is said.
const LIMIT_DEFAULT: u32 = 20;
/// Most that are listed at once.
const LIMIT_MAX: u32 = 200;

/// How the scheduler is: what it may do by itself, its last decision, and what it leaves alone.
#[utoipa::path(get, path = "/v1/scheduler", operation_id = "show_scheduler", tag = "scheduler",
    responses((status = 200, body = SchedulerStatus), (status = "default", body = ApiError)))]
pub(super) async fn status(State(manager): Shared) -> Answer<SchedulerStatus> {
    Ok(Json(scheduling::status(&manager).await?))
}

/// Has the scheduler look at the cluster now. With `dry_run`, it only tells what it would do.
#[utoipa::path(post, path = "/v1/scheduler/run", operation_id = "run_scheduler", tag = "scheduler", request_body = RunScheduler,
    responses((status = 200, body = Ran), (status = "default", body = ApiError)))]
pub(super) async fn run(State(manager): Shared, Json(asked): Json<RunScheduler>) -> Answer<Ran> {
    Ok(Json(scheduling::run(&manager, asked).await?))
}

#[derive(Debug, Deserialize)]
pub(super) struct Page {
    limit: Option<u32>,
    before: Option<u64>,
}

/// The last decisions, newest first, each with its steps and what became of them.
#[utoipa::path(get, path = "/v1/scheduler/decisions", operation_id = "list_decisions", tag = "scheduler",
    params(("limit" = Option<u32>, Query, description = "how many, up to 200"),
        ("before" = Option<u64>, Query, description = "only those before this one")),
    responses((status = 200, body = Vec<DecisionRecord>), (status = "default", body = ApiError)))]
pub(super) async fn list(
    State(manager): Shared,
    Query(Page { limit, before }): Query<Page>,
) -> Answer<Vec<DecisionRecord>> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    Ok(Json(manager.store.read(move |tx| Ok(tx.decisions(before, limit)?)).await?))
}

/// A decision with all that it was concluded from: the cluster as it was, the policy, the seed.
#[utoipa::path(get, path = "/v1/scheduler/decisions/{id}", operation_id = "show_decision", tag = "scheduler", params(("id" = u64, Path)),
    responses((status = 200, body = WholeDecision), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(id): Path<u64>) -> Answer<WholeDecision> {
    let found = manager.store.read(move |tx| Ok(tx.decision_record(id)?.zip(tx.decision(id)?)));
    let (record, decision) = found.await?.ok_or_else(|| scheduling::unknown_decision(id))?;
    Ok(Json(WholeDecision { record, decision }))
}

/// Does what a decision recommends: the steps named and those that they wait for, or all.
#[utoipa::path(post, path = "/v1/scheduler/decisions/{id}/apply", operation_id = "apply_decision", tag = "scheduler", params(("id" = u64, Path)),
    request_body = NameSteps, responses((status = 200, body = DecisionRecord), (status = "default", body = ApiError)))]
pub(super) async fn apply(
    State(manager): Shared,
    Path(id): Path<u64>,
    Json(named): Json<NameSteps>,
) -> Answer<DecisionRecord> {
    Ok(Json(scheduling::apply(&manager, id, named).await?))
}

/// Does not do what a decision recommends: the VMs are left alone for their cool-down.
#[utoipa::path(post, path = "/v1/scheduler/decisions/{id}/reject", operation_id = "reject_decision", tag = "scheduler", params(("id" = u64, Path)),
    request_body = NameSteps, responses((status = 200, body = DecisionRecord), (status = "default", body = ApiError)))]
pub(super) async fn reject(
    State(manager): Shared,
    Path(id): Path<u64>,
    Json(named): Json<NameSteps>,
) -> Answer<DecisionRecord> {
    Ok(Json(scheduling::reject(&manager, id, named).await?))
}

/// Makes a decision again from what was known then: as it was decided, or under another policy.
#[utoipa::path(post, path = "/v1/scheduler/decisions/{id}/replay", operation_id = "replay_decision", tag = "scheduler", params(("id" = u64, Path)),
    request_body = AskReplay, responses((status = 200, body = Replay), (status = "default", body = ApiError)))]
pub(super) async fn replay(
    State(manager): Shared,
    Path(id): Path<u64>,
    Json(asked): Json<AskReplay>,
) -> Answer<Replay> {
    Ok(Json(scheduling::replay(&manager, id, asked).await?))
}

/// Why a VM is where it is: what it wants, is entitled to and receives, and what every host would give it.
#[utoipa::path(get, path = "/v1/scheduler/explain/{vm}", operation_id = "explain_vm", tag = "scheduler", params(("vm" = String, Path)),
    responses((status = 200, body = Explanation), (status = "default", body = ApiError)))]
pub(super) async fn explain(State(manager): Shared, Path(vm): Path<VmName>) -> Answer<Explanation> {
    Ok(Json(scheduling::explain(&manager, vm).await?))
}

/// What would be if something were otherwise: hosts or VMs more or less, another demand, another policy. Nothing is done.
#[utoipa::path(post, path = "/v1/scheduler/what-if", operation_id = "what_if", tag = "scheduler",
    request_body = AskWhatIf, responses((status = 200, body = Imagined), (status = "default", body = ApiError)))]
pub(super) async fn what_if(State(manager): Shared, Json(asked): Json<AskWhatIf>) -> Answer<Imagined> {
    Ok(Json(scheduling::what_if(&manager, asked).await?))
}
