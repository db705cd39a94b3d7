//! What must hold for every seed. `cargo xtask sim --first-seed S --seeds 1` shows one again.

use std::collections::{BTreeMap, BTreeSet};

use godwit_sim::random::{self, Run};
use godwit_sim::rules::{Commit, Protocol};
use godwit_sim::world::{Choice, Side};

const SEEDS: u64 = 6000;
/// Seeds along whose undisturbed run every fault strikes before every step.
const SEEDS_OF_THE_TABLE: usize = 3;

fn real(seed: u64) -> Run {
    random::run(seed, Protocol::Real, Commit::Durable)
}

/// A fault's or step's name without its particulars.
fn kind(thing: &impl std::fmt::Debug) -> String {
    format!("{thing:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

#[test]
fn no_faults_make_two_runners_lose_a_write_lose_the_vm_or_make_the_record_lie() {
    let (mut endings, mut faults) = (BTreeMap::new(), BTreeSet::new());
    for seed in 0..SEEDS {
        let run = real(seed);
        if let Some(violation) = &run.violation {
            let trace = run.shrink().map(|failure| failure.trace.join("\n  ")).unwrap_or_default();
            panic!("seed {seed}: {violation}\n  {trace}");
        }
        *endings.entry(run.world.ending()).or_insert(0) += 1;
        faults.extend(run.steps.iter().filter_map(|step| match step {
            Choice::Fault(fault) => Some(kind(fault)),
            _ => None,
        }));
    }
    // The faults must have struck on both sides of the commit, or nothing has been shown.
    for ending in ["moved", "stayed", "lost", "uncertain"] {
        assert!(endings.contains_key(ending), "{endings:?}");
    }
    assert!(faults.len() >= 19, "only {faults:?}");
}

/// Whether the guest ran at the destination before all of its memory was there, and whether connections were made again.
fn post_copy(run: &Run) -> (bool, bool) {
    let mut world = run.begin.clone();
    let mut followed = false;
    for step in &run.steps {
        world.apply(*step).unwrap();
        followed |= world.lacks_memory();
    }
    (followed, run.steps.contains(&Choice::Connect))
}

#[test]
fn memory_follows_the_guest_through_networks_that_fail_and_none_is_lost() {
    let runs: Vec<Run> = (0..SEEDS).map(real).filter(|run| run.rules.post_copy).collect();
    assert!(runs.iter().all(|run| run.violation.is_none()));
    let seen: Vec<(bool, bool)> = runs.iter().map(post_copy).collect();
    let followed = seen.iter().filter(|(followed, _)| *followed).count();
    let connected_again = seen.iter().filter(|(_, again)| *again).count();
    assert!(
        followed > runs.len() / 5 && connected_again > 50,
        "{followed}, {connected_again} of {}",
        runs.len()
    );
}

#[test]
fn a_guest_that_writes_faster_than_its_memory_moves_is_slowed_within_its_bound_and_never_for_good() {
    let runs: Vec<Run> = (0..SEEDS).map(real).filter(|run| run.rules.slowdown_percent_max > 0).collect();
    let (mut slowed, mut stayed) = (0, 0);
    for run in &runs {
        assert_eq!(run.violation, None);
        let mut world = run.begin.clone();
        let was_slowed = run.steps.iter().any(|step| {
            world.apply(*step).unwrap();
            world.is_slowed()
        });
        slowed += usize::from(was_slowed);
        stayed += usize::from(was_slowed && run.world.ending() == "stayed");
    }
    // It must have been slowed when something went wrong, or nothing has been shown.
    assert!(
        slowed > runs.len() / 4 && stayed > 50,
        "{slowed} slowed, {stayed} of them stayed, of {}",
        runs.len()
    );
}

#[test]
fn an_undisturbed_migration_ends_with_the_vm_at_the_destination_in_any_order_of_steps() {
    let undisturbed = (0..SEEDS).map(real).filter(|run| run.faults == 0);
    let mut count = 0;
    for run in undisturbed {
        assert_eq!((run.violation, run.world.ending()), (None, "moved"));
        assert!(run.world.runs(Side::Destination) && !run.world.runs(Side::Source));
        count += 1;
    }
    assert!(count > SEEDS / 4, "{count}");
}

#[test]
fn every_fault_at_every_step_is_survived() {
    let mut seen = BTreeMap::new();
    let undisturbed = (0..).map(real).filter(|run| run.faults == 0).take(SEEDS_OF_THE_TABLE);
    for run in undisturbed {
        let mut world = run.begin.clone();
        for (step, choice) in run.steps.iter().enumerate() {
            for fault in world.faults() {
                let mut struck = world.clone();
                let violation = struck.apply(Choice::Fault(fault)).and_then(|()| struck.finish(|_, _| ()));
                assert_eq!(violation, Ok(()), "{fault:?} before step {step}: {}", world.describe(*choice));
                *seen.entry((kind(&fault), struck.ending())).or_insert(0) += 1;
            }
            world.apply(*choice).unwrap();
        }
    }
    let seen = |fault: &str, ending| seen.contains_key(&(fault.to_owned(), ending));
    for fault in ["Cut", "CutPages", "Silence", "Cancel", "CallFails", "CrashVmm", "CrashHost", "ClockJumps"]
    {
        assert!(seen(fault, "stayed") && seen(fault, "moved"), "{fault}");
    }
    for harmless in ["AskTimesOut", "RepeatQuestion", "DropQuestion", "ClockFallsBack"] {
        assert!(seen(harmless, "moved") && !seen(harmless, "stayed"), "{harmless}");
    }
    assert!(seen("CrashVmm", "lost"));
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..200 {
        let (one, other) = (real(seed), real(seed));
        assert_eq!(one.steps, other.steps, "seed {seed}");
        assert_eq!(one.world.fingerprint(), other.world.fingerprint(), "seed {seed}");
    }
}
