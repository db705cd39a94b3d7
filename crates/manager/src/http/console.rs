//! `/v1/vms/{vm}/console`: raw bytes between the client and the agent.

use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use godwit_api::server::{ErrorResponse, Path};
use godwit_api::{CONSOLE_PROTOCOL, Upgraded};
use godwit_types::{ApiError, ErrorCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::Shared;
use crate::manager::{Manager, unknown_vm};
use crate::store::Power;

/// The VM's serial console: the connection is upgraded to raw bytes in both directions.
///
/// Needs the headers `Connection: upgrade` and `Upgrade: godwit-console`. Ends when the VM leaves its host.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", operation_id = "open_console", tag = "vms",
    params(("vm" = String, Path, description = "name or id")),
    responses((status = 101, description = "raw bytes follow"), (status = "default", body = ApiError)))]
pub(super) async fn open(
    State(manager): Shared,
    Path(vm): Path<String>,
    mut request: Request,
) -> Result<Response, ErrorResponse> {
    require_upgrade(request.headers())?;
    let agent = connect(&manager, vm).await?;
    let client = hyper::upgrade::on(&mut request);
    let mut stop = manager.stop.subscribe();
    manager.spawn(async move {
        tokio::select! {
            _ = stop.changed() => {}
            () = forward(client, agent) => {}
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

async fn connect(manager: &Manager, name: String) -> Result<Upgraded, ApiError> {
    let vm = manager.store.read(move |tx| {
        let vm = tx.vm(&name)?.ok_or_else(|| unknown_vm(&name))?;
        let owner = tx.ownership(vm.id)?.map(|(owned, _)| owned.owner);
        Ok((vm, owner))
    });
    let (vm, owner) = vm.await?;
    let Some(owner) = owner.filter(|_| vm.power == Power::Running) else {
        let error = ApiError::new(ErrorCode::Refused, format!("{} is not running", vm.name));
        return Err(error.remedy(format!("start it: godwit vm start {}", vm.name)));
    };
    let agent = manager.agent(&owner).await?;
    agent.upgrade(&format!("/v1/vms/{}/console", vm.id), CONSOLE_PROTOCOL).await
}

async fn forward(client: hyper::upgrade::OnUpgrade, mut agent: Upgraded) {
    match client.await {
        Ok(client) => {
            // Either side may end it at any time, and neither is owed an explanation.
            let _ = copy_bidirectional(&mut TokioIo::new(client), &mut agent).await;
        }
        Err(error) => tracing::debug!("a console's client left: {error}"),
    }
}
