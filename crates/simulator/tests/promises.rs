//! What a simulation promises, whatever the scheduler does.

use godwit_scheduler::entitlement::Happiness;
use godwit_scheduler::planner::{Action, Cost, Goal, Plan, Reason, Standing, Step, plan};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::snapshot::Snapshot;
use godwit_simulator::trace::{HostRecord, VmRecord};
use godwit_simulator::{Report, SetupError, Simulation, Trace};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const STEP_MS: u64 = 300_000;

fn host(name: &str, cpu_mhz: u64, gib: u64) -> HostRecord {
    let mut host = HostRecord::new(name.parse().unwrap(), cpu_mhz, gib * GIB);
    host.watts = vec![100, 200];
    host.standby_watts = 10;
    host
}

fn vm(name: &str, on: Option<&str>, gib: u64, cpu_mhz: &[u64]) -> VmRecord {
    let mut vm = VmRecord::new(name.parse().unwrap(), 2, gib * GIB, cpu_mhz.to_vec());
    vm.host = on.map(|host| host.parse().unwrap());
    vm
}

fn trace(hosts: Vec<HostRecord>, vms: Vec<VmRecord>) -> Trace {
    Trace { interval_ms: STEP_MS, hosts, vms, ..Trace::default() }
}

fn eager() -> Policy {
    Policy {
        threshold: 5,
        proposals_per_vm: 200,
        cooldown_ms: 0,
        moved_max_permille: 1000,
        ..Policy::default()
    }
}

/// All steps; after each of them no VM is lost.
fn run(trace: Trace, mut scheduler: impl FnMut(&Snapshot, &Policy, &Goal, u64) -> Plan) -> Report {
    let mut simulation = Simulation::new(trace, eager(), 7).unwrap();
    while simulation.step(&mut scheduler).is_some() {
        assert!(simulation.is_sound());
    }
    simulation.report()
}

/// A plan of such steps, each beginning at once and taking ten seconds.
fn steps(actions: Vec<Action>) -> Plan {
    let standing =
        Standing { score: 0.0, happiness: Happiness::FULL, unhappiest: None, broken: Vec::new(), watts: 0 };
    let step = |action| Step {
        action,
        priority: 1,
        reason: Reason::Start,
        gain: 0.0,
        cost: Cost { duration_ms: 10_000, bytes: GIB, blackout_us: 1000, cpu_ms: 500 },
        after: Vec::new(),
        begins_ms: 0,
        ends_ms: 10_000,
    };
    Plan {
        steps: actions.into_iter().map(step).collect(),
        before: standing.clone(),
        after: standing,
        unmoved: Vec::new(),
        findings: Vec::new(),
        kept_on: Vec::new(),
    }
}

fn to(vm: &str, from: &str, to: &str) -> Action {
    let name = |text: &str| text.parse().unwrap();
    Action::Move { vm: name(vm), from: name(from), to: name(to) }
}

#[test]
fn two_hogs_on_one_host_are_separated_and_nothing_is_missing_from_then_on() {
    let hosts = vec![host("a", 10_000, 64), host("b", 10_000, 64)];
    let hogs = vec![vm("one", Some("a"), 4, &[8_000; 6]), vm("two", Some("a"), 4, &[8_000; 6])];
    let report = run(trace(hosts, hogs), plan);
    assert_eq!((report.summary.moves, report.summary.moves_in_vain), (1, 0));
    assert!(report.steps[0].overload_host_min > 0.0 && report.steps[0].happiness.p1 < 90.0);
    let last = &report.steps[5];
    assert_eq!((last.overload_host_min, last.unmet_mhz_h, last.happiness.p1), (0.0, 0.0, 100.0));
}

#[test]
fn vms_without_a_host_start_where_the_scheduler_says() {
    let hosts = vec![host("a", 10_000, 8), host("b", 10_000, 8)];
    let vms = (0..4).map(|n| vm(&format!("vm{n}"), None, 4, &[100, 100])).collect();
    let report = run(trace(hosts, vms), plan);
    assert_eq!((report.summary.waiting, report.summary.moves), (0, 0));
    assert_eq!(report.summary.happiness_mean, 100.0);
}

