//! Demand goes up the tree, capacity comes down.
//!
//! ```text
//!   up:    a VM's ceiling is its demand, a pool's the sum of those in it; neither is above its limit.
//!          A floor is the reservation, in an expandable pool the sum of the floors in it if that is more; never above the ceiling.
//!   down:  the cluster divides its capacity among what is directly below it, and each pool what it was given.
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use godwit_types::{Name, VmName};
use serde::{Deserialize, Serialize};

use super::divide::{Claim, divide};
use super::tree::{Controls, Tree};
use crate::resource::{PerResource, Resource};

/// What each is entitled to, in the resources' units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entitlements {
    /// Each after the pool that it is in.
    pub pools: Vec<(Name, PerResource<u64>)>,
    /// By name.
    pub vms: Vec<(VmName, PerResource<u64>)>,
}

impl Tree {
    /// Divides the capacity. All VMs together get all of it, or what they demand within limits if that is less.
    pub fn entitle(&self, capacity: &PerResource<u64>) -> Entitlements {
        let below = self.vms_below();
        let nothing = PerResource::default();
        let mut pools: Vec<_> = self.pools().map(|pool| (pool.name.clone(), nothing)).collect();
        let mut vms: Vec<_> = self.vms().map(|vm| (vm.name.clone(), nothing)).collect();
        for resource in Resource::ALL {
            let claims = Claims::new(self, resource, &below);
            let (of_pools, of_vms) = claims.divide(self, capacity[resource]);
            of_pools.into_iter().zip(&mut pools).for_each(|(given, pool)| pool.1[resource] = given);
            of_vms.into_iter().zip(&mut vms).for_each(|(given, vm)| vm.1[resource] = given);
        }
        Entitlements { pools, vms }
    }
}

/// What all claim of one resource, in the tree's order.
struct Claims {
    pools: Vec<Claim>,
    vms: Vec<Claim>,
}

/// The place of a pool or of a VM.
#[derive(Clone, Copy)]
enum Child {
    Pool(usize),
    Vm(usize),
}

impl Claims {
    /// The way up.
    fn new(tree: &Tree, resource: Resource, below: &[u32]) -> Self {
        let mut inside = BTreeMap::<_, Inside>::new();
        let mut vms = Vec::with_capacity(tree.vms.len());
        for vm in &tree.vms {
            let controls = &vm.item.controls[resource];
            let claim = claim(controls, controls.reservation, vm.item.demand[resource], 1);
            inside.entry(vm.parent).or_default().add(&claim);
            vms.push(claim);
        }
        let mut pools = Vec::with_capacity(tree.pools.len());
        for (place, pool) in tree.pools.iter().enumerate().rev() {
            let controls = &pool.item.controls[resource];
            let Inside { floors, ceilings } = inside.remove(&Some(place)).unwrap_or_default();
            let borrowed = if pool.item.expandable[resource] { floors } else { 0 };
            let times = if pool.item.scalable_shares { below[place] } else { 1 };
            let claim = claim(controls, controls.reservation.max(borrowed), ceilings, times);
            inside.entry(pool.parent).or_default().add(&claim);
            pools.push(claim);
        }
        pools.reverse();
        Self { pools, vms }
    }

    /// The way down: what pools and VMs are given.
    fn divide(&self, tree: &Tree, capacity: u64) -> (Vec<u64>, Vec<u64>) {
        let (mut pools, mut vms) = (vec![0; self.pools.len()], vec![0; self.vms.len()]);
        // The cluster first, and each pool after the one that it is in.
        for (parent, children) in children(tree) {
            let capacity = parent.map_or(capacity, |place| pools[place]);
            let claims: Vec<Claim> = children.iter().map(|child| self.of(*child)).collect();
            for (child, given) in children.into_iter().zip(divide(capacity, &claims)) {
                match child {
                    Child::Pool(place) => pools[place] = given,
                    Child::Vm(place) => vms[place] = given,
                }
            }
        }
        (pools, vms)
    }

    fn of(&self, child: Child) -> Claim {
        match child {
            Child::Pool(place) => self.pools[place],
            Child::Vm(place) => self.vms[place],
        }
    }
}

/// What those in a pool claim together.
#[derive(Default)]
struct Inside {
    floors: u64,
    ceilings: u64,
}

impl Inside {
    fn add(&mut self, claim: &Claim) {
        self.floors = self.floors.saturating_add(claim.floor);
        self.ceilings = self.ceilings.saturating_add(claim.ceiling);
    }
}

fn claim(controls: &Controls, floor: u64, demand: u64, times: u32) -> Claim {
    let ceiling = controls.limit.map_or(demand, |limit| limit.min(demand));
    let shares = u64::from(controls.shares) * u64::from(times);
    // An empty pool counts no VM, and claims nothing.
    Claim { floor: floor.min(ceiling), ceiling, shares: NonZeroU64::new(shares).unwrap_or(NonZeroU64::MIN) }
}

fn children(tree: &Tree) -> BTreeMap<Option<usize>, Vec<Child>> {
    let pools = tree.pools.iter().enumerate().map(|(place, pool)| (pool.parent, Child::Pool(place)));
    let vms = tree.vms.iter().enumerate().map(|(place, vm)| (vm.parent, Child::Vm(place)));
    let mut children = BTreeMap::<_, Vec<Child>>::new();
    pools.chain(vms).for_each(|(parent, child)| children.entry(parent).or_default().push(child));
    children
}
