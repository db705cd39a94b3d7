//! Tells the VMMs of migrations away what each may send, whenever that changes: see [`super::shares`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_types::control::{Request, VmmState};
use godwit_types::{ApiError, ErrorCode, MigrationId, VmId};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::machine::Machine;
use super::shares::{Cap, Lane, shares};
use crate::agent::Agent;

/// How long others are held back for one guest that stands. One that waits longer does not wait for the network.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Without news, it is looked whether all were told after so long: for what ended a hold, and for orders that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a migration away may send, as far as this agent knows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Traffic {
    /// What the manager allows it; none until it has said so to this agent, which may have been restarted.
    pub(crate) allowed: Option<Cap>,
    /// What its VMM was told.
    told: Option<Cap>,
    /// Since when its guest stands.
    stands: Option<Instant>,
}

impl Traffic {
    /// Takes note of whether its guest stands.
    pub(crate) fn stands(&mut self, vmm: VmmState) {
        self.stands = (vmm == VmmState::Paused).then(|| self.stands.unwrap_or_else(Instant::now));
    }

    fn lane(&self) -> Lane {
        let stands = self.stands.is_some_and(|since| since.elapsed() < HOLD_MAX);
        Lane { bound: self.allowed.flatten(), stands }
    }
}

/// Tells them until it is aborted.
pub(crate) async fn share_forever(agent: Arc<Agent>) {
    loop {
        // Either way it is time to look.
        let _ = timeout(LOOK_AGAIN, agent.traffic.notified()).await;
        share(&agent).await;
    }
}

/// What a migration that is about to begin may send: it counts as told.
pub(crate) fn first_share(agent: &Agent, machine: &Arc<Machine>, allowed: Cap) -> Cap {
    machine.state(|state| state.traffic = Traffic { allowed: Some(allowed), ..Traffic::default() });
    let all = all_shares(agent);
    let share = all.iter().find(|(other, ..)| Arc::ptr_eq(other, machine)).and_then(|(_, _, share)| *share);
    machine.state(|state| state.traffic.told = Some(share));
    agent.traffic.notify_one();
    share
}

/// `POST /v1/vms/{id}/outgoing/{migration}/bandwidth`.
pub(crate) fn allow(agent: &Agent, vm: VmId, migration: MigrationId, allowed: Cap) -> Result<(), ApiError> {
    let machine = super::orders::running(agent, vm)?;
    let known = machine.state(|state| {
        let known = state.migration_away() == Some(migration);
        if known {
            state.traffic.allowed = Some(allowed);
        }
        known
    });
    if !known {
        let message = format!("migration {migration} of {} is not under way", machine.config.name);
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    agent.traffic.notify_one();
    Ok(())
}

/// How many migrations away are under way.
pub(crate) fn moves(agent: &Agent) -> usize {
    agent.vms.all_live().iter().filter(|machine| machine.state(|state| state.migrating_away())).count()
}

fn all_shares(agent: &Agent) -> Vec<(Arc<Machine>, MigrationId, Cap)> {
    let away = agent.vms.all_live().into_iter().filter_map(|machine| {
        let (migration, lane) =
            machine.state(|state| Some((state.migration_away()?, state.traffic.lane())))?;
        Some((machine, migration, lane))
    });
    let away: Vec<_> = away.collect();
    let lanes: Vec<Lane> = away.iter().map(|(_, _, lane)| *lane).collect();
    let shares = shares(agent.config.bandwidth_bytes_per_s_max, &lanes);
    away.into_iter().zip(shares).map(|((machine, migration, _), share)| (machine, migration, share)).collect()
}

/// Tells those whose share has changed, all at once: somebody's guest may be standing.
async fn share(agent: &Agent) {
    let mut orders = JoinSet::new();
    for (machine, migration, share) in all_shares(agent) {
        let news = machine.state(|state| {
            let Traffic { allowed, told, stands } = state.traffic;
            allowed.is_some() && stands.is_none() && told != Some(share)
        });
        if news {
            orders.spawn(async move {
                let order = Request::SetBandwidth { migration, bytes_per_s_max: share };
                match machine.control.order(&order).await {
                    Ok(()) => machine.state(|state| state.traffic.told = Some(share)),
                    // It may just have ended.
                    Err(error) => tracing::debug!("{}: its share was not told: {error}", machine.config.name),
                }
            });
        }
    }
    orders.join_all().await;
}
