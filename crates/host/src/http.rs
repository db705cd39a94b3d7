//! The agent's API; the documents are in [`godwit_types::agent`].

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use godwit_api::server::{ErrorResponse, Json, Path, require_token, with_error_documents};
use godwit_api::{CONSOLE_PROTOCOL, Token};
use godwit_types::agent::{
    AskAdmission, AskDisks, AskSurvey, BeginStorage, Fence, Incoming, LocalVm, Outgoing, PrepareIncoming,
    RemoveLeft, Standby, StartOutgoing, StartVm, StopVm,
};
use godwit_types::api::{Empty, Health};
use godwit_types::capability::{DiskFacts, GuestFacts};
use godwit_types::check::Finding;
use godwit_types::forecast::Survey;
use godwit_types::host::HostReport;
use godwit_types::storage::StorageStatus;
use godwit_types::task::SetBandwidth;
use godwit_types::{ApiError, ErrorCode, MigrationId, VmId};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::UnixStream;

use crate::agent::Agent;
use crate::facts::VERSION;
use crate::vm::{examine, launch, orders, storage, traffic};

type Shared = State<Arc<Agent>>;
type Answer<T> = Result<Json<T>, ErrorResponse>;

/// The whole API.
pub(crate) fn router(agent: Arc<Agent>, token: Token) -> Router {
    let closed = Router::new()
        .route("/v1/host", get(host))
        .route("/v1/host/standby", post(standby))
        .route("/v1/vms/{id}", get(show))
        .route("/v1/vms/{id}/start", post(start))
        .route("/v1/vms/{id}/stop", post(stop))
        .route("/v1/vms/{id}/fence", post(fence))
        .route("/v1/vms/{id}/guest", get(guest))
        .route("/v1/vms/{id}/survey", post(survey))
        .route("/v1/vms/{id}/admission", post(admission))
        .route("/v1/vms/{id}/console", get(console))
        .route("/v1/vms/{id}/kept", delete(forget_kept))
        .route("/v1/vms/{id}/left", post(remove_left))
        .route("/v1/vms/{id}/disks", post(measure_disks))
        .route("/v1/vms/{id}/storage", post(begin_storage))
        .route("/v1/vms/{id}/storage/{migration}", get(look_at_storage).merge(delete(cancel_storage)))
        .route("/v1/vms/{id}/storage/{migration}/hold", post(hold_storage))
        .route("/v1/vms/{id}/storage/{migration}/switch", post(switch_storage))
        .route("/v1/vms/{id}/incoming", post(prepare_incoming))
        .route("/v1/vms/{id}/incoming/{migration}", delete(discard_incoming))
        .route("/v1/vms/{id}/outgoing", post(start_outgoing))
        .route("/v1/vms/{id}/outgoing/{migration}", get(outgoing).merge(delete(cancel_outgoing)))
        .route("/v1/vms/{id}/outgoing/{migration}/bandwidth", post(set_bandwidth));
    let all = require_token(closed, token).route("/v1/health", get(health));
    with_error_documents(all).with_state(agent)
}

async fn health() -> Json<Health> {
    Json(Health { version: VERSION.to_owned() })
}

async fn host(State(agent): Shared) -> Json<HostReport> {
    Json(agent.report())
}

async fn standby(State(agent): Shared, Json(Standby {}): Json<Standby>) -> Answer<Empty> {
    to_the_end(crate::standby::order(agent)).await.map(empty)
}

async fn show(State(agent): Shared, Path(vm): Path<VmId>) -> Answer<LocalVm> {
    Ok(Json(agent.vms.find(vm).ok_or_else(|| orders::not_here(&agent, vm))?))
}

async fn start(State(agent): Shared, Path(vm): Path<VmId>, Json(asked): Json<StartVm>) -> Answer<LocalVm> {
    to_the_end(launch::start(agent, vm, asked)).await.map(Json)
}

async fn stop(State(agent): Shared, Path(vm): Path<VmId>, Json(asked): Json<StopVm>) -> Answer<Empty> {
    to_the_end(orders::stop(agent, vm, asked)).await.map(empty)
}

async fn fence(State(agent): Shared, Path(vm): Path<VmId>, Json(asked): Json<Fence>) -> Answer<Empty> {
    to_the_end(orders::fence(agent, vm, asked)).await.map(empty)
}

async fn guest(State(agent): Shared, Path(vm): Path<VmId>) -> Answer<GuestFacts> {
    Ok(Json(orders::guest(&agent, vm).await?))
}

