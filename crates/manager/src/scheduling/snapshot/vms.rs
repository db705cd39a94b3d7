//! VMs as the scheduler is shown them: what they want, what they need, and why they cannot be moved now.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use godwit_scheduler::PerResource;
use godwit_scheduler::policy::Automation;
use godwit_scheduler::record::{LeftAlone, StepRecord, StepState};
use godwit_scheduler::settings::VmSettings;
use godwit_scheduler::snapshot::{LATELY_MS, Needs, RECENT_SLOTS, SLOT_MS, Vm, Writes};
use godwit_types::forecast::Forecast;
use godwit_types::ownership::Ownership;
use godwit_types::task::{Task, TaskKind};
use godwit_types::usage::VmUsage;
use godwit_types::{HostName, VmId, VmName};

use super::hosts::{Kinds, cpu_mhz};
use super::inventory::reported;
use super::{Inventory, bound_for};
use crate::fit;
use crate::store::{HostRow, StoreError, Tx, VmRow};
use crate::tasks::busy;

const HOUR_MS: u64 = 60 * 60_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// What is known of VMs beside their own rows.
pub(super) struct Circumstances {
    busy: BTreeMap<VmId, Task>,
    bound_for: BTreeMap<VmId, HostName>,
    left_alone: BTreeMap<VmName, String>,
    /// VMs that people have had moved, and that wait for other steps: by name, with the decision.
    applied: BTreeMap<VmName, u64>,
    forecasts: BTreeMap<VmId, Forecast>,
    moved: BTreeMap<VmId, Vec<u64>>,
    /// The most that they wanted a day ago, in the hour that came then.
    expected: BTreeMap<VmId, PerResource<u64>>,
    /// The most that they have wanted lately.
    lately: BTreeMap<VmId, PerResource<u64>>,
    /// CPU, slot by slot, where power is managed: of the last hour, and of the one that comes as it was a day ago.
    recent: BTreeMap<VmId, Vec<u64>>,
    ahead: BTreeMap<VmId, Vec<u64>>,
}

impl Circumstances {
    pub(super) fn of(tx: &Tx<'_>, alone: &[LeftAlone], saves: bool, now: u64) -> Result<Self, StoreError> {
        let open = tx.open_tasks()?;
        let alone = alone.iter().map(|alone| (alone.vm.clone(), alone.reason.clone()));
        let mut moved = BTreeMap::<VmId, Vec<u64>>::new();
        for (vm, unix_ms) in tx.moves_since(now.saturating_sub(DAY_MS))? {
            moved.entry(vm).or_default().push(unix_ms);
        }
        let yesterday = now.saturating_sub(DAY_MS);
        let hour = yesterday - yesterday % SLOT_MS..yesterday + HOUR_MS;
        let series = |slots: Range<u64>| if saves { tx.cpu_demand(slots) } else { Ok(BTreeMap::new()) };
        Ok(Self {
            bound_for: bound_for(&open),
            busy: open.into_iter().filter_map(|task| Some((task.vm?, task))).collect(),
            left_alone: alone.collect(),
            applied: applied(tx)?,
            forecasts: tx.last_forecasts()?,
            moved,
            lately: tx.peak_demand(now.saturating_sub(LATELY_MS)..now.saturating_add(1))?,
            recent: series(
                (now - now % SLOT_MS).saturating_sub((RECENT_SLOTS as u64 - 1) * SLOT_MS)
                    ..now.saturating_add(1),
            )?,
            ahead: series(hour.clone())?,
            expected: tx.peak_demand(hour)?,
        })
    }

    /// Whether the VM is being started.
    pub(super) fn starts(&self, vm: &VmRow) -> bool {
        self.busy.get(&vm.id).is_some_and(|task| matches!(task.kind, TaskKind::StartVm { .. }))
    }

    fn pinned(&self, vm: &VmRow, owned: &Ownership, source: &HostRow) -> Option<String> {
        if let Some(task) = self.busy.get(&vm.id) {
            return Some(busy(task).0);
        }
        if let Some(decision) = self.applied.get(&vm.name) {
            return Some(format!("it is to be moved as decision {decision} says, which was applied"));
        }
        if !source.up {
            return Some(format!("{} is not heard from", source.name));
        }
        if !owned.claimed {
            return Some(format!("{} has not confirmed that it runs it", source.name));
        }
        self.left_alone.get(&vm.name).cloned()
    }
}

fn applied(tx: &Tx<'_>) -> Result<BTreeMap<VmName, u64>, StoreError> {
    let mut applied = BTreeMap::new();
    for record in tx.open_decisions()? {
        let waits = |step: &&StepRecord| step.applied && step.state == StepState::Approved;
        let vms = record.steps.iter().filter(waits).filter_map(|step| step.step.action.vm());
        applied.extend(vms.map(|vm| (vm.clone(), record.id)));
    }
    Ok(applied)
}

