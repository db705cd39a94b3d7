//! Pools and VMs as somebody has set them up, and the tree that they are.

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::{Name, VmName};
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Owner};
use crate::resource::{PerResource, Resource};

/// How much of one resource a pool or a VM is to have, in the resource's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Controls {
    /// Guaranteed.
    pub reservation: u64,
    /// Never exceeded; `None` if there is none.
    pub limit: Option<u64>,
    /// The weight against those in the same pool; at least 1.
    pub shares: u32,
}

impl Default for Controls {
    /// Nothing reserved, no limit; vSphere's shares of a virtual CPU.
    fn default() -> Self {
        Self { reservation: 0, limit: None, shares: 1000 }
    }
}

/// A part of the cluster's capacity, for the VMs and pools in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub name: Name,
    /// The pool that it is in; `None` directly below the cluster.
    pub parent: Option<Name>,
    pub controls: PerResource<Controls>,
    /// Whether what those in it reserve beyond its own reservation may come from the pool above.
    pub expandable: PerResource<bool>,
    /// Whether its shares count once for each VM in it and in the pools below, so that more VMs do not mean less for each.
    pub scalable_shares: bool,
}

/// A VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub name: VmName,
    /// The pool that it is in; `None` directly below the cluster.
    pub pool: Option<Name>,
    pub controls: PerResource<Controls>,
    /// What it would use if nothing held it back.
    pub demand: PerResource<u64>,
}

/// Pools and VMs without fault, in an order that does not depend on how they were listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Each after the pool that it is in.
    pub(super) pools: Vec<Node<Pool>>,
    /// By name.
    pub(super) vms: Vec<Node<Vm>>,
}

/// A pool or a VM, and the place of its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node<T> {
    pub(super) item: T,
    pub(super) parent: Option<usize>,
}

impl Tree {
    /// The tree, or everything that is wrong, sorted.
    pub fn new(mut pools: Vec<Pool>, mut vms: Vec<Vm>) -> Result<Self, Vec<Finding>> {
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        let mut findings = controls(&pools, &vms);
        findings.extend(twice(&pools, &vms));
        findings.extend(unknown(&pools, &vms));
        let order = top_down(&pools).unwrap_or_else(|cycles| {
            findings.extend(cycles.into_iter().map(Finding::Cycle));
            Vec::new()
        });
        if !findings.is_empty() {
            findings.sort();
            return Err(findings);
        }
        let places: BTreeMap<Name, usize> =
            order.iter().enumerate().map(|(place, index)| (pools[*index].name.clone(), place)).collect();
        let place = |parent: &Option<Name>| parent.as_ref().and_then(|name| places.get(name)).copied();
        let pool = |index: usize| Node { parent: place(&pools[index].parent), item: pools[index].clone() };
        Ok(Self {
            pools: order.into_iter().map(pool).collect(),
            vms: vms.into_iter().map(|vm| Node { parent: place(&vm.pool), item: vm }).collect(),
        })
    }

    /// The pools, each after the one that it is in.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter().map(|node| &node.item)
    }

    /// The VMs, by name.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().map(|node| &node.item)
    }

    /// Of each pool, in their order, how many VMs are in it and in the pools below.
    pub(super) fn vms_below(&self) -> Vec<u32> {
        let mut below = vec![0; self.pools.len()];
        self.vms.iter().filter_map(|vm| vm.parent).for_each(|parent| below[parent] += 1);
        for place in (0..self.pools.len()).rev() {
            if let Some(parent) = self.pools[place].parent {
                below[parent] += below[place];
            }
        }
        below
    }
}

fn controls(pools: &[Pool], vms: &[Vm]) -> Vec<Finding> {
    let of_pools = pools.iter().map(|pool| (Owner::Pool(pool.name.clone()), &pool.controls));
    let of_vms = vms.iter().map(|vm| (Owner::Vm(vm.name.clone()), &vm.controls));
    let mut findings = Vec::new();
    for (owner, controls) in of_pools.chain(of_vms) {
        for resource in Resource::ALL {
            let Controls { reservation, limit, shares } = controls[resource];
            let owner = owner.clone();
            if shares == 0 {
                findings.push(Finding::NoShares { owner: owner.clone(), resource });
            }
            if let Some(limit) = limit.filter(|limit| *limit < reservation) {
                findings.push(Finding::ReservationAboveLimit { owner, resource, reservation, limit });
            }
        }
    }
    findings
}

/// Both lists are sorted.
fn twice(pools: &[Pool], vms: &[Vm]) -> Vec<Finding> {
    let pools = pools.windows(2).filter(|pair| pair[0].name == pair[1].name);
    let vms = vms.windows(2).filter(|pair| pair[0].name == pair[1].name);
    pools
        .map(|pair| Owner::Pool(pair[0].name.clone()))
        .chain(vms.map(|pair| Owner::Vm(pair[0].name.clone())))
        .map(Finding::Twice)
        .collect()
}

fn unknown(pools: &[Pool], vms: &[Vm]) -> Vec<Finding> {
    let known: BTreeSet<&Name> = pools.iter().map(|pool| &pool.name).collect();
    let of_pools = pools.iter().map(|pool| (Owner::Pool(pool.name.clone()), &pool.parent));
    let of_vms = vms.iter().map(|vm| (Owner::Vm(vm.name.clone()), &vm.pool));
    of_pools
        .chain(of_vms)
        .filter_map(|(owner, parent)| Some((owner, parent.clone()?)))
        .filter(|(_, parent)| !known.contains(parent))
        .map(|(owner, parent)| Finding::UnknownParent { owner, parent })
        .collect()
}

/// The places of the pools, each after its parent's; or the names of those that lie within themselves.
fn top_down(pools: &[Pool]) -> Result<Vec<usize>, Vec<Name>> {
    let mut children: BTreeMap<Option<&Name>, Vec<usize>> = BTreeMap::new();
    for (index, pool) in pools.iter().enumerate() {
        children.entry(pool.parent.as_ref()).or_default().push(index);
    }
    let mut order = children.remove(&None).unwrap_or_default();
    let mut next = 0;
    while let Some(index) = order.get(next).copied() {
        order.extend(children.remove(&Some(&pools[index].name)).unwrap_or_default());
        next += 1;
    }
    // Those that are left are of a cycle, or hang from one or from a pool that does not exist.
    if children.is_empty() { Ok(order) } else { Err(cycles(pools, children.into_values().flatten())) }
}

/// Takes away pools in which no other is, until all that are left are in each other.
fn cycles(pools: &[Pool], hanging: impl Iterator<Item = usize>) -> Vec<Name> {
    let named = |index: usize| Some((&pools[index].name, pools[index].parent.as_ref()?));
    let mut parents: BTreeMap<&Name, &Name> = hanging.filter_map(named).collect();
    let mut inside = BTreeMap::<&Name, usize>::new();
    parents.values().for_each(|parent| *inside.entry(parent).or_default() += 1);
    let mut empty: Vec<&Name> = parents.keys().copied().filter(|name| !inside.contains_key(name)).collect();
    while let Some(name) = empty.pop() {
        if let Some(parent) = parents.remove(name)
            && let Some(count) = inside.get_mut(parent)
        {
            *count -= 1;
            empty.extend((*count == 0).then_some(parent));
        }
    }
    parents.into_keys().cloned().collect()
}
