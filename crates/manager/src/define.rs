//! Defining a VM, and forgetting it.

use godwit_types::vm::{CreateVm, MacAddress, Vm, VmSpec};
use godwit_types::{ApiError, ErrorCode, VmId};
use uuid::Uuid;

use crate::manager::unknown_vm;
use crate::rulebook;
use crate::store::{NewEvent, Power, Tx, VmRow};

/// Defines a VM with a new id, and with MAC addresses and the cluster's CPU where the specification leaves them open.
pub(crate) fn create(tx: &Tx<'_>, asked: CreateVm) -> Result<Vm, ApiError> {
    let CreateVm { name, mut spec } = asked;
    spec.validate().map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    if tx.vm(name.as_str())?.is_some() {
        let error = ApiError::new(ErrorCode::Conflict, format!("there is a VM '{name}' already"));
        return Err(error.remedy("choose another name"));
    }
    spec.cpu = rulebook::cpu_baseline::resolved(tx, spec.cpu)?;
    let id = VmId(Uuid::new_v4());
    for (index, nic) in spec.nics.iter_mut().enumerate() {
        nic.mac.get_or_insert_with(|| mac_address(id, index));
    }
    require_own_macs(tx, &spec)?;
    let row = VmRow { id, name, spec, power: Power::Stopped, last_event: None };
    tx.add_vm(&row)?;
    tx.add_event(NewEvent::new("vm.created", format!("{} was defined", row.name)).vm(&row.name))?;
    let row = tx.vm(&id.to_string())?.ok_or_else(|| unknown_vm(row.name.as_str()))?;
    Ok(tx.shown_vm(row)?)
}

/// Forgets a VM that does not run and that no task is busy with. Rules are about it no more.
pub(crate) fn remove(tx: &Tx<'_>, vm: &str) -> Result<(), ApiError> {
    let vm = tx.vm(vm)?.ok_or_else(|| unknown_vm(vm))?;
    let name = &vm.name;
    let busy = tx.open_task(vm.id)?;
    if vm.power == Power::Running || busy.is_some() {
        let error = ApiError::new(ErrorCode::Conflict, format!("{name} is not stopped"));
        return Err(error.remedy(format!("stop it first: godwit vm stop {name}")));
    }
    tx.add_event(NewEvent::new("vm.deleted", format!("{name} was forgotten; its disks stay")).vm(name))?;
    rulebook::rules::leave(tx, name)?;
    Ok(tx.remove_vm(vm.id)?)
}

/// Two cards with one address in one network would take each other's traffic.
fn require_own_macs(tx: &Tx<'_>, spec: &VmSpec) -> Result<(), ApiError> {
    let others = tx.vms()?;
    let taken = others.iter().flat_map(|vm| vm.spec.nics.iter().map(move |nic| (vm.name.as_str(), nic)));
    let mine = spec.nics.iter().map(|nic| ("this VM itself", nic));
    let all: Vec<_> = taken.chain(mine).collect();
    for (index, nic) in spec.nics.iter().enumerate() {
        let before = &all[..all.len() - spec.nics.len() + index];
        if let Some((name, _)) =
            before.iter().find(|(_, other)| other.mac == nic.mac && other.network == nic.network)
        {
            let mac = nic.mac.map(|mac| mac.to_string()).unwrap_or_default();
            let message =
                format!("the MAC address {mac} is taken in the network '{}' by {name}", nic.network);
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .remedy("leave the address out to have one chosen"));
        }
    }
    Ok(())
}

/// A locally administered unicast address that follows from the VM and the card's place in it.
fn mac_address(vm: VmId, index: usize) -> MacAddress {
    // FNV-1a, 64 bits: spreads both over all the bits; any hash would do.
    let input = vm.0.as_bytes().iter().copied().chain((index as u64).to_le_bytes());
    let hash = input.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, f, ..] = hash.to_be_bytes();
    MacAddress([a & !0b11 | 0b10, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn chosen_addresses_are_local_unicast_stable_and_differ() {
        let vms = [VmId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2))];
        let all: Vec<MacAddress> =
            vms.iter().flat_map(|vm| (0..8).map(|index| mac_address(*vm, index))).collect();
        assert!(all.iter().all(|mac| mac.0[0] & 0b11 == 0b10), "{all:?}");
        assert_eq!(all.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), 16);
        assert_eq!(mac_address(vms[0], 3), all[3]);
    }
}
