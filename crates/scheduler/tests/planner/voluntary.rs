//! Moves that are worth it are made, and no others.

use godwit_scheduler::Resource;
use godwit_scheduler::planner::{Goal, Reason, plan};
use godwit_scheduler::policy::Policy;

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
