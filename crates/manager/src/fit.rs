//! Whether a host can run a VM, and which host runs it best: pure functions of what the hosts reported.

use std::collections::BTreeSet;

use godwit_types::check::{Check, Finding, refuse};
use godwit_types::host::KvmFlavour;
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, Bytes, HostName, Name};

use crate::store::HostRow;

/// Memory that a VM's process needs beside the guest's own.
const OVERHEAD: Bytes = Bytes::mib(64);

/// Everything that keeps `host` from running a VM of `spec`.
pub(crate) fn obstacles(spec: &VmSpec, host: &HostRow) -> Vec<Finding> {
    let mut found = Vec::new();
    let (name, facts) = (&host.name, &host.facts);
    if !host.up {
        let reason = format!("{name} is down: the manager does not hear from it");
        let remedy = format!("start 'godwit host run' on {name} and check the network to it");
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
    found
}

/// The host that a VM of `spec` is best started on: of those that can run it, the one with the most memory to spare.
pub(crate) fn place(spec: &VmSpec, hosts: &[HostRow]) -> Result<HostName, ApiError> {
    let able = hosts.iter().filter(|host| obstacles(spec, host).is_empty());
    if let Some(best) = able.max_by_key(|host| (host.facts.memory_available, std::cmp::Reverse(&host.name))) {
        return Ok(best.name.clone());
    }
    let mut all: Vec<Finding> = hosts.iter().flat_map(|host| obstacles(spec, host)).collect();
    if all.is_empty() {
        all.push(Finding::blocked(
            Check::Host,
            "there are no hosts",
            "start 'godwit host run' on a machine with /dev/kvm",
        ));
    }
    refuse("no host can run the VM", &all).map(|()| unreachable!("there is at least one obstacle"))
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
    use godwit_types::ErrorCode;

    use super::*;
    use crate::fixtures::{host, spec};

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
    fn the_able_host_with_most_memory_is_chosen_and_names_break_ties() {
        let (a, mut b, mut c) = (host("a"), host("b"), host("c"));
        assert_eq!(place(&spec(), &[a.clone(), b.clone()]).unwrap(), a.name);
        b.facts.memory_available.0 += 1;
        c.facts.memory_available.0 += 2;
        c.facts.networks.clear();
        assert_eq!(place(&spec(), &[a, b.clone(), c]).unwrap(), b.name);
        assert_eq!(place(&spec(), &[]).unwrap_err().code, ErrorCode::Refused);
    }
}
