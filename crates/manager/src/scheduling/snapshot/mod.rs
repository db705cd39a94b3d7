//! The cluster as the scheduler is shown it: from what hosts reported, what is recorded, and what is under way.
//!
//! A VM that is on its way to a host is shown there, and held fast; the host that it leaves has its memory until it is gone. So
//! a plan that is made in the middle of others' moves is about the cluster that these leave behind.

mod hosts;
mod inventory;
mod left_alone;
mod vms;

use std::collections::BTreeMap;

use godwit_scheduler::record::LeftAlone;
use godwit_scheduler::rules::{Conflict, conflicts};
use godwit_scheduler::snapshot::{Host, Snapshot};
use godwit_types::task::{Task, TaskKind};
use godwit_types::{HostName, Name, VmId};

pub(super) use inventory::Inventory;
pub(super) use left_alone::left_alone;
pub(super) use vms::demands;

use self::hosts::Kinds;
use self::vms::Circumstances;
use super::Terms;
use crate::store::{HostRow, Power, StoreError, Tx, VmRow};

/// A host that could not be switched off or on is not switched for so long, in milliseconds.
const SWITCH_AGAIN_MS: u64 = 5 * 60_000;

/// The cluster at the time `now`, in milliseconds since 1970, with the VM `placing`, which does not run, as one to be placed.
pub(super) fn snapshot(
    tx: &Tx<'_>,
    terms: &Terms,
    placing: Option<&VmRow>,
    now: u64,
) -> Result<Snapshot, StoreError> {
    let inventory = Inventory::of(tx)?;
    let alone = left_alone(tx, terms, &inventory, now)?;
    of_inventory(tx, terms, &inventory, &alone, placing, now)
}

/// The same, with what is known already of the cluster, and of the VMs that are left alone.
pub(super) fn of_inventory(
    tx: &Tx<'_>,
    terms: &Terms,
    inventory: &Inventory,
    alone: &[LeftAlone],
    placing: Option<&VmRow>,
    now: u64,
) -> Result<Snapshot, StoreError> {
    let kinds = Kinds::of(&inventory.hosts);
    let circumstances = Circumstances::of(tx, alone, terms.policy.power.enabled, now)?;
    let (woken, stuck) = (tx.last_wakes()?, tx.not_switched_since(now.saturating_sub(SWITCH_AGAIN_MS))?);
    let mut hosts = shown_hosts(tx, inventory, &kinds, &woken)?;
    // Else they would be tried again at once, and again.
    hosts.iter_mut().filter(|host| stuck.contains(&host.name)).for_each(|host| host.power = None);
    let mut settings = tx.all_vm_settings()?;
    let mut vms = Vec::new();
    let there = |row: &&VmRow| row.power == Power::Running || circumstances.starts(row);
    for row in inventory.vms.iter().filter(there) {
        let Some((owned, source)) = inventory.owner(row) else { continue };
        let vm = vms::running(row, (owned, source), &kinds, &circumstances);
        let vm = vms::with_settings(vm, settings.remove(&row.id).unwrap_or_default());
        if vm.host.as_ref() != Some(&source.name)
            && let Some(left) = hosts.iter_mut().find(|host| host.name == source.name)
        {
            left.capacity.memory = left.capacity.memory.saturating_sub(vm.memory);
        }
        vms.push(vm);
    }
    if let Some(row) = placing {
        let last = inventory.owner(row).map(|(_, last)| last);
        let settings = settings.remove(&row.id).unwrap_or_default();
        vms.push(vms::with_settings(vms::to_be_placed(row, last, &kinds), settings));
    }
    Ok(Snapshot { at_unix_ms: now, hosts, vms, pools: tx.pools()?, rules: tx.rules()? })
}

/// The hosts, each last woken at the time `woken` says.
fn shown_hosts(
    tx: &Tx<'_>,
    inventory: &Inventory,
    kinds: &Kinds,
    woken: &BTreeMap<HostName, u64>,
) -> Result<Vec<Host>, StoreError> {
    let mut settings = tx.all_host_settings()?;
    let show = |row: &HostRow| {
        let settings = settings.remove(&row.name).unwrap_or_default();
        hosts::shown(row, settings, kinds, woken.get(&row.name).copied())
    };
    Ok(inventory.hosts.iter().map(show).collect())
}

/// Must-rules that could all be kept without this one, whoever runs now.
pub(crate) fn contradictions(tx: &Tx<'_>, rule: &Name) -> Result<Vec<Conflict>, StoreError> {
    let inventory = Inventory::of(tx)?;
    let kinds = Kinds::of(&inventory.hosts);
    let hosts = shown_hosts(tx, &inventory, &kinds, &BTreeMap::new())?;
    let vms: Vec<_> = inventory.vms.iter().map(|row| vms::to_be_placed(row, None, &kinds)).collect();
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

#[cfg(test)]
#[path = "../snapshot_tests.rs"]
mod tests;
