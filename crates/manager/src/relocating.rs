//! Which disks move to another datastore of their host, and everything against it. A pure function of what is recorded, what
//! the host reported, and what it says of the disks.

use std::collections::BTreeSet;

use godwit_types::capability::{DiskFacts, GuestFacts};
use godwit_types::check::{Check, Finding};
use godwit_types::host::DatastoreOffer;
use godwit_types::storage::MoveStorage;
use godwit_types::vm::{DatastorePath, DiskSpec};

use crate::moving::{Moving, offer};
use crate::store::{HostRow, VmRow};

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relocation<'a> {
    pub vm: &'a VmRow,
    /// On which it runs, or which is to copy the disks of one that does not.
    pub host: &'a HostRow,
    pub asked: &'a MoveStorage,
    /// One for each disk of the VM, in order.
    pub disks: &'a [DiskFacts],
    /// What the VM's process says, if it runs.
    pub guest: Option<&'a GuestFacts>,
}

/// What moves, or all reasons why it cannot.
pub(crate) fn relocating(case: &Relocation<'_>) -> Result<Moving, Vec<Finding>> {
    let mut found = Vec::new();
    let disks = case.chosen(&mut found);
    let spec = &case.vm.spec;
    let mut moving = Moving { disks: BTreeSet::new(), images: Vec::new(), spec: spec.clone() };
    for (index, disk) in &disks {
        moving.disks.insert(*index);
        moving.images.push(disk.image.clone());
        moving.spec.disks[*index as usize].image.datastore = case.asked.to.clone();
    }
    found.extend(case.unable());
    found.extend(moving.immovable(case.disks));
    found.extend(collisions(&moving));
    found.extend(case.datastore(&moving));
    if found.is_empty() { Ok(moving) } else { Err(found) }
}

fn blocked(reason: String, remedy: impl Into<String>) -> Finding {
    Finding::blocked(Check::Disks, reason, remedy)
}

impl<'a> Relocation<'a> {
    /// The disks that are to move, each with its number.
    fn chosen(&self, found: &mut Vec<Finding>) -> Vec<(u32, &'a DiskSpec)> {
        let (name, to) = (&self.vm.name, &self.asked.to);
        let all = || (0..).zip(&self.vm.spec.disks);
        if self.asked.disks.is_empty() {
            let movable = |(_, disk): &(u32, &DiskSpec)| !disk.read_only && disk.image.datastore != *to;
            let chosen: Vec<_> = all().filter(movable).collect();
            if chosen.is_empty() {
                let reason =
                    format!("{name} has no disk that its guest can write and that is not in '{to}' already");
                found.push(blocked(reason, format!("look where its disks are: godwit vm show {name}")));
            }
            return chosen;
        }
        let mut choose = |image: &DatastorePath| {
            let disk = all().find(|(_, disk)| disk.image == *image);
            let (reason, remedy) = match disk {
                None => {
                    let remedy = format!("name one as it is shown: godwit vm show {name}");
                    (format!("{name} has no disk {image}"), remedy)
                }
                Some((_, disk)) if disk.read_only => {
                    let reason = format!(
                        "the disk {image} is one that the guest may only read, and other VMs may use it"
                    );
                    (reason, "copy it yourself, and define the VM anew".to_owned())
                }
                Some((_, disk)) if disk.image.datastore == *to => (
                    format!("the disk {image} is in '{to}' already"),
                    "name another datastore: --to".to_owned(),
                ),
                Some(disk) => return Some(disk),
            };
            found.push(blocked(reason, remedy));
            None
        };
        let mut chosen: Vec<_> = self.asked.disks.iter().filter_map(&mut choose).collect();
        chosen.sort_by_key(|(index, _)| *index);
        chosen.dedup_by_key(|(index, _)| *index);
        chosen
    }

    /// The VM's process is of a release that cannot do it.
    fn unable(&self) -> Option<Finding> {
        let guest = self.guest.filter(|guest| !guest.moves_storage)?;
        let name = &self.vm.name;
        let reason = format!(
            "the process of {name}, of Godwit {}, cannot move its disks while it runs",
            guest.release
        );
        Some(blocked(reason, format!("stop {name}, and move them then")))
    }

    /// Whether the host has the datastore, as another storage, with room for what the disks hold.
    fn datastore(&self, moving: &Moving) -> Vec<Finding> {
        let (host, to) = (&self.host.name, &self.asked.to);
        let Some(there) = offer(self.host, to) else { return vec![Finding::no_datastore(host, to)] };
        let same = |from: &&DatastoreOffer| from.name != *to && from.id.is_some() && from.id == there.id;
        let mut found: Vec<Finding> = moving
            .images
            .iter()
            .filter_map(|image| offer(self.host, &image.datastore).filter(same))
            .map(|from| {
                let reason = format!("'{}' and '{to}' are the same storage on {host}", from.name);
                Finding::blocked(Check::Datastores, reason, "name another datastore: --to")
            })
            .collect();
        found.extend(moving.without_room(self.host, self.disks, "--to"));
        found.dedup();
        found
    }
}

