//! A snapshot made ready for planning: everything by its place in a sorted list, and what is wrong with it set apart.

use std::collections::BTreeSet;

use godwit_types::{HostName, Name};

use super::brought::Stores;
use super::{Goal, demand, findings, power};
use crate::entitlement::Tree;
use crate::policy::Policy;
use crate::resource::{PerResource, Resource};
use crate::rules::compatible;
use crate::rules::table::Table;
use crate::snapshot::{Host, HostState, Snapshot, Vm, Writes};

/// See the module. Hosts and VMs are sorted by name, so the order in which they were listed changes nothing.
pub(crate) struct Case<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) policy: &'a Policy,
    pub(crate) hosts: Vec<&'a Host>,
    pub(crate) vms: Vec<&'a Vm>,
    /// Why a host neither gives nor gets VMs.
    pub(crate) silent: Vec<Option<String>>,
    /// Whether a host is to be emptied.
    pub(crate) emptied: Vec<bool>,
    pub(crate) stores: Stores<'a>,
    /// Whether VMs that have no host are to be placed, and so are entitled to something.
    pub(crate) places: bool,
    /// Whether power is managed: then hosts are filled or off, and evenness is none of the plan's aims.
    pub(crate) saves: bool,
    /// Where each VM is; none if it is nowhere, or on a host that nobody knows.
    pub(crate) home: Vec<Option<usize>>,
    /// Why a VM cannot be moved, whatever for.
    pub(crate) stays: Vec<Option<String>>,
    /// Why a VM is not moved unless it must be.
    pub(crate) rests: Vec<Option<String>>,
    /// Whether that is only since it has moved lately. It does not hold where VMs do not get what they want.
    pub(crate) cools: Vec<bool>,
    /// What each VM wants, no more than its limits.
    pub(crate) demand: Vec<PerResource<u64>>,
    /// What each VM is entitled to of what the hosts have that take VMs.
    pub(crate) entitled: Vec<PerResource<u64>>,
    pub(crate) table: Table,
    /// Whether each rule is one of several that contradict each other.
    pub(crate) contradicts: Vec<bool>,
    pub(crate) findings: Vec<String>,
    /// Pools and VMs, what was wrong with them mended; none if that was too much.
    pub(crate) tree: Option<Tree>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, policy: &'a Policy, goal: &Goal) -> Self {
        let mut findings = findings::of_policy(policy);
        let mut hosts = sorted(&snapshot.hosts, |host| &host.name);
        hosts.dedup_by(|a, b| a.name == b.name);
        let vms = sorted(&snapshot.vms, |vm| &vm.name);
        let home: Vec<Option<usize>> = vms.iter().map(|vm| place(&hosts, vm.host.as_ref()?)).collect();
        let (table, of_rules) = Table::new(&snapshot.rules, &hosts, &vms);
        findings.extend(of_rules);
        let mut silent: Vec<Option<String>> =
            hosts.iter().map(|host| compatible::silent(host, snapshot.at_unix_ms, policy.stale_ms)).collect();
        for name in twice(&snapshot.hosts) {
            findings.push(format!("host '{name}' is there twice: remove one of the two"));
            place(&hosts, &name).into_iter().for_each(|at| silent[at] = Some("it is there twice".into()));
        }
        let emptied = emptied(&hosts, goal, &mut findings);
        let stores = Stores::new(&hosts);
        let saves = power::is_managed(policy) && matches!(goal, Goal::Balance);
        let mut case = Self {
            snapshot,
            policy,
            stays: vec![None; vms.len()],
            rests: vec![None; vms.len()],
            cools: vec![false; vms.len()],
            demand: vms.iter().map(|vm| demand::of(vm, saves)).collect(),
            entitled: Vec::new(),
            hosts,
            vms,
            silent,
            emptied,
            stores,
            saves,
            places: matches!(goal, Goal::Place | Goal::MakeRoom { .. }),
            home,
            contradicts: vec![false; table.entries.len()],
            table,
            findings,
            tree: None,
        };
        findings::note(&mut case);
        demand::guess(&mut case);
        case.entitled = demand::entitle(&mut case);
        case
    }

    /// Whether VMs may come to a host.
    pub(crate) fn gets(&self, host: usize) -> bool {
        self.gives(host) && !self.emptied[host]
    }

    /// Whether VMs may leave a host.
    pub(crate) fn gives(&self, host: usize) -> bool {
        self.silent[host].is_none()
    }

    pub(crate) fn host(&self, name: &HostName) -> Option<usize> {
        place(&self.hosts, name)
    }

    pub(crate) fn vm(&self, name: &Name) -> Option<usize> {
        self.vms.binary_search_by(|vm| vm.name.cmp(name)).ok()
    }

    /// What a host must have for a VM whatever the VM uses: its memory, and what is reserved for it.
    pub(crate) fn need(&self, vm: usize) -> PerResource<u64> {
        let vm = self.vms[vm];
        PerResource::from_fn(|resource| match resource {
            Resource::Memory => vm.memory.max(vm.controls.memory.reservation),
            _ => vm.controls[resource].reservation,
        })
    }

    /// Whether every host that is heard of tells what it has of a resource. What some do not tell is weighed nowhere: else those would
    /// seem to be free.
    pub(crate) fn is_told(&self, resource: Resource) -> bool {
        (0..self.hosts.len())
            .filter(|host| self.gives(*host))
            .all(|host| self.hosts[host].capacity[resource] > 0)
    }

    /// What decides how long the VM takes to go to a host, with what it brings along.
    pub(crate) fn writes(&self, vm: usize, to: usize) -> Writes {
        let writes = self.vms[vm].writes;
        Writes { used: writes.used.saturating_add(self.brings(vm, to)), ..writes }
    }

    /// What the hosts have together that take VMs; 0 of what some do not tell.
    pub(crate) fn capacity(&self) -> PerResource<u64> {
        PerResource::from_fn(|resource| {
            if !self.is_told(resource) {
                return 0;
            }
            let amounts = (0..self.hosts.len()).filter(|host| self.gets(*host));
            amounts.fold(0u64, |sum, host| sum.saturating_add(self.hosts[host].capacity[resource]))
        })
    }
}

/// By name; whatever has the same name by what it says, so that listing order never shows.
fn sorted<T: std::fmt::Debug>(items: &[T], name: impl Fn(&T) -> &Name) -> Vec<&T> {
    let mut sorted: Vec<&T> = items.iter().collect();
    sorted.sort_by(|a, b| name(a).cmp(name(b)).then_with(|| format!("{a:?}").cmp(&format!("{b:?}"))));
    sorted
}

fn twice(hosts: &[Host]) -> BTreeSet<HostName> {
    let mut seen = BTreeSet::new();
    hosts.iter().filter(|host| !seen.insert(&host.name)).map(|host| host.name.clone()).collect()
}

fn place(hosts: &[&Host], name: &HostName) -> Option<usize> {
    hosts.binary_search_by(|host| host.name.cmp(name)).ok()
}

fn emptied(hosts: &[&Host], goal: &Goal, findings: &mut Vec<String>) -> Vec<bool> {
    let mut emptied: Vec<bool> = hosts.iter().map(|host| host.state == HostState::Maintenance).collect();
    if let Goal::Evacuate { hosts: named } = goal {
        for name in named {
            match place(hosts, name) {
                Some(host) => emptied[host] = true,
                None => findings.push(format!(
                    "host '{name}', which is to be emptied, does not exist: name one of the cluster's"
                )),
            }
        }
    }
    emptied
}
