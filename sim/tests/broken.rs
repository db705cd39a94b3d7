//! The checks see what they are there for: protocols that are broken on purpose do not pass.

use godwit_sim::random::{self, Run};
use godwit_sim::rules::{Commit, Protocol};
use godwit_sim::shrink;

/// Runs seeds until one breaks a promise.
fn first_failure(protocol: Protocol, seeds: u64) -> Run {
    for seed in 0..seeds {
        let run = random::run(seed, protocol, Commit::Durable);
        if let Some(violation) = &run.violation {
            eprintln!("{protocol:?}: seed {seed}: {violation}");
            return run;
        }
    }
    panic!("{protocol:?} passed {seeds} seeds");
}

#[test]
fn a_commit_in_the_wrong_order_is_caught() {
    first_failure(Protocol::CommitSwapped, 200);
}

#[test]
fn a_resume_on_a_timeout_is_caught() {
    first_failure(Protocol::ResumeOnTimeout, 5000);
}

#[test]
fn a_disk_lock_that_ignores_the_epoch_is_caught() {
    first_failure(Protocol::LockWithoutEpoch, 5000);
}

#[test]
fn a_source_that_trusts_what_it_has_sent_over_broken_connections_is_caught() {
    first_failure(Protocol::TrustSent, 5000);
}

#[test]
fn a_source_that_looks_for_what_was_kept_before_its_log_has_begun_is_caught() {
    first_failure(Protocol::LookBeforeLog, 5000);
}

#[test]
fn a_source_that_goes_on_slowing_a_guest_that_has_stayed_is_caught() {
    first_failure(Protocol::NeverLift, 5000);
}

#[test]
fn a_failure_shrinks_to_fewer_steps_that_replay_to_the_same_end() {
    for protocol in [Protocol::CommitSwapped, Protocol::ResumeOnTimeout, Protocol::LockWithoutEpoch] {
        let run = first_failure(protocol, 5000);
        let failure = run.shrink().unwrap();
        assert!(failure.steps.len() < run.steps.len(), "{failure:?}");
        let mut trace = Vec::new();
        let (found, taken) = shrink::replay(&run.begin, &failure.steps, &mut |world, choice| {
            trace.push(world.describe(choice));
        });
        assert_eq!(found.map(|found| found.to_string()), Some(failure.violation.clone()));
        assert_eq!((taken, trace), (failure.steps.clone(), failure.trace.clone()));
        // Not one of them can be left out.
        for left_out in 0..failure.steps.len() {
            let mut fewer = failure.steps.clone();
            fewer.remove(left_out);
            let (found, _) = shrink::replay(&run.begin, &fewer, &mut |_, _| ());
            assert_ne!(found.map(|found| found.to_string()), Some(failure.violation.clone()), "{left_out}");
        }
    }
}
