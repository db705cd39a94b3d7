//! `/v1/policy`, and the settings of VMs and hosts.

use axum::extract::State;
use godwit_api::server::{Json, Path};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::settings::{HostSettings, VmSettings};
use godwit_types::{ApiError, HostName};
use serde_json::Value;

use super::{Answer, Shared};
use crate::rulebook::{policy, settings};

/// What the scheduler is to do by itself, and within which bounds.
#[utoipa::path(get, path = "/v1/policy", operation_id = "show_policy", tag = "rulebook",
    responses((status = 200, body = Policy), (status = "default", body = ApiError)))]
pub(super) async fn show_policy(State(manager): Shared) -> Answer<Policy> {
    Ok(Json(manager.store.read(|tx| Ok(tx.policy()?)).await?))
}

/// Changes the policy.
#[utoipa::path(post, path = "/v1/policy", operation_id = "set_policy", tag = "rulebook",
    request_body(content = Policy, description = "what changes, as a JSON merge patch"),
    responses((status = 200, body = Policy), (status = "default", body = ApiError)))]
pub(super) async fn set_policy(State(manager): Shared, Json(changes): Json<Value>) -> Answer<Policy> {
    Ok(Json(manager.store.write(|tx| policy::set(tx, changes)).await?))
}

/// A VM's pool, its reservations, limits and shares, and what the scheduler may do with it.
#[utoipa::path(get, path = "/v1/vms/{vm}/settings", operation_id = "show_vm_settings", tag = "rulebook",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = VmSettings), (status = "default", body = ApiError)))]
pub(super) async fn show_vm(State(manager): Shared, Path(vm): Path<String>) -> Answer<VmSettings> {
    Ok(Json(manager.store.read(move |tx| settings::of_vm(tx, &vm)).await?))
}

/// Changes a VM's settings. Refused if reservations could not be honoured any more.
#[utoipa::path(post, path = "/v1/vms/{vm}/settings", operation_id = "set_vm_settings", tag = "rulebook",
    params(("vm" = String, Path, description = "name or id")),
    request_body(content = VmSettings, description = "what changes, as a JSON merge patch"),
    responses((status = 200, body = VmSettings), (status = "default", body = ApiError)))]
pub(super) async fn set_vm(
    State(manager): Shared,
    Path(vm): Path<String>,
    Json(changes): Json<Value>,
) -> Answer<VmSettings> {
    Ok(Json(manager.store.write(move |tx| settings::set_vm(tx, &vm, changes)).await?))
}

/// A host's labels and failure domain, and how it is switched off and on.
#[utoipa::path(get, path = "/v1/hosts/{name}/settings", operation_id = "show_host_settings", tag = "rulebook",
    params(("name" = String, Path)),
    responses((status = 200, body = HostSettings), (status = "default", body = ApiError)))]
pub(super) async fn show_host(State(manager): Shared, Path(host): Path<HostName>) -> Answer<HostSettings> {
    Ok(Json(manager.store.read(move |tx| settings::of_host(tx, &host)).await?))
}

/// Changes a host's settings.
#[utoipa::path(post, path = "/v1/hosts/{name}/settings", operation_id = "set_host_settings", tag = "rulebook",
    params(("name" = String, Path)),
    request_body(content = HostSettings, description = "what changes, as a JSON merge patch; a driver is replaced as a whole"),
    responses((status = 200, body = HostSettings), (status = "default", body = ApiError)))]
pub(super) async fn set_host(
    State(manager): Shared,
    Path(host): Path<HostName>,
    Json(changes): Json<Value>,
) -> Answer<HostSettings> {
    Ok(Json(manager.store.write(move |tx| settings::set_host(tx, &host, changes)).await?))
}
