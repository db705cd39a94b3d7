//! Snapshots by chance: sensible ones, and garbage.

use godwit_scheduler::PerResource;
use godwit_scheduler::entitlement::{Controls, Pool};
use godwit_scheduler::planner::Goal;
use godwit_scheduler::policy::{Policy, PowerPolicy};
use godwit_scheduler::rules::{Hosts, Rule, RuleKind};
use godwit_scheduler::snapshot::{Host, HostState, MigrationRoom, PowerModel, Snapshot, Vm, Writes};
use godwit_types::Name;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use crate::cases::*;

/// A cluster as there might be one: everybody is somewhere where there is room, but rules may be broken.
pub(crate) fn snapshots() -> impl Strategy<Value = Snapshot> {
    let hosts = vec((1..4u64, 0..3u8, 0..10u8, 1..4u32), 2..6);
    let vms = vec((0..6usize, 0..5000u64, 1..24u64, 0..20u8, 0..1500u64), 0..24);
    (hosts, vms).prop_flat_map(|(hosts, vms)| {
        let rules = vec(rule(vms.len(), hosts.len()), 0..4);
        rules.prop_map(move |rules| sensible(&hosts, &vms, rules))
    })
}

fn sensible(hosts: &[(u64, u8, u8, u32)], vms: &[(usize, u64, u64, u8, u64)], rules: Vec<Rule>) -> Snapshot {
    let mut snapshot = cluster(&[], Vec::new());
    for (at, (size, domain, state, moves_max)) in hosts.iter().enumerate() {
        let mut host = host(&format!("h{at}"));
        host.capacity.cpu *= size;
        host.capacity.memory = 32 * size * GIB;
        host.domain = (*domain > 0).then(|| name(&format!("rack{domain}")));
        host.migration.moves_max = *moves_max;
        host.state = if *state == 0 { HostState::Maintenance } else { HostState::On };
        host.seen_unix_ms -= if *state == 1 { 1_000_000 } else { 0 };
        if *state > 6 {
            host.networks.insert(name("dmz"));
            host.labels.insert(name("licensed"));
        }
        snapshot.hosts.push(host);
    }
    let mut free: Vec<(u64, u64)> =
        snapshot.hosts.iter().map(|host| (host.capacity.memory, host.capacity.cpu)).collect();
    for (at, (host, mhz, gib, kind, reserved)) in vms.iter().enumerate() {
        let host = host % snapshot.hosts.len();
        let (memory, cpu) = &mut free[host];
        let mut vm = vm(&format!("vm{at}"), Some(&format!("h{host}")), *mhz, *gib);
        vm.controls.cpu.reservation = if kind % 3 == 0 { *reserved } else { 0 };
        if vm.memory > *memory || vm.controls.cpu.reservation > *cpu || *kind == 19 {
            vm.host = None;
        } else {
            *memory -= vm.memory;
            *cpu -= vm.controls.cpu.reservation;
        }
        vm.pinned = (*kind == 1).then(|| "a task is under way".into());
        if *kind == 2 {
            vm.needs.networks.insert(name("dmz"));
        }
        snapshot.vms.push(vm);
    }
    snapshot.rules = rules;
    snapshot
}

fn rule(vms: usize, hosts: usize) -> impl Strategy<Value = Rule> {
    let members = btree_set((0..vms.max(1)).prop_map(|at| name(&format!("vm{at}"))), 1..6);
    let named = btree_set((0..hosts).prop_map(|at| name(&format!("h{at}"))), 0..3);
    (members, named, 0..7u8, 1..4u32, any::<bool>(), 0..1000u32).prop_map(
        |(vms, names, kind, count, must, number)| {
            let labels = if count == 3 { crate::cases::names(&["licensed"]) } else { Default::default() };
            let hosts = Hosts { names, labels };
            let kind = match kind {
                0 => RuleKind::Together { vms },
                1 | 2 => RuleKind::Apart { vms },
                3 => RuleKind::MaxPerHost { vms, most: count },
                4 => RuleKind::Spread { vms, domains: count },
                5 => RuleKind::RunOn { vms, hosts },
                _ => RuleKind::NotOn { vms, hosts },
            };
            Rule { name: name(&format!("rule{number}")), must, kind }
        },
    )
}

pub(crate) fn goals() -> impl Strategy<Value = Goal> {
    prop_oneof![
        3 => Just(Goal::Balance),
        1 => Just(Goal::Place),
        1 => (0..6u8).prop_map(|at| Goal::Evacuate { hosts: vec![name(&format!("h{at}")), name("h0")] }),
        1 => (0..24u8).prop_map(|at| Goal::MakeRoom { vm: name(&format!("vm{at}")) }),
    ]
}

/// Policies that are quick to plan under.
pub(crate) fn policies() -> impl Strategy<Value = Policy> {
    (1..=5u8, 0..1001u32, 0..3u32).prop_map(|(threshold, moved_max_permille, failures_to_tolerate)| Policy {
        threshold,
        moved_max_permille,
        failures_to_tolerate,
        proposals_per_vm: 60,
        ..Policy::default()
    })
}

/// Numbers as garbage has them.
fn any_u64() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX / 2),
        Just(NOW_MS),
        any::<u64>(),
        0..100_000u64
    ]
}

fn any_u32() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>()]
}

fn some_name() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["a", "b", "c", "d", "e"]).prop_map(name)
}

fn amounts() -> impl Strategy<Value = PerResource<u64>> {
    [any_u64(), any_u64(), any_u64(), any_u64()].prop_map(|[cpu, memory, network, storage]| PerResource {
        cpu,
        memory,
        network,
        storage,
    })
}