/// Disks that would have one place.
fn collisions(moving: &Moving) -> Vec<Finding> {
    let disks = &moving.spec.disks;
    let twice = |index: &u32| {
        let image = &disks[*index as usize].image;
        let place = |(other, disk): (u32, &DiskSpec)| other != *index && disk.image == *image;
        (0..).zip(disks).any(place).then(|| {
            let reason = format!("two of its disks would be {image}");
            blocked(reason, "move one of them elsewhere: --disk")
        })
    };
    let mut found: Vec<Finding> = moving.disks.iter().filter_map(twice).collect();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use godwit_types::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::fixtures::{guest, host, vm};

    struct World {
        vm: VmRow,
        host: HostRow,
        asked: MoveStorage,
        guest: GuestFacts,
    }

    /// A VM with one disk in `shared`, on a host that has `fast` too.
    fn world() -> World {
        let mut host = host("a");
        host.facts.datastores[0].id = Some(Uuid::from_u128(1));
        let mut fast = host.facts.datastores[0].clone();
        (fast.name, fast.id) = ("fast".parse().unwrap(), Some(Uuid::from_u128(2)));
        host.facts.datastores.push(fast);
        let asked =
            MoveStorage { to: "fast".parse().unwrap(), disks: Vec::new(), bandwidth_bytes_per_s_max: None };
        let facts = DiskFacts { size: Bytes::mib(9), allocated: Bytes::mib(3), layered: false };
        World { vm: vm("web1"), host, asked, guest: GuestFacts { disks: vec![facts], ..guest() } }
    }

    fn judged(change: impl FnOnce(&mut World)) -> Result<Moving, String> {
        let mut world = world();
        change(&mut world);
        let World { vm, host, asked, guest } = &world;
        relocating(&Relocation { vm, host, asked, disks: &guest.disks, guest: Some(guest) })
            .map_err(|found| found.into_iter().map(|finding| finding.reason).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn all_that_the_guest_can_write_moves_unless_disks_are_named() {
        let moving = judged(|_| {}).unwrap();
        assert_eq!(moving.disks, BTreeSet::from([0]));
        assert_eq!(moving.images[0].to_string(), "shared/web1.raw");
        assert_eq!(moving.spec.disks[0].image.to_string(), "fast/web1.raw");
        let several = |world: &mut World| {
            let facts = world.guest.disks[0];
            world.guest.disks = vec![facts; 3];
            let disk = |image: &str, read_only| DiskSpec {
                image: image.parse().unwrap(),
                format: Default::default(),
                read_only,
            };
            world.vm.spec.disks.extend([disk("shared/data.raw", false), disk("shared/cd.raw", true)]);
        };
        assert_eq!(judged(several).unwrap().disks, BTreeSet::from([0, 1]));
        let one = judged(|world| {
            several(world);
            world.asked.disks = vec!["shared/data.raw".parse().unwrap(); 2];
        });
        assert_eq!(one.unwrap().disks, BTreeSet::from([1]));
    }

    #[test]
    fn every_reason_is_told() {
        type Change = fn(&mut World);
        let cases: [(Change, &str); 12] = [
            (|w| w.asked.to = "shared".parse().unwrap(), "not in 'shared' already"),
            (|w| w.vm.spec.disks[0].read_only = true, "no disk that its guest can write"),
            (|w| w.asked.disks = vec!["fast/x".parse().unwrap()], "has no disk fast/x"),
            (
                |w| {
                    w.asked.disks = vec!["shared/web1.raw".parse().unwrap()];
                    w.vm.spec.disks[0].read_only = true;
                },
                "may only read",
            ),
            (
                |w| {
                    w.asked.disks = vec!["shared/web1.raw".parse().unwrap()];
                    w.asked.to = "shared".parse().unwrap();
                },
                "is in 'shared' already",
            ),
            (|w| drop(w.host.facts.datastores.pop()), "'fast'"),
            (|w| w.host.facts.datastores[1].id = None, "says nothing"),
            (|w| w.host.facts.datastores[1].id = w.host.facts.datastores[0].id, "the same storage"),
            (|w| w.host.facts.datastores[1].free = Bytes::mib(2), "2MiB free"),
            (|w| w.guest.disks[0].layered = true, "backing files"),
            (|w| w.guest.disks.clear(), "not known how large"),
            (|w| w.guest.moves_storage = false, "cannot move its disks"),
        ];
        for (change, reason) in cases {
            let refused = judged(change).unwrap_err();
            assert!(refused.contains(reason), "{reason:?} is not in: {refused}");
        }
        let collision = judged(|world| {
            let facts = world.guest.disks[0];
            world.guest.disks = vec![facts; 2];
            let mut other = world.vm.spec.disks[0].clone();
            other.image = "fast/web1.raw".parse().unwrap();
            world.vm.spec.disks.push(other);
        });
        assert!(collision.unwrap_err().contains("two of its disks"));
    }
}