#[test]
fn a_vm_that_fits_nowhere_waits_and_is_said_to() {
    let report = run(trace(vec![host("a", 10_000, 8)], vec![vm("big", None, 16, &[100])]), plan);
    assert_eq!((report.summary.waiting, report.steps[0].happiness.p1), (1, 0.0));
    assert_eq!(report.summary.unmet_percent, 100.0);
}

#[test]
fn energy_is_power_times_time_and_hosts_in_standby_draw_what_they_say() {
    let hosts = || vec![host("a", 10_000, 8), host("b", 10_000, 8)];
    let half = || vec![vm("one", Some("a"), 1, &[5_000; 4])];
    let idle = run(trace(hosts(), half()), |_, _, _, _| steps(Vec::new()));
    // 150 W and 100 W for 20 minutes.
    assert!((idle.summary.energy_kwh - 0.25 / 3.0).abs() < 1e-9, "{:?}", idle.summary);
    let standby = || Action::Standby { host: "b".parse().unwrap() };
    let off = run(trace(hosts(), half()), |_, _, _, _| steps(vec![standby()]));
    assert!((off.summary.energy_kwh - 0.16 / 3.0).abs() < 1e-9, "{:?}", off.summary);
    assert_eq!((off.summary.hosts_on_max, off.steps[3].capacity_mhz), (1, 10_000.0));
    // It is asked again each step, and is off already.
    assert_eq!(off.summary.refused, 3);
}

#[test]
fn a_host_that_is_woken_is_there_once_it_has_had_its_time() {
    let hosts = vec![host("a", 10_000, 8), host("b", 10_000, 8)];
    let vms = vec![vm("one", Some("a"), 1, &[100; 5])];
    let b = || "b".parse().unwrap();
    let report = run(trace(hosts, vms), |snapshot, _, _, _| match snapshot.at_unix_ms / STEP_MS {
        0 => steps(vec![Action::Standby { host: b() }]),
        2 => steps(vec![Action::Wake { host: b() }]),
        _ => steps(Vec::new()),
    });
    let on: Vec<usize> = report.steps.iter().map(|step| step.hosts_on).collect();
    assert_eq!(on, [1, 1, 2, 2, 2]);
    assert_eq!((report.summary.switches, report.summary.switches_in_vain), (2, 1), "back within the hour");
    // Two minutes of the third step remain after three of waking.
    assert!((report.steps[2].watts - (101.0 + 100.0)).abs() < 1e-9);
    assert!((report.steps[1].watts - (101.0 + 10.0)).abs() < 1e-9);
}

#[test]
fn a_host_goes_to_standby_in_the_moment_in_which_its_last_vm_has_left() {
    let hosts = vec![host("a", 1_000, 8), host("b", 1_000, 8)];
    let vms = vec![vm("x", Some("b"), 1, &[10, 10])];
    let report = run(trace(hosts, vms), |snapshot: &Snapshot, _: &Policy, _: &Goal, _| {
        if snapshot.at_unix_ms > 0 {
            return steps(Vec::new());
        }
        let standby = Action::Standby { host: "b".parse().unwrap() };
        let mut plan = steps(vec![to("x", "b", "a"), standby]);
        plan.steps[1].begins_ms = plan.steps[0].ends_ms;
        plan
    });
    assert_eq!((report.summary.refused, report.steps[0].hosts_on), (0, 1));
}

#[test]
fn a_vm_that_comes_back_within_the_hour_has_moved_in_vain() {
    let hosts = vec![host("a", 10_000, 8), host("b", 10_000, 8)];
    let vms = vec![vm("one", Some("a"), 1, &[100; 4])];
    let report = run(trace(hosts, vms), |snapshot, _, _, _| {
        let at = snapshot.vms[0].host.as_ref().unwrap().as_str();
        steps(vec![if at == "a" { to("one", "a", "b") } else { to("one", "b", "a") }])
    });
    assert_eq!((report.summary.moves, report.summary.moves_in_vain), (4, 3));
    assert_eq!(report.summary.ping_pong_percent, 75.0);
    assert!(
        (report.summary.moved_gib - 4.0).abs() < 1e-9 && (report.summary.migration_cpu_s - 2.0).abs() < 1e-9
    );
}

