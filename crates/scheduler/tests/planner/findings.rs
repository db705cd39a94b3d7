//! Whatever is wrong is said, and left alone.

use godwit_scheduler::PerResource;
use godwit_scheduler::entitlement::{Controls, Pool};
use godwit_scheduler::planner::{Goal, Plan, plan};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::rules::{Rule, RuleKind, conflicts};
use godwit_scheduler::snapshot::{HostState, Snapshot};

use crate::cases::*;

/// VMs on one of three hosts that would be moved if nothing were wrong.
fn uneven() -> Snapshot {
    let vms = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 3000, 4)).collect();
    cluster(&["a", "b", "c"], vms)
}

fn eager() -> Policy {
    Policy { moved_max_permille: 1000, threshold: 5, ..Policy::default() }
}

fn pool(text: &str, parent: Option<&str>) -> Pool {
    Pool {
        name: name(text),
        parent: parent.map(name),
        controls: PerResource::default(),
        expandable: PerResource::from_fn(|_| true),
        scalable_shares: false,
    }
}

fn balanced(snapshot: &Snapshot, policy: &Policy) -> Plan {
    plan(snapshot, policy, &Goal::Balance, 1)
}

fn says(plan: &Plan, part: &str) -> bool {
    plan.findings.iter().any(|finding| finding.contains(part))
}

#[test]
fn nothing_is_wrong_to_begin_with() {
    let plan = balanced(&uneven(), &eager());
    assert!(plan.findings.is_empty() && plan.steps.len() == 4, "{plan:#?}");
}

#[test]
fn a_policy_that_makes_no_sense_moves_nobody() {
    for policy in [
        Policy { threshold: 9, ..eager() },
        Policy { threshold: 0, ..eager() },
        Policy { stable_ms: 0, ..eager() },
    ] {
        let plan = balanced(&uneven(), &policy);
        assert_eq!((plan.steps.len(), plan.findings.len()), (0, 1), "{plan:#?}");
        assert!(says(&plan, "the policy: "));
    }
}

#[test]
fn vms_of_pools_that_lie_within_themselves_stay() {
    let mut snapshot = uneven();
    snapshot.pools = vec![pool("one", Some("other")), pool("other", Some("one")), pool("below", Some("one"))];
    snapshot.vms.iter_mut().for_each(|vm| vm.pool = Some(name("below")));
    let plan = balanced(&snapshot, &eager());
    assert_eq!(plan.steps, []);
    assert!(says(&plan, "pool 'one' lies within itself: move one of the pools"), "{:?}", plan.findings);
}

#[test]
fn reservations_that_cannot_be_are_named_and_their_vms_stay() {
    let mut snapshot = uneven();
    for vm in &mut snapshot.vms {
        vm.controls.cpu = Controls { reservation: 9000, limit: Some(3000), shares: 0 };
    }
    let plan = balanced(&snapshot, &eager());
    assert_eq!(plan.steps, []);
    assert!(
        says(&plan, "VM 'vm0' reserves 9000 MHz of CPU and is limited to 3000 MHz"),
        "{:?}",
        plan.findings
    );
    snapshot
        .vms
        .iter_mut()
        .for_each(|vm| vm.controls.cpu = Controls { reservation: 8000, ..Controls::default() });
    let plan = balanced(&snapshot, &eager());
    assert_eq!(plan.steps, []);
    assert!(says(&plan, "18000 MHz of CPU are reserved beyond what the hosts have"), "{:?}", plan.findings);
}

#[test]
fn vms_that_were_not_measured_stay_and_leave_a_host_all_the_same() {
    let mut snapshot = uneven();
    snapshot.vms.iter_mut().for_each(|vm| vm.measured_unix_ms = None);
    let plan = balanced(&snapshot, &eager());
    assert_eq!(plan.steps, []);
    assert!(says(&plan, "6 VMs ('vm0', 'vm1', 'vm2', 'vm3', 'vm4', ...) were not measured lately"));
    snapshot.hosts[0].state = HostState::Maintenance;
    assert_eq!(balanced(&snapshot, &eager()).steps.len(), 6);
}

