//! Whether pools and VMs are a tree, and their reservations can be honoured.

use godwit_scheduler::PerResource;
use godwit_scheduler::entitlement::{Capacity, Refusal, Tree, Vm};
use godwit_types::task::TaskKind;
use godwit_types::{ApiError, ErrorCode};

use super::{refusal, refuse};
use crate::store::{HostRow, Power, StoreError, Tx, VmRow};

/// Does `change`, unless pools and VMs are no tree afterwards, or a reservation that could be honoured before cannot any more.
/// What could not be honoured before, because a host was lost, stands in nobody's way.
pub(crate) fn admitted<T>(tx: &Tx<'_>, change: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
    let before = refusals(tx)?;
    let done = change()?;
    let worse = Refusal::worse(&before, refusals(tx)?);
    let found = worse.iter().map(|refusal| (refusal.to_string(), refusal.remedy().to_owned()));
    refuse(ErrorCode::Refused, found.collect())?;
    Ok(done)
}

/// The reservations that the hosts which are up cannot honour, of the pools and of the VMs that run.
fn refusals(tx: &Tx<'_>) -> Result<Vec<Refusal>, ApiError> {
    let (all, running) = claimants(tx)?;
    tree(tx, all)?;
    let hosts: Vec<_> = tx.hosts()?.iter().filter(|host| host.up).map(capacity).collect();
    let lost = tx.policy()?.failures_to_tolerate;
    let capacity = Capacity::without_largest(&hosts, usize::try_from(lost).unwrap_or(usize::MAX));
    Ok(tree(tx, running)?.refusals(&capacity))
}

fn tree(tx: &Tx<'_>, vms: Vec<Vm>) -> Result<Tree, ApiError> {
    Tree::new(tx.pools()?, vms).map_err(|findings| {
        let found = findings.iter().map(|finding| (finding.to_string(), finding.remedy().to_owned()));
        refusal(ErrorCode::Invalid, found.collect())
    })
}

/// All VMs, and of them those that run or are being started.
fn claimants(tx: &Tx<'_>) -> Result<(Vec<Vm>, Vec<Vm>), StoreError> {
    let (mut all, mut running) = (Vec::new(), Vec::new());
    for row in tx.vms()? {
        let settings = tx.vm_settings(row.id)?;
        let demand = PerResource::default();
        let vm = Vm { name: row.name.clone(), pool: settings.pool, controls: settings.controls, demand };
        if is_running(tx, &row)? {
            running.push(vm.clone());
        }
        all.push(vm);
    }
    Ok((all, running))
}

fn is_running(tx: &Tx<'_>, vm: &VmRow) -> Result<bool, StoreError> {
    let starts =
        || Ok(tx.open_task(vm.id)?.is_some_and(|task| matches!(task.kind, TaskKind::StartVm { .. })));
    if vm.power == Power::Running { Ok(true) } else { starts() }
}

/// What a host has; of what it does not tell, nobody is refused anything.
fn capacity(host: &HostRow) -> PerResource<u64> {
    let facts = &host.facts;
    let measured = facts.usage.map(|usage| u64::from(usage.cpu_mhz)).filter(|mhz| *mhz > 0);
    let tsc = || facts.vmm.as_ref().and_then(|vmm| vmm.cpu.tsc).map(|tsc| u64::from(tsc.khz) / 1000);
    let cpu = measured.or_else(tsc).map(|mhz| mhz.saturating_mul(facts.cpus.into()));
    let network = facts.migration.link_bits_per_s.map(|bits| bits / 8 * 2);
    PerResource {
        cpu: cpu.unwrap_or(u64::MAX),
        memory: facts.memory.0,
        network: network.unwrap_or(u64::MAX),
        storage: u64::MAX,
    }
}
