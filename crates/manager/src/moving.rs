//! Which disks move with a VM: those that the destination does not share with the source. A pure function of what the hosts
//! reported.

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::capability::DiskFacts;
use godwit_types::check::{Check, Finding};
use godwit_types::host::DatastoreOffer;
use godwit_types::migration::{Budget, MoveDisks};
use godwit_types::vm::{DatastorePath, VmSpec};
use godwit_types::{Bytes, Name};
use serde::{Deserialize, Serialize};

use crate::store::HostRow;

/// What is asked of a migration, beside the destination. An older task has a budget alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wish {
    #[serde(flatten)]
    pub budget: Budget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_disks: Option<MoveDisks>,
}

/// Disks that move, and what follows for the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moving {
    /// By their numbers.
    pub disks: BTreeSet<u32>,
    /// Where they lie now, in the same order.
    pub images: Vec<DatastorePath>,
    /// The VM's specification once it runs at the destination.
    pub spec: VmSpec,
}

impl Moving {
    /// What keeps the disks from moving by what is known of all of the VM's.
    pub(crate) fn immovable(&self, facts: &[DiskFacts]) -> Vec<Finding> {
        let blocked = |reason: String, remedy: &str| Some(Finding::blocked(Check::Disks, reason, remedy));
        let look = |(index, image): (&u32, &DatastorePath)| match facts.get(*index as usize) {
            None => blocked(
                format!("it is not known how large the disk {image} is"),
                "check that its host reaches the datastore, and that its agent is of this release",
            ),
            Some(facts) if facts.layered => blocked(
                format!("the disk {image} has backing files, which do not move along"),
                "make it one image, as by 'qemu-img convert', while the VM is stopped",
            ),
            Some(_) => None,
        };
        self.disks.iter().zip(&self.images).filter_map(look).collect()
    }

    /// Why the datastores of `host` to which the disks move do not take what they hold; `option` names another. That one is not
    /// there at all is told by others.
    pub(crate) fn without_room(&self, host: &HostRow, facts: &[DiskFacts], option: &str) -> Vec<Finding> {
        let mut needed = BTreeMap::new();
        for index in &self.disks {
            let datastore = &self.spec.disks[*index as usize].image.datastore;
            let held = facts.get(*index as usize).map_or(0, |disk| disk.allocated.0);
            let sum = needed.entry(datastore).or_insert(0_u64);
            *sum = sum.saturating_add(held);
        }
        let name = &host.name;
        let lacks = |(datastore, bytes): (&Name, u64)| {
            let offer = offer(host, datastore)?;
            if offer.id.is_none() {
                let reason = format!(
                    "{name} says nothing of what its datastore '{datastore}' is, and so cannot take disks"
                );
                let remedy = format!("let root of {name} write to it, and install this release there");
                return Some(Finding::blocked(Check::Datastores, reason, remedy));
            }
            (offer.free.0 < bytes).then(|| {
                let reason = format!(
                    "the disks that move hold {}, and the datastore '{datastore}' of {name} has {} free",
                    Bytes(bytes),
                    offer.free
                );
                Finding::blocked(
                    Check::Datastores,
                    reason,
                    format!("make room there, or name another: {option}"),
                )
            })
        };
        needed.into_iter().filter_map(lacks).collect()
    }
}

/// What moves from `source` to `destination`. Disks that guests may only read are looked for there, as kernels are: other
/// VMs may use them too.
pub(crate) fn moving(
    spec: &VmSpec,
    source: Option<&HostRow>,
    destination: &HostRow,
    asked: Option<&MoveDisks>,
) -> Moving {
    let named = asked.and_then(|asked| asked.datastore.as_ref());
    let mut moving = Moving { disks: BTreeSet::new(), images: Vec::new(), spec: spec.clone() };
    for (index, disk) in (0..).zip(&mut moving.spec.disks).filter(|(_, disk)| !disk.read_only) {
        let here = source.and_then(|source| offer(source, &disk.image.datastore));
        let there = offer(destination, &disk.image.datastore);
        let moves = match (here, there) {
            (Some(here), Some(there)) => here.differs_from(there),
            // It can only go elsewhere.
            (Some(_), None) => named.is_some(),
            (None, _) => false,
        };
        if moves {
            moving.disks.insert(index);
            moving.images.push(disk.image.clone());
            if let Some(named) = named {
                disk.image.datastore = named.clone();
            }
        }
    }
    moving
}

/// What a host offers under a datastore's name.
pub(crate) fn offer<'a>(host: &'a HostRow, name: &Name) -> Option<&'a DatastoreOffer> {
    host.facts.datastores.iter().find(|offer| offer.name == *name)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::fixtures::{host, spec};

    fn with_id(name: &str, id: Option<u128>) -> HostRow {
        let mut host = host(name);
        host.facts.datastores[0].id = id.map(Uuid::from_u128);
        host
    }

    fn moved(source: &HostRow, destination: &HostRow, datastore: Option<&str>) -> (usize, String) {
        let asked = MoveDisks { datastore: datastore.map(|name| name.parse().unwrap()) };
        let moving = moving(&spec(), Some(source), destination, Some(&asked));
        assert_eq!(moving.disks.len(), moving.images.len());
        (moving.disks.len(), moving.spec.disks[0].image.to_string())
    }

    #[test]
    fn a_disk_moves_from_a_storage_that_is_known_to_be_another_and_from_no_other() {
        let stays = (0, "shared/web1.raw".to_owned());
        for (here, there) in [(None, None), (Some(1), None), (None, Some(1)), (Some(1), Some(1))] {
            assert_eq!(moved(&with_id("a", here), &with_id("b", there), Some("fast")), stays);
        }
        let (a, b) = (with_id("a", Some(1)), with_id("b", Some(2)));
        assert_eq!(moved(&a, &b, None), (1, "shared/web1.raw".to_owned()));
        assert_eq!(moved(&a, &b, Some("fast")), (1, "fast/web1.raw".to_owned()));
        let mut read_only = spec();
        read_only.disks[0].read_only = true;
        assert!(moving(&read_only, Some(&a), &b, None).disks.is_empty());
    }

    #[test]
    fn a_disk_of_a_datastore_that_the_destination_does_not_have_moves_only_to_one_that_is_named() {
        let (a, mut b) = (with_id("a", Some(1)), with_id("b", Some(2)));
        b.facts.datastores[0].name = "fast".parse().unwrap();
        assert_eq!(moved(&a, &b, Some("fast")), (1, "fast/web1.raw".to_owned()));
        assert_eq!(moved(&a, &b, None).0, 0);
    }

    #[test]
    fn the_request_of_an_older_task_is_a_budget_alone() {
        let budget = Budget { post_copy: true, bandwidth_bytes_per_s_max: Some(7), ..Budget::default() };
        let old: Wish = serde_json::from_str(&serde_json::to_string(&budget).unwrap()).unwrap();
        assert_eq!(old, Wish { budget: budget.clone(), move_disks: None });
        let wish = Wish { budget, move_disks: Some(MoveDisks::default()) };
        let text = serde_json::to_string(&wish).unwrap();
        assert_eq!(serde_json::from_str::<Wish>(&text).unwrap(), wish);
        assert_eq!(serde_json::from_str::<Budget>(&text).unwrap(), wish.budget);
    }
}
