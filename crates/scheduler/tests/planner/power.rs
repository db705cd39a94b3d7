//! Hosts sleep when they are not needed, and wake when they are.

use godwit_scheduler::planner::{Action, Goal, Plan, Reason, plan};
use godwit_scheduler::policy::{Policy, PowerPolicy};
use godwit_scheduler::rules::{Hosts, Rule, RuleKind};
use godwit_scheduler::snapshot::{HostState, PowerModel, Snapshot, Vm};

use crate::cases::*;

fn saving() -> Policy {
    Policy { power: PowerPolicy { enabled: true, ..PowerPolicy::default() }, ..Policy::default() }
}

/// Hosts that draw 100 to 200 W.
fn powered(hosts: &[&str], vms: Vec<Vm>) -> Snapshot {
    let mut snapshot = cluster(hosts, vms);
    for host in &mut snapshot.hosts {
        host.power = Some(PowerModel { watts: vec![100, 200], standby_watts: 5, wake_ms: 120_000 });
    }
    snapshot
}

fn asleep(mut snapshot: Snapshot, hosts: &[&str]) -> Snapshot {
    for host in snapshot.hosts.iter_mut().filter(|host| hosts.contains(&host.name.as_str())) {
        host.state = HostState::Standby;
    }
    snapshot
}

fn balanced(snapshot: &Snapshot, policy: &Policy) -> Plan {
    plan(snapshot, policy, &Goal::Balance, 1)
}

fn spared(plan: &Plan) -> Vec<String> {
    let standby = |action: &Action| match action {
        Action::Standby { host } => Some(host.to_string()),
        _ => None,
    };
    plan.steps.iter().filter_map(|step| standby(&step.action)).collect()
}

fn woken(plan: &Plan) -> Vec<String> {
    let wake = |action: &Action| match action {
        Action::Wake { host } => Some(host.to_string()),
        _ => None,
    };
    plan.steps.iter().filter_map(|step| wake(&step.action)).collect()
}

fn idle() -> Vec<Vm> {
    ["a", "b", "c"].iter().enumerate().map(|(at, on)| vm(&format!("vm{at}"), Some(on), 300, 1)).collect()
}

#[test]
fn an_idle_cluster_shrinks_to_one_host_and_vms_leave_before_their_hosts_sleep() {
    let plan = balanced(&powered(&["a", "b", "c"], idle()), &saving());
    assert_eq!(spared(&plan).len(), 2, "{plan:#?}");
    assert_eq!(moves(&plan).len(), 2);
    for step in plan.steps.iter().filter(|step| matches!(step.action, Action::Standby { .. })) {
        assert!(step.after.iter().all(|first| plan.steps[*first].ends_ms <= step.begins_ms));
        assert_eq!(step.after.len(), 1);
    }
    assert!(plan.before.watts > 300 && plan.after.watts < 130, "{:?} {:?}", plan.before, plan.after);
}

#[test]
fn hosts_stay_on_as_the_policy_asks() {
    let snapshot = powered(&["a", "b", "c"], idle());
    let with = |power: PowerPolicy| spared(&balanced(&snapshot, &Policy { power, ..saving() })).len();
    let on = saving().power;
    assert_eq!(with(PowerPolicy { enabled: false, ..on.clone() }), 0);
    assert_eq!(with(PowerPolicy { hosts_on_min: 2, ..on.clone() }), 1);
    assert_eq!(with(PowerPolicy { uptime_min_ms: 7_200_000, ..on.clone() }), 0);
    assert_eq!(with(PowerPolicy { benefit_ratio: 1_000_000, ..on }), 0);
    let tolerant = Policy { failures_to_tolerate: 2, ..saving() };
    assert_eq!(spared(&balanced(&snapshot, &tolerant)), Vec::<String>::new());
    let careful = Policy { threshold: 2, ..saving() };
    assert_eq!(balanced(&snapshot, &careful).steps, []);
}

#[test]
fn what_vms_have_wanted_lately_keeps_hosts_on() {
    let mut snapshot = powered(&["a", "b", "c"], idle());
    snapshot.vms.iter_mut().for_each(|vm| vm.demand_long.cpu = 7000);
    assert_eq!(balanced(&snapshot, &saving()).steps, []);
}

