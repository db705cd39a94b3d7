//! Snapshots that tests plan for.

use std::collections::BTreeSet;

use godwit_scheduler::PerResource;
use godwit_scheduler::planner::{Action, Goal, Plan, plan};
use godwit_scheduler::policy::{Automation, Policy};
use godwit_scheduler::rules::{Hosts, Rule, RuleKind};
use godwit_scheduler::snapshot::{Host, HostState, MigrationRoom, Needs, Snapshot, Vm, Writes};
use godwit_types::Name;

pub(crate) const GIB: u64 = 1 << 30;
/// When all tests play.
pub(crate) const NOW_MS: u64 = 1_800_000_000_000;

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name of a test")
}

pub(crate) fn names(all: &[&str]) -> BTreeSet<Name> {
    all.iter().map(|text| name(text)).collect()
}

/// 10 GHz, 64 GiB, and a network of 10 Gbit/s.
pub(crate) fn host(text: &str) -> Host {
    Host {
        name: name(text),
        state: HostState::On,
        since_unix_ms: NOW_MS - 3_600_000,
        seen_unix_ms: NOW_MS,
        capacity: PerResource { cpu: 10_000, memory: 64 * GIB, network: 0, storage: 0 },
        cpu_class: Some(name("v3")),
        networks: names(&["lan"]),
        datastores: names(&["shared"]),
        rooms: Default::default(),
        move_disks: false,
        domain: None,
        labels: BTreeSet::new(),
        migration: MigrationRoom { moves_max: 4, bytes_per_s: 1_250_000_000, is_assumed: false },
        power: None,
    }
}

/// It wants so many MHz and has so many GiB, half of which it uses.
pub(crate) fn vm(text: &str, on: Option<&str>, mhz: u64, gib: u64) -> Vm {
    Vm {
        name: name(text),
        host: on.map(name),
        pool: None,
        controls: PerResource::default(),
        demand: PerResource { cpu: mhz, memory: gib * GIB / 2, network: 0, storage: 0 },
        expected: PerResource::default(),
        demand_long: PerResource::default(),
        recent_mhz: Vec::new(),
        ahead_mhz: Vec::new(),
        measured_unix_ms: Some(NOW_MS),
        vcpus: 2,
        memory: gib * GIB,
        needs: Needs::default(),
        disks: Vec::new(),
        pinned: None,
        automation: Automation::Inherit,
        writes: Writes { used: gib * GIB / 2, hot: 0, bytes_per_s: 0 },
        moved_unix_ms: Vec::new(),
    }
}

pub(crate) fn cluster(hosts: &[&str], vms: Vec<Vm>) -> Snapshot {
    Snapshot {
        at_unix_ms: NOW_MS,
        hosts: hosts.iter().map(|text| host(text)).collect(),
        vms,
        pools: Vec::new(),
        rules: Vec::new(),
    }
}

pub(crate) fn must(text: &str, kind: RuleKind) -> Rule {
    Rule { name: name(text), must: true, kind }
}

pub(crate) fn on(hosts: &[&str]) -> Hosts {
    Hosts { names: names(hosts), labels: BTreeSet::new() }
}

pub(crate) fn planned(snapshot: &Snapshot, goal: &Goal) -> Plan {
    plan(snapshot, &Policy::default(), goal, 7)
}

/// VM, from, to; or VM, nothing, host.
pub(crate) fn moves(plan: &Plan) -> Vec<(String, Option<String>, String)> {
    plan.steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Move { vm, from, to } => Some((vm.to_string(), Some(from.to_string()), to.to_string())),
            Action::Place { vm, on } => Some((vm.to_string(), None, on.to_string())),
            Action::Wake { .. } | Action::Standby { .. } => None,
        })
        .collect()
}

/// Where a VM is after the plan.
pub(crate) fn place(snapshot: &Snapshot, plan: &Plan, vm: &str) -> Option<String> {
    let moved = moves(plan).into_iter().rfind(|(moved, ..)| moved == vm).map(|(.., to)| to);
    let known = snapshot.vms.iter().find(|known| known.name.as_str() == vm);
    moved.or_else(|| known.and_then(|vm| vm.host.as_ref()).map(ToString::to_string))
}
