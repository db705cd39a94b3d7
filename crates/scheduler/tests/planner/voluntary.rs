//! Moves that are worth it are made, and no others.

use godwit_scheduler::Resource;
use godwit_scheduler::planner::{Goal, Plan, Reason, plan};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::snapshot::{HostState, Snapshot};

use crate::cases::*;

#[test]
fn a_cluster_that_is_even_is_left_alone() {
    let vms =
        (0..9).map(|at| vm(&format!("vm{at}"), Some(["a", "b", "c"][at % 3]), 1000 + 20 * at as u64, 8));
    let snapshot = cluster(&["a", "b", "c"], vms.collect());
    for threshold in 1..=5 {
        let plan = plan(&snapshot, &Policy { threshold, ..Policy::default() }, &Goal::Balance, 1);
        assert_eq!(plan.steps, [], "{threshold}");
    }
}

#[test]
fn vms_that_starve_are_moved_to_where_there_is_plenty() {
    let vms = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 3000, 4)).collect();
    let snapshot = cluster(&["a", "b", "c"], vms);
    let policy = Policy { moved_max_permille: 1000, ..Policy::default() };
    let plan = plan(&snapshot, &policy, &Goal::Balance, 1);
    assert!(plan.before.happiness < plan.after.happiness, "{plan:#?}");
    assert_eq!(plan.after.unhappiest, None);
    assert!(plan.steps.iter().any(|step| step.reason == Reason::Entitlement { resource: Resource::Cpu }));
}

#[test]
fn two_hogs_of_different_kinds_are_separated() {
    let mut hungry = vm("memory-hog", Some("a"), 1500, 40);
    hungry.demand.memory = 38 * GIB;
    let snapshot = cluster(
        &["a", "b", "c"],
        vec![vm("cpu-hog", Some("a"), 8000, 4), hungry, vm("idle", Some("b"), 100, 4)],
    );
    let plan = planned(&snapshot, &Goal::Balance);
    assert_ne!(place(&snapshot, &plan, "cpu-hog"), place(&snapshot, &plan, "memory-hog"), "{plan:#?}");
    assert_eq!(plan.steps.len(), 1);
}

#[test]
fn a_vm_that_has_just_moved_rests() {
    let mut vms: Vec<_> = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 3000, 4)).collect();
    vms.iter_mut().for_each(|vm| vm.moved_unix_ms = vec![NOW_MS - 60_000]);
    let snapshot = cluster(&["a", "b", "c"], vms);
    assert_eq!(planned(&snapshot, &Goal::Balance).steps, []);
}

#[test]
fn a_vm_that_stays_unhappy_is_told_why() {
    let vms = vec![vm("one", Some("a"), 9000, 4), vm("other", Some("a"), 9000, 4)];
    let mut snapshot = cluster(&["a", "b"], vms);
    snapshot.vms.iter_mut().for_each(|vm| vm.needs.networks = names(&["dmz"]));
    snapshot.hosts[0].networks = names(&["dmz"]);
    let plan = planned(&snapshot, &Goal::Balance);
    assert_eq!(plan.steps, []);
    let why = plan.unmoved.iter().find(|why| why.vm == name("one")).expect("it starves");
    assert_eq!(why.wrong, "it receives 55.5 % of what it is entitled to");
    assert_eq!(why.reasons, [(Some(name("b")), "it has no network 'dmz'".to_owned())]);
}

/// The snapshot as it is once a plan was carried out, a minute later.
fn after(snapshot: &Snapshot, plan: &Plan) -> Snapshot {
    let mut after = snapshot.clone();
    for vm in &mut after.vms {
        if let Some(host) = place(snapshot, plan, vm.name.as_str()) {
            vm.host = Some(name(&host));
        }
    }
    after
}

#[test]
fn a_plan_that_was_carried_out_leaves_little_to_do_even_without_rest() {
    let vms = (0..40).map(|at| {
        let host = if at % 3 == 0 { "a" } else { "b" };
        vm(&format!("vm{at:02}"), Some(host), 300 + 97 * (at % 11), 1 + at % 4)
    });
    let mut snapshot = cluster(&["a", "b", "c", "d"], vms.collect());
    let policy = Policy { moved_max_permille: 1000, cooldown_ms: 0, ..Policy::default() };
    let mut moved = Vec::new();
    for seed in 0..4 {
        let plan = plan(&snapshot, &policy, &Goal::Balance, seed);
        moved.push(plan.steps.len());
        snapshot = after(&snapshot, &plan);
    }
    assert!(moved[0] > 10 && moved[1..] == [0, 0, 0], "{moved:?}");
}

#[test]
fn a_host_in_maintenance_does_not_make_the_others_uneven() {
    let vms = (0..8).map(|at| vm(&format!("vm{at}"), Some(["a", "b"][at % 2]), 1000 + 50 * at as u64, 8));
    let mut snapshot = cluster(&["a", "b", "c"], vms.collect());
    snapshot.hosts[2].state = HostState::Maintenance;
    assert_eq!(planned(&snapshot, &Goal::Balance).steps, []);
}

#[test]
fn a_resource_that_a_host_does_not_tell_of_makes_nobody_unhappy() {
    let mut snapshot = cluster(&["a", "b"], vec![vm("vm", Some("a"), 1000, 4)]);
    snapshot.vms[0].demand.network = 1_000_000;
    snapshot.hosts[1].capacity.network = 1_000_000_000;
    let plan = planned(&snapshot, &Goal::Balance);
    assert_eq!((plan.steps.len(), plan.before.unhappiest), (0, None));
}

/// Four hosts, the first used by half and the others by a third.
fn slightly_uneven() -> Snapshot {
    let mut vms: Vec<_> = (0..10).map(|at| vm(&format!("a{at}"), Some("a"), 500, 2)).collect();
    for host in ["b", "c", "d"] {
        vms.extend((0..7).map(|at| vm(&format!("{host}{at}"), Some(host), 500, 2)));
    }
    cluster(&["a", "b", "c", "d"], vms)
}

#[test]
fn how_much_a_move_must_matter_is_the_policys_to_say() {
    let snapshot = slightly_uneven();
    let steps = |threshold| {
        let plan = plan(&snapshot, &Policy { threshold, ..Policy::default() }, &Goal::Balance, 1);
        plan.steps.iter().map(|step| step.priority).collect::<Vec<_>>()
    };
    assert_eq!([steps(1).len(), steps(3).len()], [0, 0]);
    assert!(!steps(4).is_empty() && steps(4).iter().all(|priority| *priority == 4), "{:?}", steps(4));
}

#[test]
fn a_move_that_takes_longer_than_it_is_good_for_is_not_made() {
    let mut snapshot = slightly_uneven();
    snapshot.hosts.iter_mut().for_each(|host| host.migration.bytes_per_s = 10_000_000);
    let steps = |stable_ms| {
        let policy = Policy { threshold: 5, stable_ms, ..Policy::default() };
        plan(&snapshot, &policy, &Goal::Balance, 1).steps.len()
    };
    assert_eq!(steps(30 * 60_000), 0);
    assert!(steps(24 * 3_600_000) > 0);
}
