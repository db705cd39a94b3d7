//! What follows from a host's report: which VMs run, which ended, and which run where they must not.
//!
//! A report may be older than what the manager has just recorded, so what contradicts the records counts only when
//! two consecutive reports say it; the second was taken after the first had been answered.

use std::collections::BTreeMap;

use godwit_types::agent::{Fence, Leftover, LocalState, LocalVm};
use godwit_types::host::{HostReport, StandbyPhase};
use godwit_types::ownership::Ownership;
use godwit_types::task::TaskState;
use godwit_types::{ApiError, MigrationId, VmId};

use crate::arbiter::MigrationState;
use crate::clock::now_unix_ms;
use crate::news::{News, REPORTS_BELIEVED, news};
use crate::store::{HostRow, Left, NewEvent, Power, StorageState, StoreError, Tx, VmRow};
use crate::tasks::Word;

/// What the host that has just reported must be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Machines that wait there for migrations that were aborted: the host was out of reach then, or had not built them
    /// yet.
    pub(crate) discard: Vec<(VmId, MigrationId)>,
    /// Moves of storage that it does not know to be decided.
    pub(crate) storage: Vec<(VmId, MigrationId, Word)>,
    /// Copies that were left behind when the VM went to another owner.
    pub(crate) fence: Vec<(VmId, Fence)>,
    /// VMs of which it keeps memory, and that are no more.
    pub(crate) forget: Vec<VmId>,
    /// Images of VMs that run elsewhere, to where these have moved with their disks.
    pub(crate) remove: Vec<Left>,
}

/// Records `report`: the host's facts, and what it says about VMs.
pub(crate) fn record(tx: &Tx<'_>, report: HostReport) -> Result<Orders, ApiError> {
    let mut orders = Orders::default();
    for Leftover { vm, migration } in &report.leftovers {
        let storage = tx.storage_move(*migration)?.filter(|m| m.host == report.name);
        match storage.map(|m| m.state) {
            Some(StorageState::Aborted) => orders.storage.push((*vm, *migration, Word::Cancel)),
            // Whoever has changed the record tells of it, if that is still under way.
            Some(StorageState::Switched) if is_left_alone(tx, *vm)? => {
                orders.storage.push((*vm, *migration, Word::Switch));
            }
            _ => {}
        }
        // The files of one that was committed are the VM's own, and of one that is not known nobody can tell.
        if tx.migration(*migration)?.is_some_and(|m| m.state == MigrationState::Aborted) {
            orders.discard.push((*vm, *migration));
        }
    }
    for left in tx.left_at(&report.name)? {
        // Of disks that the host does not know to have moved, it still uses the old images.
        let is_told = report.leftovers.iter().all(|leftover| leftover.vm != left.vm);
        let is_spare = left.at_rest || is_seen_running(tx, left.vm)?;
        if is_told && is_spare && is_left_alone(tx, left.vm)? {
            orders.remove.push(left);
        }
    }
    let known = tx.host(&report.name)?;
    announce(tx, known.as_ref(), &report)?;
    let before = known.map(|host| host.strays).unwrap_or_default();
    let strays = strays(tx, &report, before, &mut orders.fence)?;
    let vms = tx.vms()?;
    let kept = report.facts.kept.iter().map(|kept| kept.vm);
    orders.forget = kept.filter(|kept| vms.iter().all(|vm| vm.id != *kept)).collect();
    let now = now_unix_ms();
    tx.put_host(&HostRow {
        name: report.name.clone(),
        agent: report.agent,
        clock_skew_ms: report.facts.clock_unix_ms.cast_signed().wrapping_sub(now.cast_signed()),
        facts: report.facts,
        vms: report.vms.clone(),
        strays,
        up: true,
        last_seen_unix_ms: now,
        maintenance: None,
        standby: None,
    })?;
    for vm in vms {
        if let Some((owned, missing)) = tx.ownership(vm.id)?
            && owned.owner == report.name
            && is_left_alone(tx, vm.id)?
        {
            let local = report.vms.iter().find(|local| local.id == vm.id && local.epoch == owned.epoch);
            let news = news(vm.power, owned.claimed, missing, local.map(|local| local.state));
            apply(tx, &vm, &owned, news, local.and_then(|local| local.detail.as_deref()))?;
        }
    }
    for local in
        report.vms.iter().filter(|local| matches!(local.state, LocalState::Incoming | LocalState::Prepared))
    {
        let aborted = tx.aborted_migrations(local.id, &report.name, local.epoch)?;
        orders.discard.extend(aborted.into_iter().map(|migration| (local.id, migration)));
    }
    Ok(orders)
}

/// Whether its owner is known to run the VM.
fn is_seen_running(tx: &Tx<'_>, vm: VmId) -> Result<bool, StoreError> {
    let runs = tx.vm(&vm.to_string())?.is_some_and(|row| row.power == Power::Running);
    Ok(runs && tx.ownership(vm)?.is_some_and(|(owned, _)| owned.claimed))
}

