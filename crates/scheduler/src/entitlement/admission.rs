//! Whether reservations can be honoured, also after hosts are lost.
//!
//! A pool's reservation is for those in it. What they reserve beyond it, an expandable pool reserves from the pool above, up to
//! its own limit; another one refuses. What is left to the top must fit the cluster's hosts, and each VM must fit one of them.
//! Whether all VMs fit the hosts together is a question of placement, and is not asked here.

use std::collections::BTreeMap;

use godwit_types::{Name, VmName};

use super::tree::{Tree, Vm};
use crate::resource::{PerResource, Resource};

/// What the hosts have, in the resources' units, without the largest that may be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Of all hosts together.
    pub total: PerResource<u64>,
    /// Of the host that has most.
    pub largest: PerResource<u64>,
    /// How many hosts are counted as lost.
    pub lost: usize,
}

impl Capacity {
    /// What is there for VMs once the `lost` largest hosts are gone. For each resource those are the hosts that have most of it:
    /// no loss of so many hosts leaves less.
    pub fn without_largest(hosts: &[PerResource<u64>], lost: usize) -> Self {
        let left = |resource: Resource| {
            let mut amounts: Vec<u64> = hosts.iter().map(|host| host[resource]).collect();
            amounts.sort_unstable_by(|a, b| b.cmp(a));
            amounts.split_off(lost.min(amounts.len()))
        };
        let sum = |amounts: Vec<u64>| amounts.into_iter().fold(0u64, u64::saturating_add);
        Self {
            total: PerResource::from_fn(|resource| sum(left(resource))),
            largest: PerResource::from_fn(|resource| left(resource).first().copied().unwrap_or(0)),
            lost,
        }
    }
}

/// A reservation that cannot be honoured. Amounts in the resource's unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "what is in pool '{pool}' reserves {} of {resource} more than the pool, which may not borrow",
        resource.show(*missing)
    )]
    Pool { pool: Name, resource: Resource, missing: u64 },
    #[error(
        "what is in pool '{pool}' reserves {} of {resource} more than the pool's limit",
        resource.show(*missing)
    )]
    Limit { pool: Name, resource: Resource, missing: u64 },
    #[error(
        "{} of {resource} are reserved beyond what {} have",
        resource.show(*missing),
        hosts(*lost)
    )]
    Cluster { resource: Resource, missing: u64, lost: usize },
    #[error(
        "VM '{vm}' reserves {} of {resource} more than any of {} has",
        resource.show(*missing),
        hosts(*lost)
    )]
    Host { vm: VmName, resource: Resource, missing: u64, lost: usize },
}

impl Refusal {
    /// What the person who reserves can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Pool { .. } => "raise the pool's reservation, make it expandable, or reserve less in it",
            Self::Limit { .. } => "raise the pool's limit, or reserve less in it",
            Self::Cluster { .. } => "add a host, reserve less, or prepare for the loss of fewer hosts",
            Self::Host { .. } => "reserve less for the VM, or add a larger host",
        }
    }
}

impl Refusal {
    /// Of the refusals `after` a change, those that were not there `before`, or with less missing.
    pub fn worse(before: &[Self], after: Vec<Self>) -> Vec<Self> {
        let parts = |refusal: &Self| match refusal.clone() {
            Self::Pool { pool, resource, missing } => (Self::Pool { pool, resource, missing: 0 }, missing),
            Self::Limit { pool, resource, missing } => (Self::Limit { pool, resource, missing: 0 }, missing),
            Self::Cluster { resource, missing, .. } => {
                (Self::Cluster { resource, missing: 0, lost: 0 }, missing)
            }
            Self::Host { vm, resource, missing, .. } => {
                (Self::Host { vm, resource, missing: 0, lost: 0 }, missing)
            }
        };
        let before: Vec<(Self, u64)> = before.iter().map(parts).collect();
        let is_worse = |refusal: &Self| {
            let (of, missing) = parts(refusal);
            before.iter().all(|(other, was)| *other != of || *was < missing)
        };
        after.into_iter().filter(is_worse).collect()
    }
}

