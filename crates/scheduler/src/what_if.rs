//! A snapshot as it would be if something were otherwise. A plan for it, beside the plan for what is, says what that would change.

use std::collections::BTreeSet;

use godwit_types::{HostName, Name, VmName};
use serde::{Deserialize, Serialize};

use crate::resource::PerResource;
use crate::snapshot::{HostState, Snapshot};

/// What is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// So many hosts more that are like one that is there, without its VMs, and on.
    AddHosts { like: HostName, count: u32 },
    /// A host is gone. VMs that run on it are to be placed, and those that are pinned to it can be no longer.
    LoseHost { host: HostName },
    /// A host is to be emptied.
    Maintenance { host: HostName },
    /// So many VMs more that are like one that is there, and are to be placed.
    AddVms { like: VmName, count: u32 },
    /// VMs want so many thousandths of what they want now; all of them if none is named.
    ScaleDemand {
        permille: u32,
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        vms: BTreeSet<VmName>,
    },
}

/// Why there is no such snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    #[error("there is no host '{0}': name one of the cluster's")]
    NoHost(HostName),
    #[error("there is no VM '{0}': name one of the cluster's")]
    NoVm(VmName),
    #[error("{0} at once are too many: ask for at most {ADDED_MAX}")]
    TooMany(u32),
}

/// Most hosts or VMs that one change adds.
pub const ADDED_MAX: u32 = 10_000;

/// The snapshot with all changes, one after the other.
pub fn apply(snapshot: &Snapshot, changes: &[Change]) -> Result<Snapshot, WhatIfError> {
    let mut changed = snapshot.clone();
    changes.iter().try_for_each(|change| make(&mut changed, change))?;
    Ok(changed)
}

fn make(snapshot: &mut Snapshot, change: &Change) -> Result<(), WhatIfError> {
    match change {
        Change::AddHosts { like, count } => add_hosts(snapshot, like, *count),
        Change::AddVms { like, count } => add_vms(snapshot, like, *count),
        Change::LoseHost { host } => lose(snapshot, host),
        Change::Maintenance { host } => {
            let at = host_at(snapshot, host)?;
            snapshot.hosts[at].state = HostState::Maintenance;
            Ok(())
        }
        Change::ScaleDemand { permille, vms } => scale(snapshot, *permille, vms),
    }
}

fn add_hosts(snapshot: &mut Snapshot, like: &HostName, count: u32) -> Result<(), WhatIfError> {
    let host = snapshot.hosts[host_at(snapshot, like)?].clone();
    for name in fresh(like, count, |name| snapshot.hosts.iter().any(|host| host.name == *name))? {
        let mut added = host.clone();
        added.name = name;
        added.state = HostState::On;
        (added.since_unix_ms, added.seen_unix_ms) = (snapshot.at_unix_ms, snapshot.at_unix_ms);
        snapshot.hosts.push(added);
    }
    Ok(())
}

fn add_vms(snapshot: &mut Snapshot, like: &VmName, count: u32) -> Result<(), WhatIfError> {
    let vm = snapshot.vms[vm_at(snapshot, like)?].clone();
    for name in fresh(like, count, |name| snapshot.vms.iter().any(|vm| vm.name == *name))? {
        let mut added = vm.clone();
        (added.name, added.host, added.pinned) = (name, None, None);
        added.moved_unix_ms.clear();
        snapshot.vms.push(added);
    }
    Ok(())
}

fn lose(snapshot: &mut Snapshot, name: &HostName) -> Result<(), WhatIfError> {
    let at = host_at(snapshot, name)?;
    snapshot.hosts.remove(at);
    for vm in snapshot.vms.iter_mut().filter(|vm| vm.host.as_ref() == Some(name)) {
        (vm.host, vm.pinned) = (None, None);
    }
    Ok(())
}

fn scale(snapshot: &mut Snapshot, permille: u32, named: &BTreeSet<VmName>) -> Result<(), WhatIfError> {
    for name in named {
        vm_at(snapshot, name)?;
    }
    let times =
        |amount: u64| u64::try_from(u128::from(amount) * u128::from(permille) / 1000).unwrap_or(u64::MAX);
    let scaled = |amounts: PerResource<u64>| PerResource::from_fn(|resource| times(amounts[resource]));
    for vm in snapshot.vms.iter_mut().filter(|vm| named.is_empty() || named.contains(&vm.name)) {
        vm.demand = scaled(vm.demand);
        vm.expected = scaled(vm.expected);
        vm.demand_long = scaled(vm.demand_long);
        for mhz in vm.recent_mhz.iter_mut().chain(&mut vm.ahead_mhz) {
            *mhz = times(*mhz);
        }
    }
    Ok(())
}

/// What of a name is kept, so that a number fits behind it, in bytes.
const BEGINNING_BYTES_MAX: usize = 48;

/// Names that nobody has: that of the one they are like, and a number.
fn fresh(like: &Name, count: u32, taken: impl Fn(&Name) -> bool) -> Result<Vec<Name>, WhatIfError> {
    if count > ADDED_MAX {
        return Err(WhatIfError::TooMany(count));
    }
    let named = |number: u32| {
        // Names are ASCII.
        let beginning = &like.as_str()[..like.as_str().len().min(BEGINNING_BYTES_MAX)];
        format!("{beginning}-{number}").parse::<Name>().ok()
    };
    let free = (2..).filter_map(named).filter(|name| !taken(name));
    Ok(free.take(count as usize).collect())
}

fn host_at(snapshot: &Snapshot, name: &HostName) -> Result<usize, WhatIfError> {
    let at = snapshot.hosts.iter().position(|host| host.name == *name);
    at.ok_or_else(|| WhatIfError::NoHost(name.clone()))
}

fn vm_at(snapshot: &Snapshot, name: &VmName) -> Result<usize, WhatIfError> {
    let at = snapshot.vms.iter().position(|vm| vm.name == *name);
    at.ok_or_else(|| WhatIfError::NoVm(name.clone()))
}
