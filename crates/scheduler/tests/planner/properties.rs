//! What holds for every plan.

use godwit_scheduler::planner::{Goal, Reason, plan};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::snapshot::Snapshot;
use proptest::prelude::*;

use crate::arbitrary::*;
use crate::cases::*;
use crate::world::{execute_in_any_order, execute_on_time};

/// A number that looks random.
fn mixed(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

fn shuffled<T: Clone>(items: &[T], seed: &mut u64) -> Vec<T> {
    let mut items = items.to_vec();
    for at in (1..items.len()).rev() {
        items.swap(at, mixed(seed) as usize % (at + 1));
    }
    items
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_is_broken_and_no_host_overfull_not_even_in_between(
        snapshot in snapshots(), policy in policies(), goal in goals(), seed: u64,
    ) {
        let plan = plan(&snapshot, &policy, &goal, seed);
        let executed = execute_on_time(&snapshot, &plan);
        let [before, after] = match executed {
            Ok(broken) => broken,
            Err(wrong) => return Err(TestCaseError::fail(format!("{wrong}\n{plan:#?}"))),
        };
        for (rule, broken) in after {
            // Who is placed beside members in the wrong place breaks no more than they do.
            prop_assert!(broken <= before[&rule], "{rule}: {before:?} {plan:#?}");
        }
    }

    #[test]
    fn steps_may_be_done_in_any_order_that_they_allow(
        snapshot in snapshots(), policy in policies(), goal in goals(), seed: u64,
    ) {
        let plan = plan(&snapshot, &policy, &goal, seed);
        let mut state = seed;
        let executed = execute_in_any_order(&snapshot, &plan, |count| mixed(&mut state) as usize % count);
        prop_assert!(executed.is_ok(), "{executed:?} {plan:#?}");
    }

    #[test]
    fn hosts_move_no_more_at_once_than_they_may(snapshot in snapshots(), policy in policies(), goal in goals()) {
        use godwit_scheduler::planner::Action;
        let plan = plan(&snapshot, &policy, &goal, 1);
        for step in &plan.steps {
            let Action::Move { from, to, .. } = &step.action else { continue };
            let now = plan.steps.iter().filter(|other| {
                other.begins_ms <= step.begins_ms && step.begins_ms < other.ends_ms
            });
            let ends: Vec<_> = now.filter_map(|step| match &step.action {
                Action::Move { from, to, .. } => Some((from, to)),
                _ => None,
            }).collect();
            let most = |host: &godwit_types::Name| snapshot.hosts.iter().find(|known| known.name == *host).unwrap().migration.moves_max;
            prop_assert!(ends.iter().filter(|(source, _)| *source == from).count() <= most(from) as usize);
            prop_assert!(ends.iter().filter(|(_, destination)| *destination == to).count() <= most(to) as usize);
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_however_it_is_listed(
        snapshot in snapshots(), policy in policies(), goal in goals(), seed: u64,
    ) {
        let bytes = |snapshot: &Snapshot| {
            serde_json::to_string(&plan(snapshot, &policy, &goal, seed)).unwrap()
        };
        let first = bytes(&snapshot);
        prop_assert_eq!(&first, &bytes(&snapshot));
        let mut state = seed;
        let listed = Snapshot {
            at_unix_ms: snapshot.at_unix_ms,
            hosts: shuffled(&snapshot.hosts, &mut state),
            vms: shuffled(&snapshot.vms, &mut state),
            pools: snapshot.pools.clone(),
            rules: shuffled(&snapshot.rules, &mut state),
        };
        prop_assert_eq!(first, bytes(&listed));
    }

    #[test]
    fn no_step_matters_less_than_the_policy_asks(snapshot in snapshots(), policy in policies(), seed: u64) {
        let plan = plan(&snapshot, &policy, &Goal::Balance, seed);
        for step in &plan.steps {
            let must = matches!(step.reason, Reason::Maintenance { .. } | Reason::Rule { .. } | Reason::Room { .. });
            prop_assert!(step.priority <= policy.threshold && (must || step.priority > 1), "{step:?}");
        }
    }

    #[test]
    fn garbage_is_answered_and_never_a_panic(
        snapshot in garbage(), policy in garbage_policies(), goal in garbage_goals(), seed: u64,
    ) {
        let plan = plan(&snapshot, &policy, &goal, seed);
        prop_assert!(plan.steps.iter().all(|step| step.gain.is_finite()));
        let once: std::collections::BTreeSet<&String> = plan.findings.iter().collect();
        prop_assert_eq!(once.len(), plan.findings.len(), "{:?}", plan.findings);
    }

    #[test]
    fn what_is_even_stays(hosts in 1..6usize, each in 0..6usize, mhz in 0..3000u64, gib in 1..10u64, threshold in 1..6u8) {
        let names: Vec<String> = (0..hosts).map(|at| format!("h{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let vms = (0..hosts * each).map(|at| vm(&format!("vm{at}"), Some(names[at % hosts]), mhz, gib));
        let snapshot = cluster(&names, vms.collect());
        let policy = Policy { threshold, proposals_per_vm: 100, ..Policy::default() };
        prop_assert_eq!(plan(&snapshot, &policy, &Goal::Balance, 1).steps, vec![]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn more_capacity_is_never_worse_by_more_than_noise(snapshot in snapshots(), grows in 0..6usize) {
        let policy = Policy {
            moved_max_permille: 1000, threshold: 5, proposals_per_vm: 400, stable_ms: 86_400_000, ..Policy::default()
        };
        let mut snapshot = snapshot;
        // A host more may be what mends a must-rule at the cost of others.
        snapshot.rules.clear();
        snapshot.hosts.iter_mut().for_each(|host| {
            host.state = godwit_scheduler::snapshot::HostState::On;
            host.seen_unix_ms = NOW_MS;
        });
        let mut larger = snapshot.clone();
        match larger.hosts.get_mut(grows) {
            Some(host) => {
                host.capacity.cpu *= 2;
                host.capacity.memory *= 2;
            }
            None => larger.hosts.push(host("new")),
        }
        // Where something is scarce, more of it means more that VMs are entitled to, and use.
        let wanted: u64 = snapshot.vms.iter().map(|vm| vm.demand.cpu).sum();
        prop_assume!(wanted <= snapshot.hosts.iter().map(|host| host.capacity.cpu).sum());
        let score = |snapshot: &Snapshot| plan(snapshot, &policy, &Goal::Balance, 1).after.score;
        let (small, large) = (score(&snapshot), score(&larger));
        prop_assert!(large <= small * 1.02 + 0.005, "{small} {large}");
    }
}