/// What hosts must have for everything that is reserved, in the resources' units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// All of them together, as far as the pools let it through.
    pub(crate) total: PerResource<u64>,
    /// One of them, for the VM that reserves most.
    pub(crate) largest: PerResource<u64>,
}

impl Tree {
    /// Every reservation that cannot be honoured, by resource: pools from below, the cluster, VMs. Empty if all are admitted.
    pub fn refusals(&self, capacity: &Capacity) -> Vec<Refusal> {
        Resource::ALL.into_iter().flat_map(|resource| self.refused(resource, capacity)).collect()
    }

    pub(crate) fn reserved(&self) -> Reserved {
        let of = |vm: &Vm, resource: Resource| vm.controls[resource].reservation;
        Reserved {
            total: PerResource::from_fn(|resource| self.pooled(resource).0),
            largest: PerResource::from_fn(|resource| {
                self.vms().map(|vm| of(vm, resource)).max().unwrap_or(0)
            }),
        }
    }

    fn refused(&self, resource: Resource, capacity: &Capacity) -> Vec<Refusal> {
        let (top, mut refusals) = self.pooled(resource);
        let (total, largest, lost) = (capacity.total[resource], capacity.largest[resource], capacity.lost);
        if top > total {
            refusals.push(Refusal::Cluster { resource, missing: top - total, lost });
        }
        let missing = |vm: &Vm| vm.controls[resource].reservation.saturating_sub(largest);
        let too_large = self.vms().filter(|vm| missing(vm) > 0);
        refusals.extend(too_large.map(|vm| Refusal::Host {
            vm: vm.name.clone(),
            resource,
            missing: missing(vm),
            lost,
        }));
        refusals
    }

    /// What the pools ask of the cluster for what is reserved in them, and what they refuse.
    fn pooled(&self, resource: Resource) -> (u64, Vec<Refusal>) {
        let mut refusals = Vec::new();
        let mut inside = BTreeMap::<_, u64>::new();
        for vm in &self.vms {
            reserve(&mut inside, vm.parent, vm.item.controls[resource].reservation);
        }
        for (place, node) in self.pools.iter().enumerate().rev() {
            let (pool, controls) = (node.item.name.clone(), &node.item.controls[resource]);
            let reserved = inside.remove(&Some(place)).unwrap_or(0);
            let limit = controls.limit.unwrap_or(u64::MAX);
            let expandable = node.item.expandable[resource];
            let bound = if expandable { limit } else { controls.reservation };
            let missing = reserved.saturating_sub(bound);
            if missing > 0 && expandable {
                refusals.push(Refusal::Limit { pool, resource, missing });
            } else if missing > 0 {
                refusals.push(Refusal::Pool { pool, resource, missing });
            }
            // What is refused here is not asked of the pool above.
            reserve(&mut inside, node.parent, controls.reservation.max(reserved.min(bound)));
        }
        (inside.remove(&None).unwrap_or(0), refusals)
    }
}

fn reserve(inside: &mut BTreeMap<Option<usize>, u64>, parent: Option<usize>, amount: u64) {
    let sum = inside.entry(parent).or_default();
    *sum = sum.saturating_add(amount);
}

fn hosts(lost: usize) -> String {
    if lost == 0 { "the hosts".into() } else { format!("the hosts without the {lost} largest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_refused_for_more_than_before_is_worse() {
        let cluster = |missing, lost| Refusal::Cluster { resource: Resource::Cpu, missing, lost };
        let pool = |name: &str, missing| Refusal::Pool {
            pool: name.parse().unwrap(),
            resource: Resource::Cpu,
            missing,
        };
        let before = [cluster(5, 0), pool("a", 5)];
        assert_eq!(Refusal::worse(&before, before.to_vec()), []);
        assert_eq!(Refusal::worse(&before, vec![cluster(4, 1), pool("a", 5)]), []);
        let worse = vec![cluster(6, 0), pool("b", 1)];
        assert_eq!(Refusal::worse(&before, worse.clone()), worse);
        assert_eq!(Refusal::worse(&[], before.to_vec()), before);
    }
}
