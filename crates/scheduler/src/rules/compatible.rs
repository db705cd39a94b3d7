//! Whether a host is one for a VM at all, whatever else runs there.

use godwit_types::Name;

use crate::snapshot::{Host, HostState, Vm};

/// Everything that a VM needs and the host has not, in plain words; with disks along, if it may take them.
pub(crate) fn missing(host: &Host, vm: &Vm, takes_disks: bool) -> Vec<String> {
    let mut missing = Vec::new();
    if let Some(classes) = &vm.needs.cpu_classes {
        match &host.cpu_class {
            Some(class) if classes.contains(class) => {}
            Some(class) => missing.push(format!(
                "its CPU is of class '{class}', and the VM runs on {}",
                listed(classes.iter())
            )),
            None => missing.push("its CPU's class is not known".into()),
        }
    }
    let lacks = |what: &str, name: &Name| format!("it has no {what} '{name}'");
    missing.extend(vm.needs.networks.difference(&host.networks).map(|name| lacks("network", name)));
    for name in vm.needs.datastores.difference(&host.datastores) {
        match (can_be_brought(host, vm, name), takes_disks) {
            (true, true) => {}
            (true, false) => missing
                .push(format!("it does not reach '{name}', and disks stay unless --move-disks is given")),
            (false, _) => missing.push(lacks("datastore", name)),
        }
    }
    missing
}

/// Whether all that the VM has in a storage finds a datastore of the same name there.
fn can_be_brought(host: &Host, vm: &Vm, storage: &Name) -> bool {
    let mut there = vm.disks.iter().filter(|disk| disk.storage == *storage).peekable();
    there.peek().is_some() && there.all(|disk| host.rooms.contains_key(&disk.datastore))
}

/// The same as a yes or no, without words.
pub(crate) fn fits(host: &Host, vm: &Vm, takes_disks: bool) -> bool {
    let class = match (&vm.needs.cpu_classes, &host.cpu_class) {
        (None, _) => true,
        (Some(classes), Some(class)) => classes.contains(class),
        (Some(_), None) => false,
    };
    let reaches =
        |name: &Name| host.datastores.contains(name) || takes_disks && can_be_brought(host, vm, name);
    class && vm.needs.networks.is_subset(&host.networks) && vm.needs.datastores.iter().all(reaches)
}

/// Why a host neither gives nor gets VMs, if it does not.
pub(crate) fn silent(host: &Host, at_unix_ms: u64, stale_ms: u64) -> Option<String> {
    let unheard_ms = at_unix_ms.saturating_sub(host.seen_unix_ms);
    let why = match host.state {
        HostState::Lost => "it is lost".into(),
        HostState::Standby => "it is switched off to save power".into(),
        HostState::Waking => "it was woken, and is not there yet".into(),
        HostState::On | HostState::Maintenance if unheard_ms > stale_ms => {
            format!("it was not heard of for {} s", unheard_ms / 1000)
        }
        HostState::On | HostState::Maintenance if host.capacity.cpu == 0 || host.capacity.memory == 0 => {
            "it says that it has no CPU or no memory".into()
        }
        HostState::On | HostState::Maintenance
            if host.migration.moves_max == 0 || host.migration.bytes_per_s == 0 =>
        {
            "it takes part in no migration".into()
        }
        HostState::On | HostState::Maintenance => return None,
    };
    Some(why)
}

fn listed<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let names: Vec<String> = names.map(|name| format!("'{name}'")).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
