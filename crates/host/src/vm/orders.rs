//! What can be asked of a VM that is here: to stop, to be migrated away, not to arrive after all.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use godwit_faults::Step;
use godwit_types::agent::{AskSurvey, Fence, LocalState, Outgoing, RemoveLeft, StartOutgoing, StopVm};
use godwit_types::capability::GuestFacts;
use godwit_types::control::{Request, page_streams};
use godwit_types::forecast::Survey;
use godwit_types::{ApiError, ErrorCode, HostName, MigrationId, VmId};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::machine::{Machine, blocking};
use super::{places, reached, traffic};
use crate::agent::Agent;
use crate::net;

/// How long a process that did not answer may take to turn out to have ended.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the datastores may take to say how large a VM's disks are.
pub(super) const MEASURE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the destination's host may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// `POST /v1/vms/{id}/stop`. Returns when the process is gone and nothing of it is left.
pub(crate) async fn stop(agent: Arc<Agent>, vm: VmId, asked: StopVm) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    let Some(machine) = agent.vms.live(vm) else {
        return agent.vms.find(vm).map(drop).ok_or_else(|| not_here(&agent, vm));
    };
    let name = &machine.config.name;
    match machine.state(|state| state.local()) {
        LocalState::Incoming | LocalState::Prepared | LocalState::Outgoing | LocalState::HandedOver => {
            let message = format!("{name} is being migrated");
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .remedy("cancel the migration first: godwit task cancel"));
        }
        LocalState::Running | LocalState::Stopped | LocalState::Crashed => {}
    }
    if asked.force {
        machine.quit().await;
        return Ok(());
    }
    machine.state(|state| state.stopping = true);
    let pressed = machine.control.order(&Request::PowerButton).await;
    let patience = Duration::from_millis(asked.timeout_ms);
    // A process that is just ending does not answer any more.
    let patience = if pressed.is_ok() { patience } else { patience.min(ENDING_TIMEOUT) };
    if machine.gone_within(patience).await {
        return Ok(());
    }
    machine.state(|state| state.stopping = false);
    pressed?;
    let message = format!("{name} did not power off within {} ms of the power button", asked.timeout_ms);
    Err(ApiError::new(ErrorCode::Failed, message).remedy(
        "shut the guest down from inside, give it more time, or end it at once: godwit vm stop --force",
    ))
}

/// `POST /v1/vms/{id}/fence`. Nothing to do if no copy of an older epoch is here.
pub(crate) async fn fence(agent: Arc<Agent>, vm: VmId, asked: Fence) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    let Some(machine) = agent.vms.live(vm) else { return Ok(()) };
    let (name, Fence { owner, epoch }) = (&machine.config.name, asked);
    let here = machine.state(|state| state.epoch);
    if here >= epoch {
        let message = format!("{name} is on {} at epoch {here}, not before {epoch}", agent.config.name);
        return Err(ApiError::conflict(message));
    }
    tracing::error!("{name} belongs to {owner} at epoch {epoch}: the copy here, of epoch {here}, is ended");
    machine.state(|state| state.stopping = true);
    if let Err(error) = machine.ports(net::block).await {
        tracing::warn!("{name}: its network was not blocked: {error}");
    }
    machine.kill().await;
    Ok(())
}

/// `DELETE /v1/vms/{id}/kept`.
pub(crate) async fn forget_kept(agent: Arc<Agent>, vm: VmId) {
    blocking(move || agent.keep.forget(vm)).await;
}

