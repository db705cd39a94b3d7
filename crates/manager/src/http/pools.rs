//! `/v1/pools`.

use axum::extract::State;
use godwit_api::server::{Json, Path};
use godwit_scheduler::entitlement::Pool;
use godwit_types::api::Empty;
use godwit_types::{ApiError, Name};
use serde_json::Value;

use super::{Answer, Shared};
use crate::rulebook::pools;

/// All resource pools, by name.
#[utoipa::path(get, path = "/v1/pools", operation_id = "list_pools", tag = "rulebook",
    responses((status = 200, body = Vec<Pool>), (status = "default", body = ApiError)))]
pub(super) async fn list(State(manager): Shared) -> Answer<Vec<Pool>> {
    Ok(Json(manager.store.read(|tx| Ok(tx.pools()?)).await?))
}

/// One resource pool.
#[utoipa::path(get, path = "/v1/pools/{name}", operation_id = "show_pool", tag = "rulebook", params(("name" = String, Path)),
    responses((status = 200, body = Pool), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(name): Path<Name>) -> Answer<Pool> {
    let pool = manager.store.read(move |tx| tx.pool(&name)?.ok_or_else(|| pools::unknown(&name)));
    Ok(Json(pool.await?))
}

/// Makes a resource pool, or changes one. Refused if reservations could not be honoured any more.
#[utoipa::path(post, path = "/v1/pools/{name}", operation_id = "set_pool", tag = "rulebook", params(("name" = String, Path)),
    request_body(content = Pool, description = "what changes, as a JSON merge patch; a new pool is expandable and reserves nothing"),
    responses((status = 200, body = Pool), (status = "default", body = ApiError)))]
pub(super) async fn set(
    State(manager): Shared,
    Path(name): Path<Name>,
    Json(changes): Json<Value>,
) -> Answer<Pool> {
    Ok(Json(manager.store.write(|tx| pools::set(tx, name, changes)).await?))
}

/// Removes a resource pool that nothing is in.
#[utoipa::path(delete, path = "/v1/pools/{name}", operation_id = "remove_pool", tag = "rulebook", params(("name" = String, Path)),
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn remove(State(manager): Shared, Path(name): Path<Name>) -> Answer<Empty> {
    manager.store.write(move |tx| pools::remove(tx, &name)).await?;
    Ok(Json(Empty {}))
}
