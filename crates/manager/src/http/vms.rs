//! `/v1/vms`.

use axum::extract::State;
use godwit_api::server::{Json, Path, Query};
use godwit_types::agent::StopVm;
use godwit_types::api::Empty;
use godwit_types::check::MigrationCheck;
use godwit_types::forecast::{MigrationPlan, PlanMigration};
use godwit_types::migration::{Budget, MigrateVm, MoveDisks};
use godwit_types::storage::MoveStorage;
use godwit_types::task::Task;
use godwit_types::vm::{CreateVm, StartRequest, Vm};
use godwit_types::{ApiError, HostName, Name};
use serde::Deserialize;

use super::{Answer, Shared};
use crate::manager::unknown_vm;
use crate::moving::Wish;
use crate::{define, plan, preflight, tasks};

/// All VMs, by name.
#[utoipa::path(get, path = "/v1/vms", operation_id = "list_vms", tag = "vms",
    responses((status = 200, body = Vec<Vm>), (status = "default", body = ApiError)))]
pub(super) async fn list(State(manager): Shared) -> Answer<Vec<Vm>> {
    let vms = manager.store.read(|tx| {
        let shown: Result<_, _> = tx.vms()?.into_iter().map(|vm| tx.shown_vm(vm)).collect();
        Ok(shown?)
    });
    Ok(Json(vms.await?))
}

/// One VM, by name or id.
#[utoipa::path(get, path = "/v1/vms/{vm}", operation_id = "show_vm", tag = "vms", params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(vm): Path<String>) -> Answer<Vm> {
    let shown = manager.store.read(move |tx| {
        let row = tx.vm(&vm)?.ok_or_else(|| unknown_vm(&vm))?;
        Ok(tx.shown_vm(row)?)
    });
    Ok(Json(shown.await?))
}

/// Defines a VM. It does not run yet.
#[utoipa::path(post, path = "/v1/vms", operation_id = "create_vm", tag = "vms", request_body = CreateVm,
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(super) async fn create(State(manager): Shared, Json(asked): Json<CreateVm>) -> Answer<Vm> {
    Ok(Json(manager.store.write(|tx| define::create(tx, asked)).await?))
}

/// Forgets a VM that does not run. Its disks stay.
#[utoipa::path(delete, path = "/v1/vms/{vm}", operation_id = "delete_vm", tag = "vms", params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Empty), (status = "default", body = ApiError)))]
pub(super) async fn remove(State(manager): Shared, Path(vm): Path<String>) -> Answer<Empty> {
    manager.store.write(move |tx| define::remove(tx, &vm)).await?;
    Ok(Json(Empty {}))
}

/// Starts a VM, on the host named or on the one that suits it best.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", operation_id = "start_vm", tag = "vms", request_body = StartRequest,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn start(
    State(manager): Shared,
    Path(vm): Path<String>,
    Json(asked): Json<StartRequest>,
) -> Answer<Task> {
    Ok(Json(tasks::request_start(&manager, vm, asked).await?))
}

/// Stops a VM: presses its power button and waits, or ends its process at once.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", operation_id = "stop_vm", tag = "vms", request_body = StopVm,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn stop(
    State(manager): Shared,
    Path(vm): Path<String>,
    Json(asked): Json<StopVm>,
) -> Answer<Task> {
    Ok(Json(tasks::request_stop(&manager, vm, asked).await?))
}

/// Moves a running VM to another host.
#[utoipa::path(post, path = "/v1/vms/{vm}/migrate", operation_id = "migrate_vm", tag = "vms", request_body = MigrateVm,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn migrate(
    State(manager): Shared,
    Path(vm): Path<String>,
    Json(asked): Json<MigrateVm>,
) -> Answer<Task> {
    Ok(Json(tasks::request_migration(&manager, vm, asked).await?))
}

/// Moves disks of a VM to another datastore of its host; the guest of one that runs goes on.
#[utoipa::path(post, path = "/v1/vms/{vm}/move-storage", operation_id = "move_storage", tag = "vms", request_body = MoveStorage,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn move_storage(
    State(manager): Shared,
    Path(vm): Path<String>,
    Json(asked): Json<MoveStorage>,
) -> Answer<Task> {
    Ok(Json(tasks::request_storage_move(&manager, vm, asked).await?))
}

/// What moving a VM to a host would cost, and whether it can move there. Watches the guest for a moment; moves and reserves nothing.
#[utoipa::path(post, path = "/v1/vms/{vm}/plan-migration", operation_id = "plan_migration", tag = "vms", request_body = PlanMigration,
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 200, body = MigrationPlan), (status = "default", body = ApiError)))]
pub(super) async fn plan_migration(
    State(manager): Shared,
    Path(vm): Path<String>,
    Json(asked): Json<PlanMigration>,
) -> Answer<MigrationPlan> {
    Ok(Json(plan::report(&manager, vm, asked).await?))
}

#[derive(Debug, Deserialize)]
pub(super) struct To {
    to: Option<HostName>,
    #[serde(default)]
    post_copy: bool,
    #[serde(default)]
    move_disks: bool,
    datastore: Option<Name>,
}

/// Whether a VM can move to the host named, or to which of all, with every reason. Moves and reserves nothing.
#[utoipa::path(get, path = "/v1/vms/{vm}/migration-check", operation_id = "check_migration", tag = "vms",
    params(("vm" = String, Path, description = "name or id"), ("to" = Option<String>, Query, description = "a host's name"),
        ("post_copy" = Option<bool>, Query, description = "whether memory may follow the guest"),
        ("move_disks" = Option<bool>, Query, description = "whether disks may move along that the host does not share"),
        ("datastore" = Option<String>, Query, description = "where to, if they may")),
    responses((status = 200, body = MigrationCheck), (status = "default", body = ApiError)))]
pub(super) async fn migration_check(
    State(manager): Shared,
    Path(vm): Path<String>,
    Query(To { to, post_copy, move_disks, datastore }): Query<To>,
) -> Answer<MigrationCheck> {
    let budget = Budget { post_copy, ..Budget::default() };
    let wish = Wish { budget, move_disks: move_disks.then_some(MoveDisks { datastore }) };
    Ok(Json(preflight::report(&manager, vm, to, wish).await?))
}
