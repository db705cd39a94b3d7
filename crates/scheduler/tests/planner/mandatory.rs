//! What must be done is done, and what cannot be done is explained.

use godwit_scheduler::planner::{Goal, Reason};
use godwit_scheduler::rules::RuleKind;
use godwit_scheduler::snapshot::HostState;

use crate::cases::*;

#[test]
fn a_host_in_maintenance_is_emptied_and_gets_nothing() {
    let vms = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 500, 4)).collect();
    let mut snapshot = cluster(&["a", "b", "c"], vms);
    snapshot.hosts[0].state = HostState::Maintenance;
    let plan = planned(&snapshot, &Goal::Balance);
    assert_eq!(plan.steps.len(), 6);
    assert!(plan.steps.iter().all(|step| step.priority == 1));
    assert!(plan.steps.iter().all(|step| step.reason == Reason::Maintenance { host: name("a") }));
    let to = |host: &str| moves(&plan).iter().filter(|(.., to)| to == host).count();
    assert_eq!((to("b"), to("c")), (3, 3));
    // Four leave at a time.
    assert_eq!(plan.steps.iter().filter(|step| step.begins_ms == 0).count(), 4);
    assert!(plan.unmoved.is_empty() && plan.findings.is_empty(), "{plan:#?}");
}

#[test]
fn whoever_cannot_leave_is_named_with_every_reason() {
    let mut pinned = vm("pinned", Some("a"), 500, 4);
    pinned.pinned = Some("its disk is on this host alone".into());
    let mut picky = vm("picky", Some("a"), 500, 4);
    picky.needs.networks = names(&["dmz"]);
    let mut snapshot = cluster(
        &["a", "b", "c"],
        vec![pinned, picky, vm("huge", Some("a"), 500, 63), vm("there", Some("b"), 1, 2)],
    );
    snapshot.hosts[2].state = HostState::Standby;
    let plan = planned(&snapshot, &Goal::Evacuate { hosts: vec![name("a")] });
    assert_eq!(plan.steps, []);
    let reasons = |vm: &str| {
        let why = plan.unmoved.iter().find(|why| why.vm == name(vm)).expect(vm);
        why.reasons
            .iter()
            .map(|(host, why)| (host.as_ref().map_or("", |host| host.as_str()), why.as_str()))
            .collect::<Vec<_>>()
    };
    assert_eq!(reasons("pinned"), [("", "its disk is on this host alone")]);
    assert_eq!(
        reasons("picky"),
        [("b", "it has no network 'dmz'"), ("c", "it is switched off to save power")]
    );
    assert_eq!(
        reasons("huge"),
        [("b", "62GiB of memory are free, and 63GiB are needed"), ("c", "it is switched off to save power")]
    );
}

#[test]
fn a_rule_that_is_broken_is_mended_by_one_move() {
    let mut snapshot =
        cluster(&["a", "b"], vec![vm("one", Some("a"), 500, 4), vm("other", Some("a"), 500, 8)]);
    let apart = must("apart", RuleKind::Apart { vms: names(&["one", "other"]) });
    snapshot.rules.push(apart);
    let plan = planned(&snapshot, &Goal::Balance);
    assert_eq!(moves(&plan).len(), 1);
    assert_eq!(plan.steps[0].reason, Reason::Rule { rule: name("apart") });
    assert_eq!((plan.before.broken, plan.after.broken), (vec![name("apart")], vec![]));
}

#[test]
fn vms_that_belong_together_are_gathered_and_leave_together() {
    let rule = must("pair", RuleKind::Together { vms: names(&["one", "other"]) });
    let mut split =
        cluster(&["a", "b", "c"], vec![vm("one", Some("a"), 500, 4), vm("other", Some("b"), 500, 8)]);
    split.rules.push(rule.clone());
    let plan = planned(&split, &Goal::Balance);
    assert_eq!((plan.steps.len(), place(&split, &plan, "one")), (1, place(&split, &plan, "other")));
    let mut joined = cluster(&["a", "b"], vec![vm("one", Some("a"), 500, 4), vm("other", Some("a"), 500, 8)]);
    joined.rules.push(rule);
    let plan = planned(&joined, &Goal::Evacuate { hosts: vec![name("a")] });
    assert_eq!(moves(&plan).iter().filter(|(.., to)| to == "b").count(), 2);
}

#[test]
fn vms_are_placed_where_they_fit_and_apart_from_each_other() {
    let mut snapshot = cluster(
        &["a", "b", "c"],
        vec![vm("full", Some("a"), 100, 63), vm("one", None, 500, 4), vm("other", None, 500, 4)],
    );
    snapshot.rules.push(must("apart", RuleKind::Apart { vms: names(&["one", "other"]) }));
    let plan = planned(&snapshot, &Goal::Place);
    let mut on: Vec<String> = moves(&plan).into_iter().map(|(.., to)| to).collect();
    on.sort();
    assert_eq!(on, ["b", "c"]);
    assert!(plan.steps.iter().all(|step| step.reason == Reason::Start));
}

#[test]
fn others_make_room_for_a_vm_that_fits_nowhere() {
    let mut snapshot = cluster(
        &["a", "b"],
        vec![vm("one", Some("a"), 100, 20), vm("two", Some("b"), 100, 20), vm("new", None, 100, 50)],
    );
    let placed = planned(&snapshot, &Goal::Place);
    assert_eq!((placed.steps.len(), placed.unmoved.len()), (0, 1));
    let plan = planned(&snapshot, &Goal::MakeRoom { vm: name("new") });
    assert_eq!(plan.steps.len(), 2, "{plan:#?}");
    assert_eq!(plan.steps[0].reason, Reason::Room { vm: name("new") });
    assert_eq!(plan.steps[1].after, [0]);
    assert!(plan.steps[1].begins_ms >= plan.steps[0].ends_ms);
    snapshot.vms[0].pinned = Some("a task is under way".into());
    snapshot.vms[1].pinned = Some("a task is under way".into());
    let plan = planned(&snapshot, &Goal::MakeRoom { vm: name("new") });
    assert_eq!((plan.steps.len(), plan.unmoved.len()), (0, 1));
}

#[test]
fn a_cycle_is_broken_by_way_of_a_third_host() {
    // Two hosts so full that neither can take anything; licences ask for an exchange.
    let mut snapshot = cluster(
        &["a", "b", "c"],
        vec![vm("one", Some("a"), 100, 40), vm("two", Some("b"), 100, 40), vm("big", Some("c"), 100, 20)],
    );
    snapshot.rules.push(must("one-on-b", RuleKind::RunOn { vms: names(&["one"]), hosts: on(&["b", "c"]) }));
    snapshot.rules.push(must("two-on-a", RuleKind::RunOn { vms: names(&["two"]), hosts: on(&["a"]) }));
    snapshot.rules.push(must("big-on-c", RuleKind::RunOn { vms: names(&["big"]), hosts: on(&["c"]) }));
    let plan = planned(&snapshot, &Goal::Balance);
    assert_eq!(plan.after.broken, [], "{plan:#?}");
}
