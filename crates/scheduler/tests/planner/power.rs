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
    let policy = Policy { moved_max_permille: 1000, ..saving() };
    let plan = balanced(&powered(&["a", "b", "c"], idle()), &policy);
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
    let plan = balanced(&snapshot, &saving());
    assert_eq!(spared(&plan), ["j"], "{plan:#?}");
    assert_eq!(plan.kept_on.len(), 10, "{:#?}", plan.kept_on);
    let why = |host: &str| &plan.kept_on.iter().find(|kept| kept.host == name(host)).unwrap().why;
    assert!(why("a").contains("no other host"), "{}", why("a"));
    assert!(why("k").contains("enough VMs"), "{}", why("k"));
}

/// Two VMs on a host each, which want so much in the last slots.
fn bursting(one: [u64; 4], other: [u64; 4]) -> Snapshot {
    let mut vms = vec![vm("one", Some("a"), one[3], 1), vm("other", Some("b"), other[3], 1)];
    (vms[0].recent_mhz, vms[1].recent_mhz) = (one.to_vec(), other.to_vec());
    powered(&["a", "b"], vms)
}

#[test]
fn bursts_that_do_not_coincide_share_a_host_and_those_that_do_have_one_each() {
    let apart = bursting([6000, 0, 6000, 0], [0, 6000, 0, 6000]);
    assert_eq!(spared(&balanced(&apart, &saving())).len(), 1);
    let together = balanced(&bursting([6000, 0, 6000, 0], [6000, 0, 6000, 0]), &saving());
    assert_eq!(together.steps, []);
    let whys: Vec<&str> = together.kept_on.iter().map(|kept| kept.why.as_str()).collect();
    assert_eq!(whys, ["the others would be used for more than the target"; 2]);
}

#[test]
fn an_hour_that_is_expected_to_be_busy_keeps_hosts_on() {
    let mut snapshot = bursting([100; 4], [100; 4]);
    assert_eq!(spared(&balanced(&snapshot, &saving())).len(), 1);
    snapshot.vms.iter_mut().for_each(|vm| vm.ahead_mhz = vec![4000; 12]);
    assert_eq!(balanced(&snapshot, &saving()).steps, []);
}

#[test]
fn without_a_past_the_most_of_late_counts_for_each_vm() {
    let mut snapshot = bursting([100; 4], [100; 4]);
    for vm in &mut snapshot.vms {
        vm.recent_mhz.clear();
        vm.demand_long.cpu = 4000;
    }
    assert_eq!(balanced(&snapshot, &saving()).steps, []);
}

#[test]
fn as_many_hosts_wake_as_take_what_is_too_much_those_that_were_off_longest_first() {
    let vms: Vec<Vm> = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 4000, 1)).collect();
    let mut snapshot = asleep(powered(&["a", "b", "c", "d", "e"], vms), &["b", "c", "d", "e"]);
    snapshot.hosts[1].since_unix_ms += 1000;
    let plan = balanced(&snapshot, &saving());
    assert_eq!(woken(&plan), ["c", "d"], "{plan:#?}");
    assert_eq!(moves(&plan), [], "nobody goes to a host that is not there");
}

#[test]
fn a_vm_that_has_moved_lately_moves_again_only_from_a_host_that_has_too_little() {
    let leaves = |mhz: u64| {
        let mut vms = vec![vm("one", Some("a"), mhz, 1), vm("other", Some("a"), mhz, 1)];
        vms.push(vm("alone", Some("b"), 100, 1));
        vms.iter_mut().for_each(|vm| vm.moved_unix_ms = vec![NOW_MS - 60_000]);
        moves(&balanced(&powered(&["a", "b"], vms), &saving())).len()
    };
    assert_eq!([leaves(4500), leaves(5500)], [0, 1], "at 90 % it can wait");
}

#[test]
fn a_vm_that_fills_a_host_stays_there() {
    let snapshot = asleep(powered(&["a", "b"], vec![vm("large", Some("a"), 9500, 1)]), &["b"]);
    assert_eq!(balanced(&snapshot, &saving()).steps, []);
}

#[test]
fn hosts_that_are_on_need_not_be_even() {
    let vms = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 1200, 1)).collect();
    let mut snapshot = powered(&["a", "b"], vms);
    snapshot.hosts[1].since_unix_ms = NOW_MS;
    assert_eq!(balanced(&snapshot, &Policy { threshold: 5, ..saving() }).steps, []);
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