/// A VM that runs, or is being started.
pub(super) fn running(
    row: &VmRow,
    (owned, source): (&Ownership, &HostRow),
    kinds: &Kinds,
    known: &Circumstances,
) -> Vm {
    let local = reported(row, source);
    let used = local.and_then(|local| local.usage.as_ref());
    let host = known.bound_for.get(&row.id).unwrap_or(&source.name);
    let demand = used.map(|used| demand(row, used, cpu_mhz(source)));
    Vm {
        host: Some(host.clone()),
        demand: demand.unwrap_or_default(),
        expected: known.expected.get(&row.id).copied().unwrap_or_default(),
        demand_long: known.lately.get(&row.id).copied().unwrap_or_default(),
        recent_mhz: known.recent.get(&row.id).cloned().unwrap_or_default(),
        ahead_mhz: known.ahead.get(&row.id).cloned().unwrap_or_default(),
        measured_unix_ms: used.map(|_| source.last_seen_unix_ms),
        needs: Needs {
            cpu_classes: Some(kinds.reachable(&source.name, &row.spec)),
            ..needs(row, Some(source), kinds)
        },
        disks: local.map(|local| kinds.disks(&row.spec, source, &local.disks)).unwrap_or_default(),
        pinned: known.pinned(row, owned, source),
        writes: writes(row, used, known.forecasts.get(&row.id)),
        moved_unix_ms: known.moved.get(&row.id).cloned().unwrap_or_default(),
        ..unknown(row)
    }
}

/// A VM that does not run; the disks that it writes are where the host `last` has them.
pub(super) fn to_be_placed(row: &VmRow, last: Option<&HostRow>, kinds: &Kinds) -> Vm {
    Vm {
        needs: Needs { cpu_classes: Some(kinds.startable(&row.spec)), ..needs(row, last, kinds) },
        writes: writes(row, None, None),
        ..unknown(row)
    }
}

/// The VM as people want it.
pub(super) fn with_settings(vm: Vm, settings: VmSettings) -> Vm {
    let VmSettings { automation, pool, controls } = settings;
    Vm { automation, pool, controls, ..vm }
}

/// What can be said of any VM.
fn unknown(row: &VmRow) -> Vm {
    Vm {
        name: row.name.clone(),
        host: None,
        pool: None,
        controls: PerResource::default(),
        demand: PerResource::default(),
        expected: PerResource::default(),
        demand_long: PerResource::default(),
        recent_mhz: Vec::new(),
        ahead_mhz: Vec::new(),
        measured_unix_ms: None,
        vcpus: row.spec.vcpus.into(),
        memory: fit::needed_memory(&row.spec).0,
        needs: Needs::default(),
        disks: Vec::new(),
        pinned: None,
        automation: Automation::Inherit,
        writes: Writes::default(),
        moved_unix_ms: Vec::new(),
    }
}

fn needs(row: &VmRow, host: Option<&HostRow>, kinds: &Kinds) -> Needs {
    Needs {
        cpu_classes: None,
        networks: fit::needed_networks(&row.spec).into_iter().cloned().collect::<BTreeSet<_>>(),
        datastores: kinds.needed_datastores(&row.spec, host),
    }
}

/// What every VM that runs wants now, for the record of it.
pub(crate) fn demands(inventory: &Inventory) -> BTreeMap<VmId, PerResource<u64>> {
    let heard = inventory.running().filter(|(_, host)| host.up);
    let wants = |(row, host): (&VmRow, &HostRow)| {
        let used = reported(row, host)?.usage.as_ref()?;
        Some((row.id, demand(row, used, cpu_mhz(host))))
    };
    heard.filter_map(wants).collect()
}

/// What a VM would use if nothing held it back. For CPU, that is what it used, and the part of the time for which it waited in
/// which it would have run: run + run * wait / (run + sleep), after Gulati et al., VMware Technical Journal 1(1), 2012.
fn demand(row: &VmRow, used: &VmUsage, mhz: u32) -> PerResource<u64> {
    let [run, wait, all] = [used.cpu_run_permille, used.cpu_wait_permille, u32::from(row.spec.vcpus) * 1000];
    let [run, wait, all] = [run, wait, all].map(u64::from);
    let run_and_sleep = all.saturating_sub(wait).max(run);
    let would_have_run = (run * wait).checked_div(run_and_sleep).unwrap_or(wait);
    PerResource {
        cpu: (run + would_have_run).min(all) * u64::from(mhz) / 1000,
        memory: used.memory.0,
        network: used.network_bytes_per_s,
        storage: used.storage_ops_per_s,
    }
}

/// What was seen when it last moved, or else that all of its memory is touched and none is written.
fn writes(row: &VmRow, used: Option<&VmUsage>, last: Option<&Forecast>) -> Writes {
    let held = used.map_or(row.spec.memory.0, |used| used.memory.0.min(row.spec.memory.0));
    match last.map(|last| &last.basis) {
        Some(basis) => Writes {
            used: held,
            hot: basis.written.0.min(held),
            bytes_per_s: basis.fresh_bytes_per_s.max(0.0) as u64,
        },
        None => Writes { used: held, hot: 0, bytes_per_s: 0 },
    }
}

#[cfg(test)]
mod tests {
    use godwit_types::Bytes;

    use super::*;
    use crate::fixtures::vm;

    fn used(run: u32, wait: u32) -> VmUsage {
        VmUsage {
            over_ms: 60_000,
            cpu_run_permille: run,
            cpu_wait_permille: wait,
            memory: Bytes::mib(64),
            network_bytes_per_s: 0,
            storage_ops_per_s: 0,
        }
    }

    #[test]
    fn a_vm_that_waits_wants_what_it_would_have_run_meanwhile_and_never_more_than_its_vcpus() {
        let cpu = |run, wait| demand(&vm("web1"), &used(run, wait), 2_000).cpu;
        assert_eq!(cpu(300, 0), 600, "nothing held it back");
        assert_eq!(cpu(500, 500), 2_000, "it ran whenever it could");
        assert_eq!(cpu(250, 500), 1_000, "asleep for half of the time that it did not wait");
        assert_eq!(cpu(1_400, 900), 2_000, "it has one vCPU, whatever its other threads do");
    }
}