#[test]
fn no_host_takes_more_than_its_memory_not_even_on_the_way() {
    let hosts = vec![host("a", 10_000, 8), host("b", 10_000, 8)];
    let vms = vec![
        vm("one", Some("a"), 4, &[100; 2]),
        vm("two", Some("a"), 4, &[100; 2]),
        vm("three", Some("b"), 4, &[100; 2]),
    ];
    // There is room at b for one of them; then one of b's could leave, but not before.
    let report = run(trace(hosts, vms), |_, _, _, _| {
        steps(vec![to("one", "a", "b"), to("two", "a", "b"), to("three", "b", "a")])
    });
    assert!(report.summary.refused >= 2, "{:?}", report.summary);
}

#[test]
fn what_cannot_be_run_is_refused_with_a_reason() {
    let refused = |trace: Trace| Simulation::new(trace, eager(), 1).unwrap_err();
    let some = || vec![vm("one", None, 1, &[1])];
    assert_eq!(refused(trace(Vec::new(), some())), SetupError::NoHosts);
    assert_eq!(refused(trace(vec![host("a", 1, 1)], Vec::new())), SetupError::NoVms);
    let elsewhere = trace(vec![host("a", 1, 1)], vec![vm("one", Some("c"), 1, &[1])]);
    assert!(refused(elsewhere).to_string().contains("host 'c'"));
    let mut pooled = trace(vec![host("a", 1, 1)], some());
    pooled.vms[0].pool = Some("gone".parse().unwrap());
    assert!(refused(pooled).to_string().contains("'gone', which does not exist"));
}

/// Traces of a few hosts and VMs that go up and down.
fn any_trace() -> impl Strategy<Value = Trace> {
    let series = prop::collection::vec(0u64..6_000, 1..8);
    let vms = prop::collection::vec((1u64..6, series, any::<bool>()), 1..10);
    (2usize..5, vms).prop_map(|(hosts, vms)| {
        let hosts: Vec<HostRecord> = (0..hosts).map(|n| host(&format!("h{n}"), 10_000, 16)).collect();
        let vm = |(n, (gib, series, placed)): (usize, (u64, Vec<u64>, bool))| {
            vm(&format!("v{n}"), placed.then_some("h0"), gib, &series)
        };
        trace(hosts, vms.into_iter().enumerate().map(vm).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_vm_is_lost_and_the_same_seed_gives_the_same_bytes(trace in any_trace()) {
        let vms = trace.vms.len();
        let [one, other] = [trace.clone(), trace].map(|trace| run(trace, plan));
        prop_assert_eq!(one.vms, vms);
        let all_given = one.steps.iter().all(|step| step.given_mhz <= step.capacity_mhz + 1e-6);
        prop_assert!(all_given);
        prop_assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&other).unwrap());
    }

    #[test]
    fn no_order_however_mad_overruns_a_host(trace in any_trace(), picks in prop::collection::vec((0usize..10, 0usize..5), 1..30)) {
        let mut picks = picks.into_iter().cycle();
        run(trace, |snapshot, policy, goal, seed| {
            if *goal == Goal::Place {
                return plan(snapshot, policy, goal, seed);
            }
            let mut actions = Vec::new();
            for (vm, host) in picks.by_ref().take(4) {
                let vm = &snapshot.vms[vm % snapshot.vms.len()].name;
                let host = &snapshot.hosts[host % snapshot.hosts.len()].name;
                actions.push(to(vm.as_str(), "h0", host.as_str()));
                actions.push(Action::Standby { host: host.clone() });
                actions.push(Action::Wake { host: host.clone() });
            }
            steps(actions)
        });
    }
}