/// `GET /v1/vms/{id}/guest`.
pub(crate) async fn guest(agent: &Agent, vm: VmId) -> Result<GuestFacts, ApiError> {
    let machine = running(agent, vm)?;
    let guest = machine.control.guest().await?;
    let disks = blocking(move || {
        let disks = machine.disks();
        let measured = disks.iter().map(godwit_provision::measure);
        measured.collect::<Result<Vec<_>, _>>()
    });
    // Without them the VM can still move where its disks need not.
    let disks = match timeout(MEASURE_TIMEOUT, disks).await {
        Ok(Ok(disks)) => disks,
        Ok(Err(error)) => {
            tracing::warn!("the disks of VM {vm} cannot be looked at: {error}");
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    Ok(GuestFacts { disks, ..guest })
}

/// `POST /v1/vms/{id}/survey`.
pub(crate) async fn survey(agent: &Agent, vm: VmId, asked: AskSurvey) -> Result<Survey, ApiError> {
    Ok(running(agent, vm)?.control.survey(asked.sample_ms).await?)
}

/// `DELETE /v1/vms/{id}/incoming/{migration}`.
pub(crate) async fn discard_incoming(
    agent: Arc<Agent>,
    vm: VmId,
    migration: MigrationId,
) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    let Some(machine) = agent.vms.live(vm) else {
        blocking(move || agent.arrivals.discard(vm, migration)).await;
        return Ok(());
    };
    let name = &machine.config.name;
    let (incoming, claiming, claimed) =
        machine.state(|state| (state.incoming, state.claiming, state.claimed));
    match incoming {
        Some(current) if current == migration && !claiming && !claimed => {
            tracing::info!("{name} does not arrive: migration {migration} is discarded");
            machine.kill().await;
            blocking(move || agent.arrivals.discard(vm, migration)).await;
            Ok(())
        }
        Some(current) if current == migration => {
            let message =
                format!("{name} has asked the arbiter whether it may run here, whose answer decides");
            Err(ApiError::new(ErrorCode::Conflict, message).remedy("look again in a moment: godwit vm show"))
        }
        Some(other) => Err(ApiError::conflict(format!("{name} arrives by another migration, {other}"))),
        None => Err(ApiError::conflict(format!("{name} runs on this host"))),
    }
}

/// `POST /v1/vms/{id}/outgoing`. Asking again for the same migration changes nothing.
pub(crate) async fn start_outgoing(
    agent: Arc<Agent>,
    vm: VmId,
    asked: StartOutgoing,
) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    let machine = running(&agent, vm)?;
    let StartOutgoing { migration, destination, address, key, disks, mut budget } = asked;
    let before = machine.state(|state| state.outgoing.clone());
    if before.as_ref().is_some_and(|outgoing| outgoing.migration == migration) {
        return Ok(());
    }
    let state = machine.state(|state| if state.stopping { LocalState::Stopped } else { state.local() });
    if state != LocalState::Running {
        let message =
            format!("{} cannot be migrated: it is {state:?} on {}", machine.config.name, agent.config.name);
        return Err(ApiError::conflict(message).remedy("wait for its task to end: godwit task ls"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let streams = page_streams(cores, traffic::moves(&agent) + 1);
    let mut given = connect(&destination, address, streams).await?;
    let kept = agent.keep.lend(vm, &machine.config.name, machine.config.spec.memory);
    let keep = kept.is_some();
    given.extend(kept.map(OwnedFd::from));
    // Known before its first notice can come.
    machine.state(|state| state.outgoing = Some(Outgoing { migration, progress: None, outcome: None }));
    agent.changed.notify_one();
    budget.bandwidth_bytes_per_s_max =
        traffic::first_share(&agent, &machine, budget.bandwidth_bytes_per_s_max);
    reached(Step::SourceAgentBegin).await;
    let order = Request::MigrateOut { migration, destination, address, key, keep, disks, budget };
    let begun = machine.control.order_with(&order, &given).await;
    if begun.is_err() {
        agent.keep.settle(vm);
        machine.state(|state| state.outgoing = before);
        agent.traffic.notify_one();
    }
    Ok(begun?)
}

/// The connections of a migration, since the VM's process can open none: for control, then for each page stream.
pub(crate) async fn connect(
    destination: &HostName,
    address: SocketAddr,
    page_streams: u32,
) -> Result<Vec<OwnedFd>, ApiError> {
    let failed = |error: String| {
        // Not "unreachable": that would speak of this agent.
        let message = format!("cannot connect to {destination} at {address} for the migration: {error}");
        ApiError::new(ErrorCode::Failed, message).remedy(
            "check the network between the hosts and whether the other host still runs, then migrate again",
        )
    };
    let mut connections = Vec::new();
    for _ in 0..=page_streams {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_| failed(format!("no answer in {} s", CONNECT_TIMEOUT.as_secs())))?;
        let stream = stream.and_then(TcpStream::into_std).map_err(|error| failed(error.to_string()))?;
        let ready = stream
            .set_nonblocking(false)
            .and_then(|()| godwit_provision::watch(&stream))
            .and_then(|()| godwit_provision::unpace(&stream));
        ready.map_err(|error| failed(error.to_string()))?;
        connections.push(stream.into());
    }
    Ok(connections)
}

/// `DELETE /v1/vms/{id}/outgoing/{migration}`. Returns when the VMM has taken note.
pub(crate) async fn cancel_outgoing(
    agent: Arc<Agent>,
    vm: VmId,
    migration: MigrationId,
) -> Result<(), ApiError> {
    let machine = running(&agent, vm)?;
    let outgoing = agent.vms.outgoing(vm, migration).ok_or_else(|| no_migration(&agent, vm, migration))?;
    if outgoing.outcome.is_some() {
        return Err(ApiError::conflict(format!(
            "migration {migration} of {} has ended",
            machine.config.name
        )));
    }
    Ok(machine.control.order(&Request::CancelMigration { migration }).await?)
}

/// `GET /v1/vms/{id}/outgoing/{migration}`.
pub(crate) fn outgoing(agent: &Agent, vm: VmId, migration: MigrationId) -> Result<Outgoing, ApiError> {
    agent.vms.outgoing(vm, migration).ok_or_else(|| no_migration(agent, vm, migration))
}

/// `POST /v1/vms/{id}/left`. What is gone already is fine, and what is not the VM's stays.
pub(crate) async fn remove_left(agent: Arc<Agent>, vm: VmId, asked: RemoveLeft) -> Result<(), ApiError> {
    let _turn = agent.vms.lock(vm).await;
    if agent.arrivals.is_noted(vm) {
        return Err(ApiError::conflict(format!(
            "disks of VM {vm} are on their way to {}",
            agent.config.name
        )));
    }
    // A process that has handed the VM over may still keep its memory, and needs no file for that.
    let here = agent.vms.live(vm).filter(|machine| machine.report().state != LocalState::HandedOver);
    let removed = blocking(move || {
        let in_use = here.as_ref().map(|machine| machine.disks()).unwrap_or_default();
        let remove = |image| places::remove_left(&agent.config, (vm, asked.epoch), image, &in_use);
        asked.images.iter().map(remove).filter_map(Result::err).collect::<Vec<_>>()
    });
    let kept = removed.await;
    if kept.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Refused, kept.join("; ")).remedy("look at it, and remove it by hand"))
}

/// The VM, which must have a process here.
pub(crate) fn running(agent: &Agent, vm: VmId) -> Result<Arc<Machine>, ApiError> {
    agent.vms.live(vm).ok_or_else(|| not_here(agent, vm))
}

/// That the VM is not here.
pub(crate) fn not_here(agent: &Agent, vm: VmId) -> ApiError {
    let message = format!("VM {vm} is not on {}", agent.config.name);
    ApiError::new(ErrorCode::NotFound, message).remedy("find it: godwit vm ls")
}

fn no_migration(agent: &Agent, vm: VmId, migration: MigrationId) -> ApiError {
    let message = format!("{} knows of no migration {migration} of VM {vm}", agent.config.name);
    ApiError::new(ErrorCode::NotFound, message)
}
