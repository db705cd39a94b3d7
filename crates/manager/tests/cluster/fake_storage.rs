//! The fake agent's part in moves of storage: an entry for each, which is in sync as soon as its script lets it.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use godwit_api::server::Json;
use godwit_types::agent::{AskDisks, BeginStorage, Leftover};
use godwit_types::api::Empty;
use godwit_types::capability::DiskFacts;
use godwit_types::storage::{StoragePhase, StorageProgress, StorageStatus};
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationId, VmId};

use super::agent::{Agent, Answer, unknown};

pub(crate) fn router() -> Router<Agent> {
    Router::new()
        .route("/v1/vms/{id}/disks", post(measure))
        .route("/v1/vms/{id}/storage", post(begin))
        .route("/v1/vms/{id}/storage/{migration}", get(look).merge(delete(cancel)))
        .route("/v1/vms/{id}/storage/{migration}/hold", post(hold))
        .route("/v1/vms/{id}/storage/{migration}/switch", post(switch))
}

impl Agent {
    /// What it does not know the fate of.
    pub(crate) fn storage_leftovers(&self) -> Vec<Leftover> {
        let known = self.known();
        known
            .storage
            .iter()
            .map(|(migration, (vm, ..))| Leftover { vm: *vm, migration: *migration })
            .collect()
    }

    fn note(&self, request: impl Into<String>) {
        self.known().requests.push(request.into());
    }

    /// The move as the VM's process has it, or the one that copies disks of a VM at rest.
    fn status(&self, vm: VmId, migration: MigrationId) -> Answer<StorageStatus> {
        let (_, mut status, at_rest) = self.known().storage.get(&migration).ok_or_else(unknown)?.clone();
        if !at_rest {
            self.vm_state(vm).ok_or_else(unknown)?;
        }
        let script = self.script.borrow();
        status.ended.clone_from(&script.storage_error);
        if status.progress.phase == StoragePhase::Copying && !script.hold_copy {
            status.progress.phase = StoragePhase::InSync;
        }
        Ok(Json(status))
    }
}

async fn measure(State(agent): State<Agent>, Json(asked): Json<AskDisks>) -> Answer<Vec<DiskFacts>> {
    agent.note(format!("POST disks at {}", asked.epoch));
    let facts = DiskFacts { size: Bytes::mib(9), allocated: Bytes::mib(3), layered: false };
    Ok(Json(vec![facts; asked.spec.disks.len()]))
}

async fn begin(
    State(agent): State<Agent>,
    Path(vm): Path<VmId>,
    Json(asked): Json<BeginStorage>,
) -> Answer<StorageStatus> {
    let place = &asked.disks[0];
    let at_rest = asked.at_rest.as_ref().map_or("", |_| " at rest");
    agent.note(format!("POST storage{at_rest} {} to {}", place.index, place.image));
    let progress = StorageProgress {
        phase: StoragePhase::Copying,
        copied: Bytes::mib(1),
        remaining: Bytes::mib(2),
        bytes_per_s: 100,
        elapsed_ms: 5,
    };
    let status = StorageStatus { migration: asked.migration, progress, ended: None };
    agent.known().storage.entry(asked.migration).or_insert((vm, status, asked.at_rest.is_some()));
    agent.status(vm, asked.migration)
}

async fn look(
    State(agent): State<Agent>,
    Path((vm, id)): Path<(VmId, MigrationId)>,
) -> Answer<StorageStatus> {
    agent.status(vm, id)
}

async fn hold(
    State(agent): State<Agent>,
    Path((vm, id)): Path<(VmId, MigrationId)>,
) -> Answer<StorageStatus> {
    agent.note("POST hold");
    if let Some(error) = agent.script.borrow().hold_error.clone() {
        return Err(error.into());
    }
    agent.status(vm, id)
}

async fn switch(State(agent): State<Agent>, Path((_, id)): Path<(VmId, MigrationId)>) -> Answer<Empty> {
    if agent.script.borrow().refuses_switch {
        return Err(ApiError::new(ErrorCode::Failed, "not now").into());
    }
    agent.note("POST switch");
    agent.known().storage.remove(&id);
    Ok(Json(Empty {}))
}

async fn cancel(State(agent): State<Agent>, Path((_, id)): Path<(VmId, MigrationId)>) -> Answer<Empty> {
    if agent.script.borrow().refuses_cancel {
        return Err(ApiError::new(ErrorCode::Failed, "not now").into());
    }
    agent.note("DELETE storage");
    agent.known().storage.remove(&id);
    Ok(Json(Empty {}))
}
