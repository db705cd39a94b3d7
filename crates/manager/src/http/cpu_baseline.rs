//! `/v1/cpu-baseline`.

use axum::extract::State;
use godwit_api::server::Json;
use godwit_types::ApiError;
use godwit_types::api::Empty;
use godwit_types::baseline::{CpuBaselineReport, SetCpuBaseline};

use super::{Answer, Shared};
use crate::rulebook::cpu_baseline;

/// The CPU that VMs see which are defined without a profile, and what hosts lack of it.
#[utoipa::path(get, path = "/v1/cpu-baseline", operation_id = "show_cpu_baseline", tag = "rulebook",
    responses((status = 200, body = CpuBaselineReport), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared) -> Answer<CpuBaselineReport> {
    Ok(Json(manager.store.read(cpu_baseline::report).await?))
}

/// Chooses it: a named one, or what hosts have in common now. Of hosts that do not offer it, the answer names what they lack. VMs that
/// are there keep their CPU.
#[utoipa::path(post, path = "/v1/cpu-baseline", operation_id = "set_cpu_baseline", tag = "rulebook", request_body = SetCpuBaseline,
    responses((status = 200, body = CpuBaselineReport), (status = "default", body = ApiError)))]
pub(super) async fn set(
    State(manager): Shared,
    Json(asked): Json<SetCpuBaseline>,
) -> Answer<CpuBaselineReport> {
    Ok(Json(manager.store.write(move |tx| cpu_baseline::set(tx, asked)).await?))
}

/// From now on new VMs see all that the host offers on which they start.
#[utoipa::path(delete, path = "/v1/cpu-baseline", operation_id = "clear_cpu_baseline", tag = "rulebook",
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn clear(State(manager): Shared) -> Answer<Empty> {
    manager.store.write(cpu_baseline::clear).await?;
    Ok(Json(Empty {}))
}
