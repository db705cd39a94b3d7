//! Whether a host can run a VM: pure functions of what the hosts reported.

use std::collections::BTreeSet;

use godwit_types::check::{Check, Finding, refuse};
use godwit_types::host::KvmFlavour;
use godwit_types::vm::{CpuProfile, VmSpec};
use godwit_types::{ApiError, Bytes, Name};

use crate::store::HostRow;

/// Memory that a VM's process needs beside the guest's own.
const OVERHEAD: Bytes = Bytes::mib(64);

/// Everything that keeps `host` from running a VM of `spec`.
pub(crate) fn obstacles(spec: &VmSpec, host: &HostRow) -> Vec<Finding> {
    let mut found = Vec::new();
    let (name, facts) = (&host.name, &host.facts);
    if !host.up && host.standby.is_none() {
        let reason = format!("{name} is down: the manager does not hear from it");
        let remedy = format!("start 'godwit host run' on {name} and check the network to it");
        found.push(Finding::blocked(Check::Host, reason, remedy));
    }
    if host.maintenance.is_some() {
        let reason = format!("{name} is in maintenance, and gets no VM");
        let remedy = format!("name another host, or end it: godwit host maintenance exit {name}");
        found.push(Finding::blocked(Check::Host, reason, remedy));
    }
    if host.standby.is_some() {
        let reason = format!("{name} is in standby, and gets no VM");
        let remedy = format!("name another host, or wake it: godwit host wake {name}");
        found.push(Finding::blocked(Check::Host, reason, remedy));
    }
    if facts.kvm.flavour == KvmFlavour::None {
        let limits = facts.kvm.limits.as_deref().unwrap_or("no usable /dev/kvm");
        found.push(Finding::no_virtualisation(name, limits));
    }
    let offered: BTreeSet<&Name> = facts.networks.iter().map(|offer| &offer.name).collect();
    let needed = needed_networks(spec);
    found.extend(needed.difference(&offered).map(|network| Finding::no_network(name, network)));
    let reached: BTreeSet<&Name> = facts.datastores.iter().map(|offer| &offer.name).collect();
    let needed = needed_datastores(spec);
    found.extend(needed.difference(&reached).map(|datastore| Finding::no_datastore(name, datastore)));
    let needed = needed_memory(spec);
    let available = facts.memory_available;
    if available < needed {
        let reason = format!("{name} has {available} of memory available, and the VM needs {needed}");
        found.push(Finding::no_memory(name, reason));
    }
    if let Some(max) = facts.vmm.as_ref().map(|vmm| vmm.vcpus_max).filter(|max| *max < spec.vcpus.into()) {
        let reason = format!("the VM has {} vCPUs and KVM of {name} runs at most {max}", spec.vcpus);
        found.push(Finding::blocked(Check::Vcpus, reason, "name a host that runs as many"));
    }
    if facts.vmm.is_some() {
        found.extend(cpu(&spec.cpu, host));
    }
    found
}

/// Everything that `host` lacks for a guest with this CPU.
pub(crate) fn cpu(profile: &CpuProfile, host: &HostRow) -> Vec<Finding> {
    let name = &host.name;
    match &host.facts.vmm {
        Some(offer) => profile.missing_on(&offer.cpu, name.as_str()),
        None => {
            let reason = format!("{name} has not reported what its CPU offers");
            let remedy = format!("look at the log of the agent on {name}");
            vec![Finding::blocked(Check::Cpu, reason, remedy)]
        }
    }
}

/// Refuses with all that is against every host, unless nothing is against one.
pub(crate) fn require_any(
    hosts: &[HostRow],
    against: impl Fn(&HostRow) -> Vec<Finding>,
) -> Result<(), ApiError> {
    let found: Vec<Vec<Finding>> = hosts.iter().map(against).collect();
    if found.iter().any(Vec::is_empty) {
        return Ok(());
    }
    let mut all: Vec<Finding> = found.into_iter().flatten().collect();
    if all.is_empty() {
        all.push(Finding::blocked(
            Check::Host,
            "there are no hosts",
            "start 'godwit host run' on a machine with /dev/kvm",
        ));
    }
    refuse("no host can run the VM", &all)
}

pub(crate) fn needed_networks(spec: &VmSpec) -> BTreeSet<&Name> {
    spec.nics.iter().map(|nic| &nic.network).collect()
}

pub(crate) fn needed_datastores(spec: &VmSpec) -> BTreeSet<&Name> {
    let boot = [Some(&spec.boot.kernel), spec.boot.initrd.as_ref()];
    let images = spec.disks.iter().map(|disk| &disk.image);
    boot.into_iter().flatten().chain(images).map(|place| &place.datastore).collect()
}

pub(crate) fn needed_memory(spec: &VmSpec) -> Bytes {
    Bytes(spec.memory.0 + OVERHEAD.0)
}

#[cfg(test)]
mod tests {
    use godwit_types::{ErrorCode, TaskId};
    use uuid::Uuid;

    use super::*;
    use crate::fixtures::{host, spec};
    use crate::store::InMaintenance;

    #[test]
    fn a_host_that_lacks_several_things_is_told_all_of_them() {
        let mut bad = host("b");
        bad.up = false;
        bad.facts.networks.clear();
        bad.facts.datastores.clear();
        bad.facts.memory_available = Bytes::mib(1);
        bad.facts.kvm.flavour = KvmFlavour::None;
        let found = obstacles(&spec(), &bad);
        let error = refuse("web1 cannot start on b", &found).unwrap_err();
        assert_eq!(error.code, ErrorCode::Refused);
        for word in ["down", "/dev/kvm", "network 'lan'", "datastore 'shared'", "1MiB"] {
            assert!(error.message.contains(word), "{word} is missing from: {}", error.message);
        }
        assert_eq!(error.remedy.unwrap().matches("; ").count(), found.len() - 1);
    }

    #[test]
    fn memory_beside_the_guests_own_counts() {
        let mut exact = host("a");
        exact.facts.memory_available = Bytes(spec().memory.0 + OVERHEAD.0);
        assert_eq!(obstacles(&spec(), &exact), []);
        exact.facts.memory_available.0 -= 1;
        assert_eq!(obstacles(&spec(), &exact).len(), 1);
    }

    #[test]
    fn one_able_host_is_enough_and_without_any_all_reasons_are_told() {
        let (a, mut b) = (host("a"), host("b"));
        b.facts.networks.clear();
        let against = |host: &HostRow| obstacles(&spec(), host);
        assert_eq!(require_any(&[a.clone(), b.clone()], against), Ok(()));
        let error = require_any(&[b], against).unwrap_err();
        assert!(error.message.contains("network 'lan'"), "{error}");
        assert_eq!(require_any(&[], against).unwrap_err().code, ErrorCode::Refused);
    }

    #[test]
    fn a_host_in_maintenance_gets_no_vm_and_says_how_to_end_that() {
        let mut resting = host("a");
        resting.maintenance =
            Some(InMaintenance { since_unix_ms: 1, task: TaskId(Uuid::nil()), move_disks: false });
        let error = refuse("web1 cannot start on a", &obstacles(&spec(), &resting)).unwrap_err();
        assert!(error.message.contains("a is in maintenance"), "{error}");
        assert!(error.remedy.unwrap().contains("godwit host maintenance exit a"));
    }
}
