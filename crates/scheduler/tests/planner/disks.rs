//! Disks that only some hosts reach: they stay with their VM, or go along where that was said and there is room.

use godwit_scheduler::planner::{Goal, Plan, plan};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::snapshot::{Disk, HostState, Room, Snapshot, Vm};

use crate::cases::*;

/// Each host has a datastore `local` of its own, with so many GiB free.
fn with_local(mut snapshot: Snapshot, free_gib: u64) -> Snapshot {
    for host in &mut snapshot.hosts {
        let storage = name(&format!("local.{}", host.name));
        host.datastores.extend([name("local"), storage.clone()]);
        host.rooms.insert(name("local"), Room { storage, free: free_gib * GIB });
    }
    snapshot
}

/// A VM on `a` whose disk there holds so many GiB.
fn with_disk(text: &str, gib: u64) -> Vm {
    let mut vm = vm(text, Some("a"), 500, 4);
    vm.needs.datastores = names(&["local", "local.a"]);
    vm.disks = vec![Disk { datastore: name("local"), storage: name("local.a"), bytes: gib * GIB }];
    vm
}

fn emptied(vms: Vec<Vm>, free_gib: u64, move_disks: bool) -> Plan {
    let mut snapshot = with_local(cluster(&["a", "b", "c"], vms), free_gib);
    (snapshot.hosts[0].state, snapshot.hosts[0].move_disks) = (HostState::Maintenance, move_disks);
    planned(&snapshot, &Goal::Balance)
}

fn why(plan: &Plan, vm: &str) -> String {
    let why = plan.unmoved.iter().find(|why| why.vm == name(vm)).expect("it stays");
    why.reasons.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_vm_on_a_local_disk_stays_unless_disks_are_said_to_go_along() {
    let stays = emptied(vec![with_disk("db", 10)], 100, false);
    assert_eq!(stays.steps, []);
    assert!(why(&stays, "db").contains("disks stay unless --move-disks is given"), "{}", why(&stays, "db"));
    let goes = emptied(vec![with_disk("db", 10)], 100, true);
    assert_eq!(moves(&goes).len(), 1);
    assert!(goes.unmoved.is_empty());
}

#[test]
fn what_disks_hold_is_in_what_the_move_costs() {
    let cost = |gib| emptied(vec![with_disk("db", gib)], 100, true).steps[0].cost;
    let (small, large) = (cost(1), cost(41));
    assert!(large.bytes - small.bytes >= 40 * GIB, "{small:?} {large:?}");
    assert!(large.duration_ms > small.duration_ms + 30_000, "{small:?} {large:?}");
}

#[test]
fn room_for_disks_is_shared_by_all_that_come_and_who_finds_none_is_told() {
    let vms = vec![with_disk("db1", 60), with_disk("db2", 60), with_disk("db3", 60)];
    let plan = emptied(vms, 100, true);
    let mut to: Vec<String> = moves(&plan).into_iter().map(|(.., to)| to).collect();
    to.sort();
    assert_eq!(to, ["b", "c"], "one to each, and the third to none");
    let stays = plan.unmoved.first().expect("one stays").vm.to_string();
    assert!(why(&plan, &stays).contains("no room for 60GiB of disks"), "{}", why(&plan, &stays));
}

#[test]
fn hosts_that_share_a_storage_share_its_room_and_bring_nothing_to_each_other() {
    let vms = vec![with_disk("db1", 60), with_disk("db2", 60)];
    let mut snapshot = with_local(cluster(&["a", "b", "c"], vms), 100);
    snapshot.hosts[0].state = HostState::Maintenance;
    snapshot.hosts[0].move_disks = true;
    // b and c have one storage under that name.
    let room = snapshot.hosts[1].rooms.clone();
    snapshot.hosts[2].rooms = room;
    assert_eq!(moves(&planned(&snapshot, &Goal::Balance)).len(), 1, "there is room for one");
    // Now all three have one.
    let room = Room { storage: name("local.a"), free: 0 };
    for host in &mut snapshot.hosts {
        host.datastores.insert(name("local.a"));
        host.rooms.insert(name("local"), room.clone());
    }
    let plan = planned(&snapshot, &Goal::Balance);
    assert_eq!(moves(&plan).len(), 2);
    assert!(plan.steps.iter().all(|step| step.cost.bytes < 10 * GIB), "no disk goes");
}

#[test]
fn balancing_takes_disks_along_only_if_the_policy_says_so() {
    let vms = (0..8).map(|at| with_disk(&format!("db{at}"), 1)).collect();
    let snapshot = with_local(cluster(&["a", "b"], vms), 100);
    let with = |move_disks| {
        let policy = Policy { move_disks, moved_max_permille: 1000, threshold: 5, ..Policy::default() };
        moves(&plan(&snapshot, &policy, &Goal::Balance, 7)).len()
    };
    assert_eq!(with(false), 0);
    assert!(with(true) > 0);
}