#[test]
fn hosts_that_cannot_be_spared_do_not_keep_others_from_being_tried() {
    let kept = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let mut vms: Vec<Vm> = kept.iter().map(|on| vm(&format!("kept-{on}"), Some(on), 100, 1)).collect();
    vms.extend(["j", "k"].map(|on| vm(&format!("free-{on}"), Some(on), 100, 2)));
    let hosts: Vec<&str> = kept.into_iter().chain(["j", "k"]).collect();
    let mut snapshot = powered(&hosts, vms);
    let stays = |on: &&str| Rule {
        name: name(&format!("stays-{on}")),
        must: true,
        kind: RuleKind::RunOn {
            vms: names(&[&format!("kept-{on}")]),
            hosts: Hosts { names: names(&[on]), ..Hosts::default() },
        },
    };
    snapshot.rules = kept.iter().map(stays).collect();
    let mut tried = Vec::new();
    for minute in 0..11 {
        snapshot.at_unix_ms = NOW_MS + minute * 60_000;
        snapshot.hosts.iter_mut().for_each(|host| host.seen_unix_ms = snapshot.at_unix_ms);
        tried.push(spared(&balanced(&snapshot, &saving())));
    }
    assert!(tried.iter().any(Vec::is_empty), "those with the least to move are more than are tried at once");
    assert!(tried.iter().flatten().all(|host| ["j", "k"].contains(&host.as_str())), "{tried:?}");
    assert!(tried.iter().any(|spared| !spared.is_empty()), "{tried:?}");
}

#[test]
fn a_host_is_spared_before_the_cluster_is_made_a_little_more_even() {
    let mut vms = idle();
    vms.extend((0..4).map(|at| vm(&format!("more{at}"), Some("a"), 600, 1)));
    let snapshot = powered(&["a", "b", "c"], vms);
    let even = balanced(&snapshot, &Policy { threshold: 5, ..Policy::default() });
    assert!(!moves(&even).is_empty(), "there is something to make more even");
    assert!(!spared(&balanced(&snapshot, &Policy { threshold: 5, ..saving() })).is_empty());
}

#[test]
fn a_host_that_is_used_too_much_wakes_another() {
    let vms: Vec<Vm> = (0..3).map(|at| vm(&format!("vm{at}"), Some("a"), 3000, 1)).collect();
    let snapshot = asleep(powered(&["a", "b", "c"], vms), &["b", "c"]);
    let plan = balanced(&snapshot, &saving());
    assert_eq!(woken(&plan), ["b"], "{plan:#?}");
    assert!(
        plan.steps.iter().any(|step| step.reason == Reason::Power { host: name("b") } && step.gain > 0.0)
    );
    let mut waking = snapshot.clone();
    waking.hosts[1].state = HostState::Waking;
    assert_eq!(balanced(&waking, &saving()).steps, [], "one at a time");
    let calm = asleep(powered(&["a", "b"], vec![vm("vm", Some("a"), 6000, 1)]), &["b"]);
    assert_eq!(balanced(&calm, &saving()).steps, [], "within the band");
}

#[test]
fn a_vm_that_fits_nowhere_wakes_the_host_that_has_room_for_it() {
    let mut snapshot = asleep(
        powered(&["a", "b", "c"], vec![vm("full", Some("a"), 100, 60), vm("new", None, 100, 10)]),
        &["b", "c"],
    );
    snapshot.hosts[1].capacity.memory = 8 * GIB;
    let plan = plan(&snapshot, &Policy { threshold: 1, ..saving() }, &Goal::Place, 1);
    assert_eq!(woken(&plan), ["c"], "{plan:#?}");
    assert_eq!(plan.steps[0].reason, Reason::Room { vm: name("new") });
    let why = &plan.unmoved[0].reasons;
    assert!(why.contains(&(Some(name("c")), "it is being woken".into())), "{why:?}");
}

#[test]
fn a_loss_that_is_prepared_for_wakes_hosts() {
    let snapshot = asleep(powered(&["a", "b", "c"], idle()[..1].to_vec()), &["b", "c"]);
    let tolerant = Policy { failures_to_tolerate: 1, ..saving() };
    assert_eq!(woken(&balanced(&snapshot, &tolerant)), ["b"]);
    assert_eq!(balanced(&snapshot, &saving()).steps, []);
}
