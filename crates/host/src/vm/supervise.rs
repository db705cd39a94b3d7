//! The task that follows one VM's process from its start to its end.
//!
//! ```text
//!  subscribe --> notices, questions --connection lost--> subscribe again (open questions are raised again)
//!                    '--> question --> the arbiter (see `question`) --> answer
//!  process ended --> clean up, remember how --> (end)
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use godwit_types::control::{Notice, Question, Reply, Request, VmmState};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, Epoch, HostName, MigrationId};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::control::{ControlError, Line, Subscription};
use super::machine::{Machine, blocking};
use super::orders::connect;
use super::process::describe;
use super::question::{after_answer, ask, open_taps};
use crate::agent::Agent;
use crate::announce::announce;

/// Pause before subscribing again.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);
/// How long the last notices of a process that has ended may take to be read.
const LAST_NOTICES_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a destination that has failed may take to end by itself.
const FAILED_END_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a process may take to keep the memory of a VM that has left: 1 s for a few GiB.
const KEEP_TIMEOUT: Duration = Duration::from_secs(60);

type Asking = JoinSet<(Question, Verdict)>;

/// Follows the process until it has ended, then removes what it leaves.
pub(crate) async fn supervise(agent: Arc<Agent>, machine: Arc<Machine>) {
    let mut learning = JoinSet::new();
    for (port, addresses) in machine.ports.iter().zip(&machine.addresses) {
        let agent = Arc::clone(&agent);
        learning.spawn(addresses.clone().learn(port.tap.clone(), move || agent.changed.notify_one()));
    }
    let ended = tokio::select! {
        ended = follow(&agent, &machine) => ended,
        ended = async {
            let ended = machine.process.ended().await;
            sleep(LAST_NOTICES_TIMEOUT).await;
            ended
        } => ended,
    };
    learning.shutdown().await;
    let how = format!("the VM's process {}: {}", describe(ended), machine.dir.last_words());
    let in_order = ended.is_some_and(|status| status.success());
    let left = machine.state(|state| state.clone()).after(in_order, how.trim_end_matches([':', ' ']));
    let crashed = left.as_ref().and_then(|left| left.detail.as_deref());
    match crashed {
        Some(how) => tracing::error!(
            "{} crashed: {how}; its logs stay beside {}",
            machine.config.name,
            machine.dir.log().display()
        ),
        None => tracing::info!("{}: the VM's process {}", machine.config.name, describe(ended)),
    }
    machine.clean_up(crashed.is_some()).await;
    agent.keep.settle(machine.id());
    agent.vms.retire(&machine, left);
    machine.set_gone();
    agent.changed.notify_one();
}

/// Reads notices until the process has ended and its last notice is read.
async fn follow(agent: &Arc<Agent>, machine: &Arc<Machine>) -> Option<ExitStatus> {
    loop {
        let error = match machine.control.subscribe().await {
            Ok(subscription) => match session(agent, machine, subscription).await {
                Ok(never) => match never {},
                Err(error) => error,
            },
            Err(error) => error,
        };
        // A process closes its sockets before it counts as ended.
        if let Ok(ended) = timeout(SUBSCRIBE_PAUSE, machine.process.ended()).await {
            return ended;
        }
        tracing::debug!("{}: subscribing again: {error}", machine.config.name);
    }
}

async fn session(
    agent: &Arc<Agent>,
    machine: &Arc<Machine>,
    mut subscription: Subscription,
) -> Result<Infallible, ControlError> {
    let mut asking = Asking::new();
    let mut open: Vec<Question> = Vec::new();
    loop {
        tokio::select! {
            line = subscription.next() => match line? {
                Line::Notice(notice) => match *notice {
                    Notice::Question { question } if open.contains(&question) => {}
                    Notice::Question { question } => {
                        open.push(question.clone());
                        asking.spawn(ask(Arc::clone(agent), Arc::clone(machine), question));
                    }
                    notice => noticed(agent, machine, notice),
                },
                Line::Reply(Reply::Error { error }) => {
                    tracing::warn!("{}: the VM's process did not take an answer: {error}", machine.config.name);
                }
                Line::Reply(_) => {}
            },
            Some(answered) = asking.join_next() => {
                let (question, verdict) = answered.map_err(|error| ControlError::Malformed(error.to_string()))?;
                let migration = question.migration();
                subscription.send(&Request::Answer { migration, verdict: verdict.clone() }).await?;
                open.retain(|other| *other != question);
                after_answer(agent, machine, &question, &verdict).await;
            }
        }
    }
}