#[test]
fn a_host_that_is_not_heard_of_neither_gives_nor_gets() {
    let mut snapshot = uneven();
    snapshot.hosts[0].seen_unix_ms = NOW_MS - 75_000;
    let plan = balanced(&snapshot, &eager());
    assert_eq!(plan.steps, []);
    assert!(says(&plan, "host 'a' neither gives nor gets VMs, since it was not heard of for 75 s"));
    snapshot.hosts[0].seen_unix_ms = NOW_MS;
    snapshot.hosts[1].state = HostState::Lost;
    assert!(moves(&balanced(&snapshot, &eager())).iter().all(|(.., to)| to == "c"));
}

#[test]
fn names_that_nobody_has_are_named() {
    let mut snapshot = uneven();
    snapshot.rules.push(must("apart", RuleKind::Apart { vms: names(&["vm0", "ghost"]) }));
    snapshot
        .rules
        .push(must("licence", RuleKind::RunOn { vms: names(&["vm1"]), hosts: on(&["a", "nowhere"]) }));
    snapshot.vms.push(vm("lost", Some("gone"), 1, 1));
    let plan = plan(&snapshot, &eager(), &Goal::Evacuate { hosts: vec![name("b"), name("elsewhere")] }, 1);
    for part in
        ["VM 'ghost', which", "host 'nowhere', which", "host 'gone', which", "host 'elsewhere', which"]
    {
        assert!(says(&plan, part), "{part}: {:?}", plan.findings);
    }
}

#[test]
fn rules_that_contradict_each_other_are_named_without_those_that_do_not_matter() {
    let mut snapshot = uneven();
    let only = |text: &str, vm: &str, host: &str| {
        must(text, RuleKind::RunOn { vms: names(&[vm]), hosts: on(&[host]) })
    };
    snapshot.rules = vec![
        must("pair", RuleKind::Together { vms: names(&["vm0", "vm1"]) }),
        must("others", RuleKind::Apart { vms: names(&["vm1", "vm2"]) }),
        only("first", "vm0", "a"),
        only("second", "vm1", "b"),
        must("harmless", RuleKind::MaxPerHost { vms: names(&["vm0", "vm3"]), most: 1 }),
    ];
    let found = conflicts(&snapshot.hosts, &snapshot.vms, &snapshot.rules);
    let rules: Vec<&str> =
        found.iter().flat_map(|conflict| &conflict.rules).map(|rule| rule.as_str()).collect();
    assert_eq!(rules, ["first", "pair", "second"]);
    assert_eq!(
        found[0].to_string(),
        "rules 'first', 'pair', 'second' contradict each other: no hosts for 'vm0', 'vm1' are right for all of them"
    );
    let plan = balanced(&snapshot, &eager());
    assert!(says(&plan, "contradict each other"));
    assert!(moves(&plan).iter().all(|(vm, ..)| vm != "vm0" && vm != "vm1"), "{plan:#?}");
}

#[test]
fn more_vms_apart_than_hosts_are_a_contradiction_and_as_many_are_none() {
    let hosts: Vec<_> = (0..12).map(|at| host(&format!("h{at:02}"))).collect();
    let vms: Vec<_> = (0..13).map(|at| vm(&format!("vm{at:02}"), None, 1, 1)).collect();
    let apart = |count: usize| -> Vec<Rule> {
        let vms = vms.iter().take(count).map(|vm| vm.name.clone()).collect();
        vec![must("apart", RuleKind::Apart { vms })]
    };
    assert_eq!(conflicts(&hosts, &vms, &apart(12)), []);
    let found = conflicts(&hosts, &vms, &apart(13));
    assert!(found[0].to_string().starts_with("rule 'apart' cannot be kept"), "{found:?}");
}
