//! Whether a host can run a VM, and which host runs it best: pure functions of what the hosts reported.

use std::collections::BTreeSet;

use godwit_types::host::KvmFlavour;
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, Bytes, ErrorCode, HostName, Name};

use crate::store::HostRow;

/// Memory that a VM's process needs beside the guest's own.
pub(crate) const OVERHEAD: Bytes = Bytes::mib(64);

/// Why something cannot be done, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub reason: String,
    pub remedy: String,
}

impl Obstacle {
    pub(crate) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

/// One error that names all `obstacles` to `deed`, or none if there are none.
pub(crate) fn refuse(deed: &str, obstacles: &[Obstacle]) -> Result<(), ApiError> {
    if obstacles.is_empty() {
        return Ok(());
    }
    let join = |part: fn(&Obstacle) -> &str| {
        let unique: Vec<&str> = obstacles.iter().map(part).fold(Vec::new(), |mut seen, text| {
            if !seen.contains(&text) {
                seen.push(text);
            }
            seen
        });
        unique.join("; ")
    };
    let message = format!("{deed}: {}", join(|o| &o.reason));
    Err(ApiError::new(ErrorCode::Refused, message).remedy(join(|o| &o.remedy)))
}

/// Everything that keeps `host` from running a VM of `spec`.
pub(crate) fn obstacles(spec: &VmSpec, host: &HostRow) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let name = &host.name;
    if !host.up {
        let reason = format!("{name} is down: the manager does not hear from it");
        found.push(Obstacle::new(
            reason,
            format!("start 'godwit host run' on {name} and check the network to it"),
        ));
    }
    if host.facts.kvm.flavour == KvmFlavour::None {
        let limits = host.facts.kvm.limits.as_deref().unwrap_or("no usable /dev/kvm");
        let remedy = format!("enable virtualisation on {name}, or name another host");
        found.push(Obstacle::new(format!("{name} cannot run VMs: {limits}"), remedy));
    }
    let offered: BTreeSet<&Name> = host.facts.networks.iter().map(|offer| &offer.name).collect();
    for network in needed_networks(spec).difference(&offered) {
        let remedy = format!("run its agent with --network {network}=BRIDGE");
        found.push(Obstacle::new(format!("{name} does not offer the network '{network}'"), remedy));
    }
    let reached: BTreeSet<&Name> = host.facts.datastores.iter().map(|offer| &offer.name).collect();
    for datastore in needed_datastores(spec).difference(&reached) {
        let remedy = format!("mount it there and run its agent with --datastore {datastore}=DIR");
        found.push(Obstacle::new(format!("{name} does not reach the datastore '{datastore}'"), remedy));
    }
    let needed = needed_memory(spec);
    let available = host.facts.memory_available;
    if available < needed {
        let reason = format!("{name} has {available} of memory available, and the VM needs {needed}");
        found.push(Obstacle::new(reason, format!("free memory on {name}, or name another host")));
    }
    found
}

/// The host that a VM of `spec` is best started on: of those that can run it, the one with the most memory to spare.
pub(crate) fn place(spec: &VmSpec, hosts: &[HostRow]) -> Result<HostName, ApiError> {
    let able = hosts.iter().filter(|host| obstacles(spec, host).is_empty());
    if let Some(best) = able.max_by_key(|host| (host.facts.memory_available, std::cmp::Reverse(&host.name))) {
        return Ok(best.name.clone());
    }
    let mut all: Vec<Obstacle> = hosts.iter().flat_map(|host| obstacles(spec, host)).collect();
    if all.is_empty() {
        all.push(Obstacle::new("there are no hosts", "start 'godwit host run' on a machine with /dev/kvm"));
    }
    refuse("no host can run the VM", &all).map(|()| unreachable!("there is at least one obstacle"))
}

fn needed_networks(spec: &VmSpec) -> BTreeSet<&Name> {
    spec.nics.iter().map(|nic| &nic.network).collect()
}

fn needed_datastores(spec: &VmSpec) -> BTreeSet<&Name> {
    let boot = [Some(&spec.boot.kernel), spec.boot.initrd.as_ref()];
    let images = spec.disks.iter().map(|disk| &disk.image);
    boot.into_iter().flatten().chain(images).map(|place| &place.datastore).collect()
}

fn needed_memory(spec: &VmSpec) -> Bytes {
    Bytes(spec.memory.0 + OVERHEAD.0)
}

#[cfg(test)]
mod tests {
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