fn noticed(agent: &Arc<Agent>, machine: &Arc<Machine>, notice: Notice) {
    let name = &machine.config.name;
    match notice {
        Notice::Question { .. } => {}
        Notice::Progress { migration, progress } => {
            return machine.state(|state| state.progress(migration, progress));
        }
        Notice::State { state, epoch } => state_changed(agent, machine, state, epoch),
        Notice::Arrived { migration } => {
            tracing::debug!("{name} says that it has arrived by migration {migration}");
            arrived(agent, machine);
        }
        Notice::Disconnected { migration, destination, address, page_streams } => {
            let machine = Arc::clone(machine);
            return agent.spawn(async move {
                connect_again(&machine, migration, destination, (address, page_streams)).await;
            });
        }
        Notice::MigrationEnded { migration, outcome } => {
            let handed_over = machine.state(|state| {
                state.migration_ended(migration, outcome);
                state.handed_over
            });
            agent.traffic.notify_one();
            if handed_over {
                end(agent, machine);
            } else {
                agent.keep.settle(machine.id());
            }
        }
        Notice::IncomingFailed { migration, error } => incoming_failed(agent, machine, migration, &error),
        Notice::DeviceError { device, message } => {
            return tracing::warn!("{name}: {device} reported to the guest: {message}");
        }
    }
    agent.changed.notify_one();
}

/// Makes new connections for a source that still has part of a guest's memory, or says why there are none: it will ask again.
async fn connect_again(
    machine: &Arc<Machine>,
    migration: MigrationId,
    destination: HostName,
    (address, page_streams): (SocketAddr, u32),
) {
    let name = &machine.config.name;
    let (connections, error) = match connect(&destination, address, page_streams).await {
        Ok(connections) => (connections, None),
        Err(error) => {
            tracing::warn!("{name} waits for its memory's way to {destination}: {error}");
            (Vec::new(), Some(error))
        }
    };
    let answer = Request::Reconnect { migration, error };
    if let Err(error) = machine.control.order_with(&answer, &connections).await {
        tracing::warn!("{name}: the VM's process did not take its connections to {destination}: {error}");
    }
}

fn state_changed(agent: &Arc<Agent>, machine: &Arc<Machine>, vmm: VmmState, epoch: Epoch) {
    machine.state(|state| {
        state.vmm = vmm;
        state.epoch = state.epoch.max(epoch);
        state.handed_over |= vmm == VmmState::HandedOver;
        state.traffic.stands(vmm);
    });
    agent.traffic.notify_one();
    match vmm {
        VmmState::Running => arrived(agent, machine),
        VmmState::Stopped => end(agent, machine),
        VmmState::Incoming | VmmState::Paused | VmmState::HandedOver => {}
    }
}

/// If the VM has just arrived: tells the network, and whichever agent comes after this one.
fn arrived(agent: &Arc<Agent>, machine: &Arc<Machine>) {
    let Some(migration) = machine.state(|state| state.incoming.take()) else { return };
    tracing::info!("{} runs here now, by migration {migration}", machine.config.name);
    agent.keep.forget(machine.id());
    tell_network(agent, machine);
    let (arrived, machine) = (Arc::clone(agent), Arc::clone(machine));
    agent.spawn(async move {
        // Opened before the claim was answered, unless another agent did that and was ended in between.
        open_taps(&machine).await;
        let settled = Arc::clone(&machine);
        let written = blocking(move || {
            arrived.arrivals.settle(settled.id(), migration);
            settled.dir.write_config(&settled.settled_config())
        });
        if let Err(error) = written.await {
            tracing::warn!("{}: its configuration was not updated: {error}", machine.config.name);
        }
    });
}

/// Tells the network that the guest is here now: after an arrival, and after a start, since it may have run elsewhere
/// before and switches remember that.
pub(crate) fn tell_network(agent: &Arc<Agent>, machine: &Arc<Machine>) {
    for port in &machine.ports {
        let runs = Arc::clone(machine);
        agent.spawn(announce(port.clone(), machine.seen(), move || runs.is_here()));
    }
}

/// Ends a process that has nothing to do any more. One whose VM has left ends by itself, once its memory is kept.
fn end(agent: &Arc<Agent>, machine: &Arc<Machine>) {
    let (machine, keeper) = (Arc::clone(machine), Arc::clone(agent));
    agent.spawn(async move {
        if !keeper.keep.is_lent(machine.id()) || !machine.gone_within(KEEP_TIMEOUT).await {
            machine.quit().await;
        }
    });
}

fn incoming_failed(agent: &Arc<Agent>, machine: &Arc<Machine>, migration: MigrationId, error: &ApiError) {
    tracing::warn!("{} does not arrive by migration {migration}: {error}", machine.config.name);
    let machine = Arc::clone(machine);
    agent.spawn(async move {
        if !machine.gone_within(FAILED_END_TIMEOUT).await {
            machine.kill().await;
        }
    });
}
