//! Both state machines without threads, sockets or clocks: every order of events that the seed or the table asks for,
//! and what must hold after each of them.

#[allow(unreachable_pub, reason = "a test binary has no other crates to reach")]
mod simulator;

use std::collections::BTreeMap;

use godwit_types::migration::MigrationOutcome;
use simulator::{Fault, Simulation};

/// Orders of events that are tried without a fault, and with two.
const SEEDS: u64 = 3000;
/// Orders of events in which every fault strikes before every step.
const SEEDS_OF_THE_TABLE: u64 = 6;

/// How many steps the undisturbed migration of a seed takes.
fn steps(seed: u64) -> u32 {
    Simulation::new(seed).run(None).step()
}

#[test]
fn an_undisturbed_migration_ends_with_the_vm_at_the_destination_in_any_order_of_events() {
    for seed in 0..SEEDS {
        let simulation = Simulation::new(seed).run(None);
        assert!(matches!(simulation.outcome(), Some(MigrationOutcome::Completed { .. })), "seed {seed}");
        assert!(simulation.destination_runs(), "seed {seed}");
    }
}

#[test]
fn a_fault_at_any_step_never_makes_two_runners_and_never_loses_the_vm() {
    let mut endings = BTreeMap::new();
    for seed in 0..SEEDS_OF_THE_TABLE {
        for step in 0..steps(seed) {
            for fault in Fault::ALL {
                let simulation = Simulation::new(seed).run(Some((step, fault)));
                simulation.check_the_end(fault);
                *endings.entry((fault, simulation.ending())).or_insert(0u32) += 1;
            }
        }
    }
    // The faults must have struck on both sides of the commit, or the test has proved nothing.
    let seen = |fault, ending| endings.contains_key(&(fault, ending));
    for fault in [Fault::CutAll, Fault::Silence, Fault::CrashDestination] {
        assert!(seen(fault, "failed") && seen(fault, "handed over"), "{fault:?}: {endings:?}");
    }
    for fault in
        [Fault::CutPages, Fault::Cancel, Fault::SourceCall, Fault::DestinationCall, Fault::RefuseCommit]
    {
        assert!(seen(fault, "failed") && seen(fault, "completed"), "{fault:?}: {endings:?}");
    }
    assert!(!seen(Fault::LoseAnswer, "failed"), "{endings:?}");
}

#[test]
fn two_faults_in_one_migration_are_no_worse_than_one() {
    for seed in 0..SEEDS {
        let steps = u64::from(steps(seed));
        let mut simulation = Simulation::new(seed);
        for _ in 0..2 {
            let kind = Fault::ALL[simulation.random(Fault::ALL.len() as u64) as usize];
            let step = simulation.random(steps) as u32;
            simulation.plan(step, kind);
        }
        simulation.run(None).check_the_invariants_of_the_end();
    }
}