async fn survey(State(agent): Shared, Path(vm): Path<VmId>, Json(asked): Json<AskSurvey>) -> Answer<Survey> {
    Ok(Json(orders::survey(&agent, vm, asked).await?))
}

async fn admission(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Json(asked): Json<AskAdmission>,
) -> Json<Vec<Finding>> {
    Json(examine::admission(agent, vm, asked).await)
}

async fn forget_kept(State(agent): Shared, Path(vm): Path<VmId>) -> Answer<Empty> {
    orders::forget_kept(agent, vm).await;
    Ok(empty(()))
}

async fn remove_left(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Json(asked): Json<RemoveLeft>,
) -> Answer<Empty> {
    to_the_end(orders::remove_left(agent, vm, asked)).await.map(empty)
}

async fn measure_disks(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Json(asked): Json<AskDisks>,
) -> Answer<Vec<DiskFacts>> {
    Ok(Json(storage::measure(agent, vm, asked).await?))
}

async fn begin_storage(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Json(asked): Json<BeginStorage>,
) -> Answer<StorageStatus> {
    to_the_end(storage::begin(agent, vm, asked)).await.map(Json)
}

async fn look_at_storage(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<StorageStatus> {
    Ok(Json(storage::look(&agent, vm, migration).await?))
}

async fn hold_storage(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<StorageStatus> {
    to_the_end(storage::hold(agent, vm, migration)).await.map(Json)
}

async fn switch_storage(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<Empty> {
    to_the_end(storage::switch(agent, vm, migration)).await.map(empty)
}

async fn cancel_storage(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<Empty> {
    to_the_end(storage::cancel(agent, vm, migration)).await.map(empty)
}

async fn prepare_incoming(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Json(asked): Json<PrepareIncoming>,
) -> Answer<Incoming> {
    to_the_end(launch::incoming(agent, vm, asked)).await.map(Json)
}

async fn discard_incoming(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<Empty> {
    to_the_end(orders::discard_incoming(agent, vm, migration)).await.map(empty)
}

async fn start_outgoing(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Json(asked): Json<StartOutgoing>,
) -> Answer<Empty> {
    to_the_end(orders::start_outgoing(agent, vm, asked)).await.map(empty)
}

async fn outgoing(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<Outgoing> {
    Ok(Json(orders::outgoing(&agent, vm, migration)?))
}

async fn set_bandwidth(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
    Json(asked): Json<SetBandwidth>,
) -> Answer<Empty> {
    Ok(empty(traffic::allow(&agent, vm, migration, asked.bytes_per_s_max)?))
}

async fn cancel_outgoing(
    State(agent): Shared,
    Path((vm, migration)): Path<(VmId, MigrationId)>,
) -> Answer<Empty> {
    to_the_end(orders::cancel_outgoing(agent, vm, migration)).await.map(empty)
}

/// Connects the client with the VM's console, as raw bytes in both directions, until either side ends it.
async fn console(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    mut request: Request,
) -> Result<Response, ErrorResponse> {
    require_upgrade(request.headers())?;
    let machine = orders::running(&agent, vm)?;
    let mut guest = UnixStream::connect(machine.dir.console()).await.map_err(|error| {
        let message = format!("the console of {} cannot be reached: {error}", machine.config.name);
        ApiError::new(ErrorCode::Failed, message).remedy("only one client at a time may hold a console")
    })?;
    let client = hyper::upgrade::on(&mut request);
    agent.spawn(async move {
        match client.await {
            Ok(client) => {
                // Either side may end it at any time, and neither is owed an explanation.
                let _ = copy_bidirectional(&mut TokioIo::new(client), &mut guest).await;
            }
            Err(error) => tracing::debug!("a console's client left: {error}"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, CONSOLE_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn require_upgrade(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(UPGRADE).is_some_and(|protocol| protocol == CONSOLE_PROTOCOL) {
        return Ok(());
    }
    let message = format!("a console needs the header 'Upgrade: {CONSOLE_PROTOCOL}'");
    Err(ApiError::new(ErrorCode::Invalid, message).remedy("use: godwit vm console"))
}

/// Does `work` to its end even if the client hangs up: nothing is left half done.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ErrorResponse> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(ErrorResponse),
        Err(error) => {
            let message = format!("the agent failed while it worked on the request: {error}");
            Err(ErrorResponse(ApiError::new(ErrorCode::Internal, message).remedy("look at the agent's log")))
        }
    }
}

fn empty((): ()) -> Json<Empty> {
    Json(Empty {})
}
