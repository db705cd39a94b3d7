//! What VMs want, and what they are entitled to.

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::Name;

use super::case::Case;
use crate::entitlement::{self, Capacity, Finding, Owner, Pool, Refusal, Tree};
use crate::resource::{PerResource, Resource};
use crate::snapshot::Vm;

/// The larger of what a VM would use now and what it is expected to, no more than its limit or its memory. Where power is managed,
/// what is expected of CPU is weighed slot by slot: the most of each VM, added up, is wanted at no time.
pub(super) fn of(vm: &Vm, saves: bool) -> PerResource<u64> {
    PerResource::from_fn(|resource| {
        let is_slotted = saves && resource == Resource::Cpu;
        let expected = if is_slotted { 0 } else { vm.expected[resource] };
        let wanted = vm.demand[resource].max(expected);
        let limited = vm.controls[resource].limit.map_or(wanted, |limit| wanted.min(limit));
        if resource == Resource::Memory { limited.min(vm.memory) } else { limited }
    })
}

/// A VM of which nothing is known is taken to want all its memory, and as much of a CPU for each of its own as the others do:
/// else all new ones would go to one host.
pub(super) fn guess(case: &mut Case<'_>) {
    let known = |at: usize| case.vms[at].measured_unix_ms.is_some();
    let (mhz, vcpus) = (0..case.vms.len()).filter(|at| known(*at)).fold((0u128, 0u128), |sum, at| {
        (sum.0 + u128::from(case.demand[at].cpu), sum.1 + u128::from(case.vms[at].vcpus))
    });
    for at in 0..case.vms.len() {
        let vm = case.vms[at];
        if vm.measured_unix_ms.is_none() && case.demand[at] == PerResource::default() {
            let cpu = u128::from(vm.vcpus) * mhz / vcpus.max(1);
            let cpu = u64::try_from(cpu).unwrap_or(u64::MAX);
            case.demand[at].cpu = vm.controls.cpu.limit.map_or(cpu, |limit| cpu.min(limit));
            case.demand[at].memory = vm.memory;
        }
    }
}

/// What each VM is entitled to. What is wrong with pools, controls and reservations is a finding, is mended for the sum's sake,
/// and VMs that it concerns are moved only if they must be.
pub(super) fn entitle(case: &mut Case<'_>) -> Vec<PerResource<u64>> {
    let mut pools = case.snapshot.pools.clone();
    pools.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| format!("{a:?}").cmp(&format!("{b:?}"))));
    let mut vms: Vec<entitlement::Vm> = (0..case.vms.len())
        .filter(|at| *at == 0 || case.vms[at - 1].name != case.vms[*at].name)
        .map(|at| claimant(case, at))
        .collect();
    let mut faulty = Faulty::default();
    // Each round mends what the last one found; a pool's twin goes first, so two rounds are enough.
    for _ in 0..4 {
        match Tree::new(pools.clone(), vms.clone()) {
            Ok(tree) => {
                refuse(case, &tree, &mut faulty);
                rest(case, &faulty);
                let entitled = divide(case, &tree);
                case.tree = Some(tree);
                return entitled;
            }
            Err(found) => {
                case.findings.extend(found.iter().map(|finding| format!("{finding}: {}", finding.remedy())));
                found.iter().for_each(|finding| mend(finding, &mut pools, &mut vms, &mut faulty));
            }
        }
    }
    case.rests.iter_mut().for_each(|rests| *rests = Some("its pools cannot be divided".into()));
    case.cools.fill(false);
    case.demand.clone()
}

/// Whose pools or controls are at fault.
#[derive(Default)]
struct Faulty {
    pools: BTreeSet<Name>,
    vms: BTreeSet<Name>,
    resources: BTreeSet<Resource>,
}

fn claimant(case: &Case<'_>, at: usize) -> entitlement::Vm {
    let vm = case.vms[at];
    // What runs on a host that is silent or unknown gets what it has there, and nothing of the others; what is to start gets
    // something once it is to be placed.
    let there = match vm.host {
        None => case.places,
        Some(_) => case.home[at].is_some_and(|home| case.gives(home)),
    };
    let demand = if there { case.demand[at] } else { PerResource::default() };
    entitlement::Vm { name: vm.name.clone(), pool: vm.pool.clone(), controls: vm.controls, demand }
}

