//! `/v1/tasks`.

use axum::extract::State;
use godwit_api::server::{Json, Path};
use godwit_types::task::{SetBandwidth, Task};
use godwit_types::{ApiError, TaskId};

use super::{Answer, Shared};
use crate::manager::unknown_task;
use crate::tasks;

/// All tasks that are kept, oldest first.
#[utoipa::path(get, path = "/v1/tasks", operation_id = "list_tasks", tag = "tasks",
    responses((status = 200, body = Vec<Task>), (status = "default", body = ApiError)))]
pub(super) async fn list(State(manager): Shared) -> Answer<Vec<Task>> {
    Ok(Json(manager.store.read(|tx| Ok(tx.tasks()?)).await?))
}

/// One task, with its progress or its end.
#[utoipa::path(get, path = "/v1/tasks/{id}", operation_id = "show_task", tag = "tasks", params(("id" = TaskId, Path)),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn show(State(manager): Shared, Path(id): Path<TaskId>) -> Answer<Task> {
    let task = manager.store.read(move |tx| Ok(tx.task(id)?)).await?;
    Ok(Json(task.ok_or_else(|| unknown_task(id))?))
}

/// Asks a task to end early. A migration that is committed already goes on.
#[utoipa::path(post, path = "/v1/tasks/{id}/cancel", operation_id = "cancel_task", tag = "tasks", params(("id" = TaskId, Path)),
    responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn cancel(State(manager): Shared, Path(id): Path<TaskId>) -> Answer<Task> {
    Ok(Json(tasks::cancel(&manager, id).await?))
}

/// Changes what a migration may send, whether it waits or is under way.
#[utoipa::path(post, path = "/v1/tasks/{id}/bandwidth", operation_id = "set_bandwidth", tag = "tasks", params(("id" = TaskId, Path)),
    request_body = SetBandwidth, responses((status = 200, body = Task), (status = "default", body = ApiError)))]
pub(super) async fn set_bandwidth(
    State(manager): Shared,
    Path(id): Path<TaskId>,
    Json(asked): Json<SetBandwidth>,
) -> Answer<Task> {
    Ok(Json(tasks::set_bandwidth(&manager, id, asked).await?))
}