/// Whether no task does anything with the VM now.
fn is_left_alone(tx: &Tx<'_>, vm: VmId) -> Result<bool, StoreError> {
    Ok(tx.open_task(vm)?.is_none_or(|task| task.state == TaskState::Waiting))
}

/// Tells that a host joined, came back or changed its address.
fn announce(tx: &Tx<'_>, known: Option<&HostRow>, report: &HostReport) -> Result<(), StoreError> {
    let name = &report.name;
    let standby = known.and_then(|host| host.standby).filter(|standby| standby.phase == StandbyPhase::Off);
    if standby.is_some() {
        tx.end_standby(name)?;
        let message = format!("{name} was switched on, though nobody had woken it here, and takes VMs");
        return tx.add_event(NewEvent::new("host.left_standby", message).host(name));
    }
    let event = match known {
        None => NewEvent::new(
            "host.joined",
            format!("{name} joined the cluster, its agent is at {}", report.agent),
        ),
        Some(host) if !host.up => NewEvent::new("host.up", format!("{name} is heard from again")),
        Some(host) if host.agent != report.agent => {
            let (old, new) = (host.agent, report.agent);
            NewEvent::new("host.moved", format!("the agent of {name} was at {old} and is at {new} now"))
        }
        Some(_) => return Ok(()),
    };
    tx.add_event(event.host(name))
}

fn apply(
    tx: &Tx<'_>,
    vm: &VmRow,
    owned: &Ownership,
    news: News,
    detail: Option<&str>,
) -> Result<(), StoreError> {
    let (name, host) = (&vm.name, &owned.owner);
    let tell = |kind, message: String| tx.add_event(NewEvent::new(kind, message).vm(name).host(host));
    match news {
        News::AsKnown => tx.set_missing_reports(vm.id, 0),
        News::Runs => {
            tx.set_power(vm.id, Power::Running)?;
            tx.put_ownership(&Ownership { claimed: true, ..owned.clone() })?;
            tell("vm.running", format!("{name} runs on {host}, as {host} reports"))
        }
        News::Stopped => {
            tx.set_power(vm.id, Power::Stopped)?;
            tell("vm.stopped", format!("{name} shut itself down on {host}"))
        }
        News::Crashed => {
            tx.set_power(vm.id, Power::Crashed)?;
            let why = detail.unwrap_or("its process ended by itself; see its log there");
            tell("vm.crashed", format!("{name} crashed on {host}: {why}"))
        }
        News::Missing(count) if count < REPORTS_BELIEVED => tx.set_missing_reports(vm.id, count),
        News::Missing(_) => {
            tx.set_missing_reports(vm.id, 0)?;
            tx.set_power(vm.id, Power::Crashed)?;
            tell(
                "vm.crashed",
                format!("{name} is gone from {host}, which owns it; the host may have been restarted"),
            )
        }
    }
}

/// Counts the reports in which the host runs VMs that it does not own, and tells of each once. One that has been left
/// behind is to be fenced, unless a task of the VM is still under way.
fn strays(
    tx: &Tx<'_>,
    report: &HostReport,
    before: BTreeMap<VmId, u32>,
    fence: &mut Vec<(VmId, Fence)>,
) -> Result<BTreeMap<VmId, u32>, StoreError> {
    let mut strays = BTreeMap::new();
    for local in report.vms.iter().filter(|l| matches!(l.state, LocalState::Running | LocalState::Outgoing)) {
        let owned = tx.ownership(local.id)?.map(|(owned, _)| owned);
        if owned.as_ref().is_some_and(|owned| owned.owner == report.name && owned.epoch == local.epoch) {
            continue;
        }
        let count = before.get(&local.id).map_or(1, |count| count.saturating_add(1));
        let newer = owned.as_ref().filter(|owned| owned.epoch > local.epoch);
        if let Some(owned) = newer
            && count >= REPORTS_BELIEVED
            && is_left_alone(tx, local.id)?
        {
            fence.push((local.id, Fence { owner: owned.owner.clone(), epoch: owned.epoch }));
        }
        if count == REPORTS_BELIEVED {
            let event = stray_event(report, local, owned.as_ref(), newer.is_some());
            tracing::error!("{}", event.message());
            tx.add_event(event)?;
        }
        strays.insert(local.id, count);
    }
    Ok(strays)
}

fn stray_event(report: &HostReport, local: &LocalVm, owned: Option<&Ownership>, is_fenced: bool) -> NewEvent {
    let (host, name, epoch) = (&report.name, &local.name, local.epoch);
    let rightful = match owned {
        Some(owned) => format!("{} owns it at epoch {}", owned.owner, owned.epoch),
        None => "the manager knows no such VM".to_owned(),
    };
    let what = if is_fenced {
        format!("the copy on {host} was left behind, and is ended")
    } else {
        format!("find out why, and end the process of VM {} on {host}", local.id)
    };
    let message = format!("{host} runs {name} at epoch {epoch}, but {rightful}; {what}");
    NewEvent::new("vm.stray", message).vm(name).host(host)
}