fn mend(finding: &Finding, pools: &mut Vec<Pool>, vms: &mut [entitlement::Vm], faulty: &mut Faulty) {
    let owner = match finding {
        Finding::Twice(owner) => {
            pools.dedup_by(|a, b| a.name == b.name);
            owner.clone()
        }
        Finding::Cycle(name) => Owner::Pool(name.clone()),
        Finding::UnknownParent { owner, .. }
        | Finding::NoShares { owner, .. }
        | Finding::ReservationAboveLimit { owner, .. } => owner.clone(),
    };
    let controls: Vec<&mut PerResource<entitlement::Controls>> = match &owner {
        Owner::Pool(name) => {
            faulty.pools.insert(name.clone());
            let named = pools.iter_mut().filter(|pool| pool.name == *name);
            named
                .map(|pool| {
                    if matches!(finding, Finding::Cycle(_) | Finding::UnknownParent { .. }) {
                        pool.parent = None;
                    }
                    &mut pool.controls
                })
                .collect()
        }
        Owner::Vm(name) => {
            faulty.vms.insert(name.clone());
            let named = vms.iter_mut().filter(|vm| vm.name == *name);
            named
                .map(|vm| {
                    if matches!(finding, Finding::UnknownParent { .. }) {
                        vm.pool = None;
                    }
                    &mut vm.controls
                })
                .collect()
        }
    };
    for controls in controls {
        for resource in Resource::ALL {
            let controls = &mut controls[resource];
            controls.shares = controls.shares.max(1);
            controls.reservation = controls.reservation.min(controls.limit.unwrap_or(u64::MAX));
        }
    }
}

/// What the hosts have that take VMs and are `left`, without so many that may be lost.
pub(super) fn capacity(case: &Case<'_>, lost: usize, left: impl Fn(usize) -> bool) -> Capacity {
    let hosts = (0..case.hosts.len()).filter(|host| case.gets(*host) && left(*host));
    let hosts: Vec<PerResource<u64>> = hosts.map(|host| case.hosts[host].capacity).collect();
    Capacity::without_largest(&hosts, lost)
}

/// Reservations that cannot be honoured now, or could not be after the loss that is prepared for.
fn refuse(case: &mut Case<'_>, tree: &Tree, faulty: &mut Faulty) {
    let lost = case.policy.failures_to_tolerate as usize;
    let now = tree.refusals(&capacity(case, 0, |_| true));
    for refusal in &now {
        match refusal {
            Refusal::Pool { pool, .. } | Refusal::Limit { pool, .. } => {
                faulty.pools.insert(pool.clone());
            }
            Refusal::Cluster { resource, .. } => {
                faulty.resources.insert(*resource);
            }
            Refusal::Host { vm, .. } => {
                faulty.vms.insert(vm.clone());
            }
        }
    }
    let mut findings: Vec<String> = now.iter().map(|no| format!("{no}: {}", no.remedy())).collect();
    if lost > 0 {
        let then = tree.refusals(&capacity(case, lost, |_| true));
        findings.extend(then.iter().map(|no| format!("{no}: {}", no.remedy())));
        findings.dedup();
    }
    case.findings.extend(findings);
}

/// Lets VMs rest that are at fault, or in a pool that is, or below one.
fn rest(case: &mut Case<'_>, faulty: &Faulty) {
    let parents: BTreeMap<&Name, Option<&Name>> =
        case.snapshot.pools.iter().map(|pool| (&pool.name, pool.parent.as_ref())).collect();
    for at in 0..case.vms.len() {
        let vm = case.vms[at];
        let mut pool = vm.pool.as_ref();
        let mut seen = BTreeSet::new();
        let mut why =
            faulty.vms.contains(&vm.name).then(|| "its controls or its pool are at fault".to_owned());
        while let Some(name) = pool.filter(|name| seen.insert(*name)) {
            if faulty.pools.contains(name) {
                why = Some(format!("its pool '{name}' is at fault"));
            }
            pool = parents.get(name).copied().flatten();
        }
        let reserves = |resource: &&Resource| vm.controls[**resource].reservation > 0;
        if let Some(resource) = faulty.resources.iter().find(reserves) {
            why = Some(format!("more {resource} is reserved than there is"));
        }
        if why.is_some() {
            case.rests[at] = why;
            case.cools[at] = false;
        }
    }
}

fn divide(case: &Case<'_>, tree: &Tree) -> Vec<PerResource<u64>> {
    let entitled = tree.entitle(&case.capacity()).vms;
    let of = |name: &Name| entitled.binary_search_by(|(vm, _)| vm.cmp(name)).ok();
    let each = case.vms.iter().map(|vm| of(&vm.name).map_or(PerResource::default(), |at| entitled[at].1));
    each.collect()
}
