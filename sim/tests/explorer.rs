//! Every order of steps around the switchover, within bounds that end soon. `cargo xtask sim --explore --faults 2` goes
//! further.

use godwit_sim::explore::{Bounds, Explored, explore};
use godwit_sim::rules::{Commit, Protocol, Rules};
use godwit_sim::world::{Choice, Fault, Side, Violation, World};

const REAL: Rules = Rules {
    post_copy: false,
    protocol: Protocol::Real,
    commit: Commit::Durable,
    shared_locks: true,
    slow_calls: false,
    grants_outlive_sources: false,
    slowdown_percent_max: 0,
    writes_pages_per_ms: 0,
};

/// A guest that writes faster than its memory moves, and may be slowed.
const SLOWED: Rules = Rules { slowdown_percent_max: 40, writes_pages_per_ms: 100, ..REAL };

fn explored(rules: Rules, faults: u8) -> Explored {
    let explored = explore(rules, Bounds { faults, states_max: 2_000_000 }, |_| ());
    let Explored { states, longest_path, .. } = explored;
    eprintln!("{rules:?}, {faults} faults: {states} states, longest path {longest_path} steps");
    explored
}

#[track_caller]
fn holds(rules: Rules, faults: u8, states_min: usize) {
    let found = explored(rules, faults);
    let trace = found.failure.map(|failure| format!("{}\n{}", failure.violation, failure.trace.join("\n")));
    assert_eq!(trace, None);
    assert!(found.complete && found.states >= states_min, "{} states", found.states);
}

#[track_caller]
fn is_caught(rules: Rules, faults: u8) {
    let failure = explored(rules, faults).failure.expect("a broken protocol breaks a promise");
    eprintln!("{}:\n  {}", failure.violation, failure.trace.join("\n  "));
}

#[test]
fn no_order_of_steps_with_one_fault_breaks_a_promise() {
    holds(REAL, 1, 100_000);
}

#[test]
fn no_order_of_steps_breaks_a_promise_where_the_lock_files_record_alone_orders_the_owners() {
    holds(Rules { shared_locks: false, ..REAL }, 0, 5_000);
}

#[test]
fn a_commit_in_the_wrong_order_is_found() {
    is_caught(Rules { protocol: Protocol::CommitSwapped, ..REAL }, 0);
}

#[test]
fn a_resume_on_a_timeout_is_found() {
    is_caught(Rules { protocol: Protocol::ResumeOnTimeout, shared_locks: false, ..REAL }, 0);
}

#[test]
fn a_source_that_runs_on_unrecorded_and_dies_is_found() {
    is_caught(Rules { protocol: Protocol::RunOnUnrecorded, ..REAL }, 1);
}

#[test]
fn no_order_of_steps_leaves_a_guest_slowed() {
    holds(SLOWED, 0, 1_000);
}

#[test]
fn a_commit_that_a_power_cut_undoes_loses_the_vm() {
    is_caught(Rules { commit: Commit::Forgetful, ..REAL }, 1);
}

#[test]
fn a_durable_intent_lets_a_manager_that_has_forgotten_its_grant_learn_it_from_the_hosts() {
    holds(Rules { commit: Commit::Intent, ..REAL }, 1, 100_000);
}

#[test]
fn a_grant_outlives_its_source_with_a_durable_commit_and_not_with_an_intent() {
    let outcome = |commit| {
        let mut world = World::new(Rules { commit, grants_outlive_sources: true, ..REAL }, 2);
        let mut outcomes = Vec::new();
        for step in 0.. {
            let mut struck = world.clone();
            struck.apply(Choice::Fault(Fault::PowerCut)).unwrap();
            struck.apply(Choice::Fault(Fault::CrashHost(Side::Source))).unwrap();
            outcomes.push(struck.finish(|_, _| ()));
            if world.is_settled() {
                return outcomes;
            }
            let mut open = world.choices();
            open.retain(|choice| !matches!(choice, Choice::Poll { .. } | Choice::Sync));
            let idle = [Choice::Tick { ms: 20 }, Choice::Poll { late: false }];
            world.apply(*open.first().unwrap_or(&idle[step % 2])).unwrap();
        }
        outcomes
    };
    assert!(outcome(Commit::Durable).iter().all(Result::is_ok));
    let intents = outcome(Commit::Intent);
    assert!(intents.contains(&Err(Violation::GrantForgotten)), "{intents:?}");
}
