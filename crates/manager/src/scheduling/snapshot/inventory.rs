//! The hosts, the VMs, and which host runs which, as they are recorded: read once for all that a round wants to know of them.

use std::collections::BTreeMap;

use godwit_types::agent::LocalVm;
use godwit_types::ownership::Ownership;
use godwit_types::{HostName, VmId};

use crate::store::{HostRow, Power, StoreError, Tx, VmRow};

/// See the module.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// By name, as are the VMs.
    pub(super) hosts: Vec<HostRow>,
    pub(super) vms: Vec<VmRow>,
    owned: BTreeMap<VmId, Ownership>,
}

impl Inventory {
    pub(crate) fn of(tx: &Tx<'_>) -> Result<Self, StoreError> {
        Ok(Self { hosts: tx.hosts()?, vms: tx.vms()?, owned: tx.ownerships()? })
    }

    pub(super) fn host(&self, name: &HostName) -> Option<&HostRow> {
        let at = self.hosts.binary_search_by(|host| host.name.cmp(name)).ok()?;
        self.hosts.get(at)
    }

    /// Who owns a VM, or owned it last, and that host.
    pub(super) fn owner(&self, vm: &VmRow) -> Option<(&Ownership, &HostRow)> {
        let owned = self.owned.get(&vm.id)?;
        Some((owned, self.host(&owned.owner)?))
    }

    /// VMs that run as far as is known, each with the host that owns it.
    pub(super) fn running(&self) -> impl Iterator<Item = (&VmRow, &HostRow)> {
        let running = self.vms.iter().filter(|row| row.power == Power::Running);
        running.filter_map(|row| Some((row, self.owner(row)?.1)))
    }
}

/// A VM as that host last reported it.
pub(super) fn reported<'a>(vm: &VmRow, host: &'a HostRow) -> Option<&'a LocalVm> {
    host.vms.iter().find(|local| local.id == vm.id)
}
