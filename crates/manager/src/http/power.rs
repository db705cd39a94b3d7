//! `/v1/hosts/{name}/power`, `wake` and `standby`.

use axum::extract::State;
use godwit_api::server::{Json, Path};
use godwit_types::power::PowerReport;
use godwit_types::task::Task;
use godwit_types::{ApiError, HostName};

use super::{Answer, Shared};
use crate::{power, tasks};

/// Whether a host is on, by its power driver.
#[utoipa::path(get, path = "/v1/hosts/{name}/power", operation_id = "show_power", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = PowerReport), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(host): Path<HostName>) -> Answer<PowerReport> {
    Ok(Json(PowerReport { state: power::state(&manager, &host).await? }))
}

/// Wakes a host by its power driver. The task ends when its agent reports.
#[utoipa::path(post, path = "/v1/hosts/{name}/wake", operation_id = "wake_host", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn wake(State(manager): Shared, Path(host): Path<HostName>) -> Answer<Task> {
    Ok(Json(tasks::request_wake(&manager, host).await?))
}

/// Sends a host that is empty to standby by its power driver. It gets no VM until it is woken.
#[utoipa::path(post, path = "/v1/hosts/{name}/standby", operation_id = "standby_host", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn standby(State(manager): Shared, Path(host): Path<HostName>) -> Answer<Task> {
    Ok(Json(tasks::request_standby(&manager, host).await?))
}
