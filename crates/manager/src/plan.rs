//! What a move would cost: the VM is watched on its host, and what earlier moves took is looked up.
//!
//! Before a migration this goes on while the destination builds its machine, and the survey ends when the migration
//! begins: it takes no time of its own.

use std::sync::Arc;
use std::time::Duration;

use godwit_migration::planner::{self, Circumstances};
use godwit_types::agent::{AskSurvey, LocalState};
use godwit_types::capability::GuestFacts;
use godwit_types::forecast::{Forecast, Link, MigrationPlan, PlanMigration, Survey};
use godwit_types::migration::Budget;
use godwit_types::{ApiError, Bytes, ErrorCode, HostName, VmId};

use crate::link;
use crate::manager::{Manager, unknown_host};
use crate::moving::{Moving, Wish};
use crate::preflight::{self, Situation};
use crate::store::{Power, StoreError, Tx};

/// How long an agent may take beside the survey itself.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// `POST /v1/vms/{vm}/plan-migration`: whether the VM can move there now, and what it would cost.
pub(crate) async fn report(
    manager: &Arc<Manager>,
    vm: String,
    asked: PlanMigration,
) -> Result<MigrationPlan, ApiError> {
    let PlanMigration { to, budget, move_disks, sample_ms } = asked;
    let wish = Wish { budget: budget.clone(), move_disks };
    let name = vm.clone();
    let before = manager.store.read(move |tx| Situation::of(tx, &name)).await?;
    let foreseen = async {
        let from = before.source.as_ref().filter(|_| before.vm.power == Power::Running);
        let from = from.ok_or_else(|| {
            let message = format!("{} does not run, so there is nothing to watch", before.vm.name);
            ApiError::new(ErrorCode::Conflict, message).remedy("start it: godwit vm start")
        })?;
        let destination = to.clone();
        let there = manager.store.read(move |tx| Ok(tx.host(&destination)?)).await?;
        let moving = there.map(|there| before.moving(&there, &wish)).filter(|_| wish.move_disks.is_some());
        let disks = held(manager, &from.name, before.vm.id, moving.as_ref()).await?;
        foresee(manager, before.vm.id, (&from.name, &to), (&budget, disks), sample_ms).await
    };
    let (probe, foreseen) =
        tokio::join!(preflight::ask(manager, &vm, Some(&to), wish.move_disks.as_ref()), foreseen);
    let probe = probe?;
    let (destination, wish) = (to.clone(), wish.clone());
    let judged = manager.store.read(move |tx| {
        let situation = Situation::of(tx, &vm)?;
        let host = tx.host(&destination)?.ok_or_else(|| unknown_host(destination.as_str()))?;
        Ok((situation.judge(&host, &probe, &wish), situation))
    });
    let (check, situation) = judged.await?;
    let (forecast, error) = match foreseen {
        Ok(forecast) => (Some(forecast), None),
        Err(error) => (None, Some(error)),
    };
    let from = situation.owned.map(|owned| owned.owner);
    Ok(MigrationPlan { vm: situation.vm.name, from, check, budget, forecast, error })
}

/// What the disks hold that move along.
async fn held(
    manager: &Manager,
    host: &HostName,
    vm: VmId,
    moving: Option<&Moving>,
) -> Result<Bytes, ApiError> {
    let Some(moving) = moving.filter(|moving| !moving.disks.is_empty()) else { return Ok(Bytes(0)) };
    let agent = manager.agent(host).await?.with_timeout(ASK_TIMEOUT);
    let guest: GuestFacts = agent.get(&format!("/v1/vms/{vm}/guest")).await?;
    let disk = |index: &u32| guest.disks.get(*index as usize).map_or(0, |disk| disk.allocated.0);
    Ok(Bytes(moving.disks.iter().map(disk).sum()))
}

/// Watches a running VM for up to `sample_ms` milliseconds, and says what its move would cost, with disks that hold so much.
pub(crate) async fn foresee(
    manager: &Manager,
    vm: VmId,
    (from, to): (&HostName, &HostName),
    (budget, disks): (&Budget, Bytes),
    sample_ms: u32,
) -> Result<Forecast, ApiError> {
    let timeout = ASK_TIMEOUT + Duration::from_millis(sample_ms.into());
    let agent = manager.agent(from).await?.with_timeout(timeout);
    let survey: Survey = agent.post(&format!("/v1/vms/{vm}/survey"), &AskSurvey { sample_ms }).await?;
    let (from, to, budget) = (from.clone(), to.clone(), budget.clone());
    let plain = budget.plain;
    let known = manager.store.read(move |tx| {
        let kind = link::Kind { plain, returns: is_kept(tx, vm, &to)? };
        let link = link::expect((&from, &to), slower_interface(tx, [&from, &to])?, kind, &tx.past_moves()?);
        Ok((link, spare_cores(tx, &from)?))
    });
    let (link, spare_cores): (Link, i64) = known.await?;
    let work = move || {
        planner::forecast(&Circumstances {
            survey: &survey,
            disks,
            link: &link,
            spare_cores,
            budget: &budget,
        })
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(forecast) => forecast.map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string())),
        Err(error) => Err(ApiError::new(ErrorCode::Internal, format!("the planner failed: {error}"))),
    }
}

/// The speed of the slower of the hosts' interfaces in bits per second, if both say it.
fn slower_interface(tx: &Tx<'_>, hosts: [&HostName; 2]) -> Result<Option<u64>, StoreError> {
    let mut slower = Some(u64::MAX);
    for host in hosts {
        let speed = tx.host(host)?.and_then(|host| host.facts.migration.link_bits_per_s);
        slower = slower.zip(speed).map(|(slower, speed)| slower.min(speed));
    }
    Ok(slower)
}

/// Whether a host has kept memory of a VM that was there before.
fn is_kept(tx: &Tx<'_>, vm: VmId, host: &HostName) -> Result<bool, StoreError> {
    Ok(tx.host(host)?.is_some_and(|host| host.facts.kept.iter().any(|kept| kept.vm == vm)))
}

/// Cores of a host that are left if all vCPUs on it run.
fn spare_cores(tx: &Tx<'_>, host: &HostName) -> Result<i64, StoreError> {
    let Some(host) = tx.host(host)? else { return Ok(0) };
    let mut spare = i64::from(host.facts.cpus);
    for local in
        host.vms.iter().filter(|local| matches!(local.state, LocalState::Running | LocalState::Outgoing))
    {
        let vcpus = tx.vm(&local.id.to_string())?.map_or(0, |vm| vm.spec.vcpus);
        spare -= i64::from(vcpus);
    }
    Ok(spare)
}
