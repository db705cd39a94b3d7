//! Disks that VMs take along to where their storage is not reached, and the room that these take there.

use std::collections::BTreeMap;

use godwit_types::Name;

use super::case::Case;
use crate::snapshot::{Host, Vm};

/// Which storage each host finds under a datastore's name, by place.
#[derive(Debug)]
pub(crate) struct Stores<'a> {
    names: Vec<&'a Name>,
    /// What is free now.
    free: Vec<u64>,
    of_host: Vec<BTreeMap<&'a Name, usize>>,
}

impl<'a> Stores<'a> {
    pub(super) fn new(hosts: &[&'a Host]) -> Self {
        let mut stores = Self { names: Vec::new(), free: Vec::new(), of_host: Vec::new() };
        let mut known = BTreeMap::<&Name, usize>::new();
        for host in hosts {
            let mut found = BTreeMap::new();
            for (datastore, room) in &host.rooms {
                let place = *known.entry(&room.storage).or_insert_with(|| {
                    stores.names.push(&room.storage);
                    stores.free.push(u64::MAX);
                    stores.names.len() - 1
                });
                // Who says less may be right.
                stores.free[place] = stores.free[place].min(room.free);
                found.insert(datastore, place);
            }
            stores.of_host.push(found);
        }
        stores
    }

    /// The storages to which the VM brings disks if it goes to a host, and how much to each.
    fn of<'v>(&'v self, vm: &'v Vm, host: usize) -> impl Iterator<Item = (usize, u64)> + 'v {
        vm.disks.iter().filter_map(move |disk| {
            let place = *self.of_host[host].get(&disk.datastore)?;
            (*self.names[place] != disk.storage).then_some((place, disk.bytes))
        })
    }
}

/// Bytes that have been brought to each storage, or are on their way.
#[derive(Debug, Clone)]
pub(crate) struct Brought(Vec<u64>);

impl Brought {
    /// Nobody has brought anything.
    pub(crate) fn new(case: &Case<'_>) -> Self {
        Self(vec![0; case.stores.free.len()])
    }

    /// Whether what these VMs bring to a host finds room there.
    pub(crate) fn has_room(&self, case: &Case<'_>, vms: &[u32], host: usize) -> bool {
        let brings = |vm: &u32| case.stores.of(case.vms[*vm as usize], host);
        let mut comes = BTreeMap::<usize, u64>::new();
        for (place, bytes) in vms.iter().flat_map(brings) {
            let all = comes.entry(place).or_insert(self.0[place]);
            *all = all.saturating_add(bytes);
        }
        comes.into_iter().all(|(place, all)| all <= case.stores.free[place])
    }

    pub(crate) fn add(&mut self, case: &Case<'_>, vms: &[u32], host: usize) {
        for (place, bytes) in vms.iter().flat_map(|vm| case.stores.of(case.vms[*vm as usize], host)) {
            self.0[place] = self.0[place].saturating_add(bytes);
        }
    }

    pub(crate) fn remove(&mut self, case: &Case<'_>, vms: &[u32], host: usize) {
        for (place, bytes) in vms.iter().flat_map(|vm| case.stores.of(case.vms[*vm as usize], host)) {
            self.0[place] = self.0[place].saturating_sub(bytes);
        }
    }
}

impl Case<'_> {
    /// Whether the VM may take disks along.
    pub(crate) fn takes_disks(&self, vm: usize) -> bool {
        let leaves = |home: usize| self.emptied[home] && self.hosts[home].move_disks;
        self.policy.move_disks || self.home[vm].is_some_and(leaves)
    }

    /// What the VM brings to a host beside its memory, in bytes.
    pub(crate) fn brings(&self, vm: usize, host: usize) -> u64 {
        self.stores.of(self.vms[vm], host).fold(0, |sum, (_, bytes)| sum.saturating_add(bytes))
    }
}
