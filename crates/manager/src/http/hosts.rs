//! `/v1/hosts`.

use std::sync::Arc;

use axum::extract::State;
use godwit_api::server::{Json, Path, Query};
use godwit_scheduler::record::Emptying;
use godwit_types::api::Empty;
use godwit_types::host::{Host, HostReport};
use godwit_types::task::Task;
use godwit_types::{ApiError, ErrorCode, HostName};
use serde::Deserialize;

use super::{Answer, Shared};
use crate::clock::now_unix_ms;
use crate::heartbeat::{self, Orders};
use crate::manager::{Manager, unknown_host};
use crate::scheduling;
use crate::tasks::{self, Side};

/// All hosts, by name.
#[utoipa::path(get, path = "/v1/hosts", operation_id = "list_hosts", tag = "hosts",
    responses((status = 200, body = Vec<Host>), (status = "default", body = ApiError)))]
pub(super) async fn list(State(manager): Shared) -> Answer<Vec<Host>> {
    Ok(Json(manager.store.read(|tx| Ok(tx.shown_hosts(now_unix_ms())?)).await?))
}

/// One host.
#[utoipa::path(get, path = "/v1/hosts/{name}", operation_id = "show_host", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = Host), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(name): Path<HostName>) -> Answer<Host> {
    let hosts = manager.store.read(|tx| Ok(tx.shown_hosts(now_unix_ms())?)).await?;
    let host = hosts.into_iter().find(|host| host.name == name);
    Ok(Json(host.ok_or_else(|| unknown_host(name.as_str()))?))
}

/// How a host is emptied.
#[derive(Debug, Deserialize)]
pub(super) struct How {
    #[serde(default)]
    move_disks: bool,
}

/// Empties a host, to be patched: its VMs move away, and it gets none until it leaves maintenance.
#[utoipa::path(post, path = "/v1/hosts/{name}/maintenance", operation_id = "enter_maintenance", tag = "hosts",
    params(("name" = String, Path),
        ("move_disks" = Option<bool>, Query, description = "whether disks go along that other hosts do not reach")),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn enter_maintenance(
    State(manager): Shared,
    Path(name): Path<HostName>,
    Query(How { move_disks }): Query<How>,
) -> Answer<Task> {
    Ok(Json(tasks::enter_maintenance(&manager, name, move_disks).await?))
}

/// Lets a host take VMs again. One that is still being emptied is left as it is.
#[utoipa::path(delete, path = "/v1/hosts/{name}/maintenance", operation_id = "exit_maintenance", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn exit_maintenance(State(manager): Shared, Path(name): Path<HostName>) -> Answer<Empty> {
    tasks::exit_maintenance(&manager, name).await?;
    Ok(Json(Empty {}))
}

/// Where the VMs of a host would go if it were emptied, and which could not. Moves nothing.
#[utoipa::path(get, path = "/v1/hosts/{name}/maintenance", operation_id = "plan_maintenance", tag = "hosts",
    params(("name" = String, Path),
        ("move_disks" = Option<bool>, Query, description = "whether disks would go along that other hosts do not reach")),
    responses((status = 200, body = Emptying), (status = "default", body = ApiError)))]
pub(super) async fn plan_maintenance(
    State(manager): Shared,
    Path(name): Path<HostName>,
    Query(How { move_disks }): Query<How>,
) -> Answer<Emptying> {
    Ok(Json(scheduling::emptying(&manager, name, move_disks).await?))
}

/// What a host's agent tells of itself, every 2 s and when something changes. The first one joins the cluster.
#[utoipa::path(post, path = "/v1/hosts/{name}/heartbeat", operation_id = "heartbeat", tag = "agents", params(("name" = String, Path)),
    request_body = HostReport,
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn heartbeat(
    State(manager): Shared,
    Path(name): Path<HostName>,
    Json(report): Json<HostReport>,
) -> Answer<Empty> {
    if report.name != name {
        let message = format!("the report of {} was sent as that of {name}", report.name);
        return Err(ApiError::new(ErrorCode::Invalid, message).into());
    }
    let orders = manager.store.note(move |tx| heartbeat::record(tx, report)).await?;
    if orders != Orders::default() {
        let told_by = Arc::clone(&manager);
        manager.spawn(async move { tell(&told_by, &name, orders).await });
    }
    Ok(Json(Empty {}))
}

/// Tells a host what its report calls for; what does not reach it is told after its next one.
async fn tell(manager: &Manager, host: &HostName, orders: Orders) {
    for (vm, migration) in orders.discard {
        tasks::discard(manager, host, vm, Side::Incoming, migration).await;
    }
    for (vm, migration, word) in orders.storage {
        if let Err(error) = tasks::tell_storage(manager, host, (vm, migration), word).await {
            tracing::info!("{host} was not told what became of the disks of VM {vm}: {error}");
        }
    }
    for (vm, fence) in orders.fence {
        let told = match manager.agent(host).await {
            Ok(agent) => agent.post::<_, Empty>(&format!("/v1/vms/{vm}/fence"), &fence).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::warn!("{host} was not told to end its copy of VM {vm}: {error}");
        }
    }
    for left in orders.remove {
        if let Err(error) = tasks::remove_left(manager, host, &left).await {
            tracing::info!("{host} has not removed what VM {} has left: {error}", left.vm);
        }
    }
    for vm in orders.forget {
        let told = match manager.agent(host).await {
            Ok(agent) => agent.delete::<Empty>(&format!("/v1/vms/{vm}/kept")).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::debug!("{host} was not told to forget the memory of VM {vm}: {error}");
        }
    }
}
