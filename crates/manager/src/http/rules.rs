//! `/v1/rules`.

use axum::extract::State;
use godwit_api::server::{Json, Path};
use godwit_scheduler::rules::Rule;
use godwit_types::api::Empty;
use godwit_types::{ApiError, Name};

use super::{Answer, Shared};
use crate::rulebook::rules;

/// All rules about where VMs may run, by name.
#[utoipa::path(get, path = "/v1/rules", operation_id = "list_rules", tag = "rulebook",
    responses((status = 200, body = Vec<Rule>), (status = "default", body = ApiError)))]
pub(super) async fn list(State(manager): Shared) -> Answer<Vec<Rule>> {
    Ok(Json(manager.store.read(|tx| Ok(tx.rules()?)).await?))
}

/// Adds a rule about VMs and hosts that exist.
#[utoipa::path(post, path = "/v1/rules", operation_id = "add_rule", tag = "rulebook", request_body = Rule,
    responses((status = 200, body = Rule), (status = "default", body = ApiError)))]
pub(super) async fn add(State(manager): Shared, Json(rule): Json<Rule>) -> Answer<Rule> {
    Ok(Json(manager.store.write(|tx| rules::add(tx, rule)).await?))
}

/// One rule.
#[utoipa::path(get, path = "/v1/rules/{name}", operation_id = "show_rule", tag = "rulebook", params(("name" = String, Path)),
    responses((status = 200, body = Rule), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(name): Path<Name>) -> Answer<Rule> {
    let rule = manager.store.read(move |tx| tx.rule(&name)?.ok_or_else(|| rules::unknown(&name)));
    Ok(Json(rule.await?))
}

/// Removes a rule.
#[utoipa::path(delete, path = "/v1/rules/{name}", operation_id = "remove_rule", tag = "rulebook", params(("name" = String, Path)),
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn remove(State(manager): Shared, Path(name): Path<Name>) -> Answer<Empty> {
    manager.store.write(move |tx| rules::remove(tx, &name)).await?;
    Ok(Json(Empty {}))
}