fn controls() -> impl Strategy<Value = PerResource<Controls>> {
    let each = (any_u64(), prop::option::of(any_u64()), any_u32())
        .prop_map(|(reservation, limit, shares)| Controls { reservation, limit, shares });
    vec(each, 4).prop_map(|each| PerResource {
        cpu: each[0],
        memory: each[1],
        network: each[2],
        storage: each[3],
    })
}

fn garbage_host() -> impl Strategy<Value = Host> {
    let state = prop::sample::select(vec![
        HostState::On,
        HostState::On,
        HostState::Maintenance,
        HostState::Standby,
        HostState::Waking,
        HostState::Lost,
    ]);
    let power = prop::option::of((vec(any_u32(), 0..4), any_u32(), any_u64()));
    let migration = (any_u32(), any_u64());
    let rest = (prop::option::of(some_name()), btree_set(some_name(), 0..2), migration, power);
    (some_name(), state, any_u64(), any_u64(), amounts(), rest).prop_map(
        |(name, state, since, seen, capacity, (domain, labels, migration, power))| Host {
            state,
            since_unix_ms: since,
            seen_unix_ms: seen,
            capacity,
            domain,
            labels,
            migration: MigrationRoom { moves_max: migration.0, bytes_per_s: migration.1, is_assumed: false },
            power: power.map(|(watts, standby_watts, wake_ms)| PowerModel { watts, standby_watts, wake_ms }),
            ..host(name.as_str())
        },
    )
}

fn garbage_vm() -> impl Strategy<Value = Vm> {
    let times = (prop::option::of(any_u64()), vec(any_u64(), 0..3));
    let writes = (any_u64(), any_u64(), any_u64());
    let places = (some_name(), prop::option::of(some_name()), prop::option::of(some_name()));
    (places, controls(), amounts(), amounts(), (any_u64(), any_u32()), times, writes).prop_map(
        |((own, host, pool), controls, demand, expected, (memory, vcpus), times, writes)| Vm {
            host,
            pool,
            controls,
            demand,
            expected,
            demand_long: demand,
            recent_mhz: Vec::new(),
            ahead_mhz: Vec::new(),
            memory,
            vcpus,
            measured_unix_ms: times.0,
            moved_unix_ms: times.1,
            writes: Writes { used: writes.0, hot: writes.1, bytes_per_s: writes.2 },
            ..vm(own.as_str(), None, 0, 0)
        },
    )
}

fn garbage_pool() -> impl Strategy<Value = Pool> {
    (some_name(), prop::option::of(some_name()), controls(), any::<bool>()).prop_map(
        |(name, parent, controls, yes)| Pool {
            name,
            parent,
            controls,
            expandable: PerResource { cpu: yes, memory: !yes, network: yes, storage: yes },
            scalable_shares: yes,
        },
    )
}

fn garbage_rule() -> impl Strategy<Value = Rule> {
    let hosts = (btree_set(some_name(), 0..3), btree_set(some_name(), 0..2));
    (some_name(), btree_set(some_name(), 0..5), hosts, any_u32(), 0..6u8, any::<bool>()).prop_map(
        |(name, vms, (names, labels), count, kind, must)| {
            let hosts = Hosts { names, labels };
            let kind = match kind {
                0 => RuleKind::Together { vms },
                1 => RuleKind::Apart { vms },
                2 => RuleKind::MaxPerHost { vms, most: count },
                3 => RuleKind::Spread { vms, domains: count },
                4 => RuleKind::RunOn { vms, hosts },
                _ => RuleKind::NotOn { vms, hosts },
            };
            Rule { name, must, kind }
        },
    )
}

/// Whatever the types allow.
pub(crate) fn garbage() -> impl Strategy<Value = Snapshot> {
    let lists = (vec(garbage_host(), 0..6), vec(garbage_vm(), 0..8));
    (any_u64(), lists, vec(garbage_pool(), 0..4), vec(garbage_rule(), 0..4)).prop_map(
        |(at_unix_ms, (hosts, vms), pools, rules)| Snapshot { at_unix_ms, hosts, vms, pools, rules },
    )
}

pub(crate) fn garbage_goals() -> impl Strategy<Value = Goal> {
    prop_oneof![
        2 => Just(Goal::Balance),
        1 => Just(Goal::Place),
        1 => vec(some_name(), 0..3).prop_map(|hosts| Goal::Evacuate { hosts }),
        1 => some_name().prop_map(|vm| Goal::MakeRoom { vm }),
    ]
}

pub(crate) fn garbage_policies() -> impl Strategy<Value = Policy> {
    let power = (any::<bool>(), any_u32(), any_u32(), any_u32(), any_u64(), any_u32()).prop_map(
        |(enabled, target_percent, band_percent, hosts_on_min, uptime_min_ms, benefit_ratio)| PowerPolicy {
            enabled,
            target_percent,
            band_percent,
            hosts_on_min,
            uptime_min_ms,
            benefit_ratio,
        },
    );
    (any::<u8>(), any_u64(), any_u32(), any_u64(), any_u32(), any_u64(), power).prop_map(
        |(threshold, stale_ms, moved_max_permille, cooldown_ms, failures, stable_ms, power)| Policy {
            threshold,
            stale_ms,
            moved_max_permille,
            cooldown_ms,
            failures_to_tolerate: failures,
            stable_ms,
            proposals_per_vm: 40,
            power,
            ..Policy::default()
        },
    )
}
