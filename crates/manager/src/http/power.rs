//! `/v1/hosts/{name}/power`, `wake` and `standby`.

use axum::extract::State;
use godwit_api::server::{Json, Path};
use godwit_types::api::Empty;
use godwit_types::power::PowerReport;
use godwit_types::{ApiError, HostName};

use super::{Answer, Shared};
use crate::power;

/// Whether a host is on, by its power driver, and what it was told last.
#[utoipa::path(get, path = "/v1/hosts/{name}/power", operation_id = "show_power", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = PowerReport), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(host): Path<HostName>) -> Answer<PowerReport> {
    Ok(Json(power::report(&manager, &host).await?))
}

/// Wakes a host by its power driver. It is there once its agent reports.
#[utoipa::path(post, path = "/v1/hosts/{name}/wake", operation_id = "wake_host", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn wake(State(manager): Shared, Path(host): Path<HostName>) -> Answer<Empty> {
    power::wake(&manager, &host).await?;
    Ok(Json(Empty {}))
}

/// Sends a host that is empty to standby by its power driver. From then on it is down.
#[utoipa::path(post, path = "/v1/hosts/{name}/standby", operation_id = "standby_host", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn standby(State(manager): Shared, Path(host): Path<HostName>) -> Answer<Empty> {
    power::standby(&manager, &host).await?;
    Ok(Json(Empty {}))
}
