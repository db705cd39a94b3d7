//! The cluster as the scheduler is shown it: from what hosts reported, what is recorded, and what is under way.
//!
//! A VM that is on its way to a host is shown there, and held fast; the host that it leaves has its memory until it is gone. So
//! a plan that is made in the middle of others' moves is about the cluster that these leave behind.

mod hosts;
mod left_alone;
mod vms;

use std::collections::BTreeMap;

use godwit_scheduler::rules::{Conflict, conflicts};
use godwit_scheduler::snapshot::{Host, Snapshot};
use godwit_types::task::{Task, TaskKind};
use godwit_types::{HostName, Name, VmId};

pub(crate) use left_alone::left_alone;
pub(super) use vms::demands;

use self::hosts::Kinds;
use self::vms::Circumstances;
use super::Terms;
use crate::store::{HostRow, Power, StoreError, Tx, VmRow};

/// A host that could not be switched off or on is not switched for so long, in milliseconds.
const SWITCH_AGAIN_MS: u64 = 5 * 60_000;

/// The cluster at the time `now`, in milliseconds since 1970, with the VM `placing`, which does not run, as one to be placed.
pub(crate) fn snapshot(
    tx: &Tx<'_>,
    terms: &Terms,
    placing: Option<&VmRow>,
    now: u64,
) -> Result<Snapshot, StoreError> {
    let rows = tx.hosts()?;
    let kinds = Kinds::of(&rows);
    let circumstances = Circumstances::of(tx, terms, now)?;
    let settings = rows.iter().map(|row| tx.host_settings(&row.name));
    let settings = settings.collect::<Result<Vec<_>, _>>()?;
    let (woken, stuck) = (tx.last_wakes()?, tx.not_switched_since(now.saturating_sub(SWITCH_AGAIN_MS))?);
    let hosts = rows.iter().zip(settings).map(|(row, settings)| {
        let host = hosts::shown(row, settings, &kinds, woken.get(&row.name).copied());
        // Else it would be tried again at once, and again.
        let power = host.power.filter(|_| !stuck.contains(&row.name));
        Host { power, ..host }
    });
    let mut hosts: Vec<_> = hosts.collect();
    let mut vms = Vec::new();
    for row in tx.vms()?.iter().filter(|row| row.power == Power::Running || circumstances.starts(row)) {
        let Some((owned, _)) = tx.ownership(row.id)? else { continue };
        let Some(source) = rows.iter().find(|host| host.name == owned.owner) else { continue };
        let vm = vms::running(row, &owned, source, &kinds, &circumstances);
        let vm = vms::with_settings(vm, tx.vm_settings(row.id)?);
        if vm.host.as_ref() != Some(&source.name)
            && let Some(left) = hosts.iter_mut().find(|host| host.name == source.name)
        {
            left.capacity.memory = left.capacity.memory.saturating_sub(vm.memory);
        }
        vms.push(vm);
    }
    if let Some(row) = placing {
        let last = tx.ownership(row.id)?.map(|(owned, _)| owned.owner);
        let last = last.and_then(|last| rows.iter().find(|host| host.name == last));
        vms.push(vms::with_settings(vms::to_be_placed(row, last, &kinds), tx.vm_settings(row.id)?));
    }
    Ok(Snapshot { at_unix_ms: now, hosts, vms, pools: tx.pools()?, rules: tx.rules()? })
}

/// Must-rules that could all be kept without this one, whoever runs now.
pub(crate) fn contradictions(tx: &Tx<'_>, rule: &Name) -> Result<Vec<Conflict>, StoreError> {
    let rows = tx.hosts()?;
    let kinds = Kinds::of(&rows);
    let mut hosts = Vec::new();
    for row in &rows {
        hosts.push(hosts::shown(row, tx.host_settings(&row.name)?, &kinds, None));
    }
    let vms = tx.vms()?;
    let vms: Vec<_> = vms.iter().map(|row| vms::to_be_placed(row, None, &kinds)).collect();
    let mut rules = tx.rules()?;
    let mut found = conflicts(&hosts, &vms, &rules);
    rules.retain(|other| other.name != *rule);
    let without = conflicts(&hosts, &vms, &rules);
    found.retain(|conflict| !without.contains(conflict));
    Ok(found)
}

/// The host on which each VM will be once what is under way has ended.
fn bound_for(open: &[Task]) -> BTreeMap<VmId, HostName> {
    let bound = open.iter().filter_map(|task| match (&task.kind, task.vm) {
        (TaskKind::MigrateVm { to, .. }, Some(vm)) => Some((vm, to.clone())),
        _ => None,
    });
    bound.collect()
}

/// What a VM uses, as the host that runs it last reported.
fn usage<'a>(vm: &VmRow, host: &'a HostRow) -> Option<&'a godwit_types::usage::VmUsage> {
    host.vms.iter().find(|local| local.id == vm.id)?.usage.as_ref()
}

#[cfg(test)]
#[path = "../snapshot_tests.rs"]
mod tests;
