//! Both engines over loopback, moving a model VM whose memory never rests: the rest follows.

mod support;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use godwit_migration::Tuning;
use godwit_types::migration::{Budget, MigrationOutcome, MigrationProgress, Phase, PostCopyReport};
use godwit_types::{ApiError, Epoch};

use support::arbiter::ModelArbiter;
use support::model::{Load, ModelVm, Runners};
use support::relay::Relay;
use support::{Attempt, failure, tuning};

/// 400 pages a millisecond are more than the cap lets through.
const WILD: Load = Load { pages_per_ms: 400, working_set: 2400, noise: true };

struct World {
    runners: Arc<Runners>,
    vm: Arc<ModelVm>,
    target: Arc<ModelVm>,
    relay: Arc<Relay>,
    attempt: Attempt,
}

impl World {
    fn start(tuning: Tuning) -> Self {
        Self::start_with(tuning, |_| ())
    }

    fn start_with(tuning: Tuning, prepare: impl FnOnce(&ModelVm)) -> Self {
        let runners = Arc::new(Runners::default());
        let vm = ModelVm::running(WILD, &runners);
        let target = ModelVm::waiting(WILD, &runners);
        prepare(&target);
        let budget = Budget {
            blackout_ms_max: 11,
            bandwidth_bytes_per_s_max: Some(30 << 20),
            post_copy: true,
            verify: true,
            ..Budget::default()
        };
        let arbiter = Arc::new(ModelArbiter::default());
        let mut relay = None;
        let attempt = Attempt::start(1, &vm, &target, &arbiter, (budget, tuning), |address| {
            relay.insert(Relay::start(address)).address
        });
        Self { runners, vm, target, relay: relay.unwrap(), attempt }
    }

    /// Waits until the guest runs at the destination with some of its memory missing.
    fn await_post_copy(&self) {
        let follows = |progress: &MigrationProgress| progress.phase == Phase::PostCopy;
        while !follows(&self.attempt.progress.recv_timeout(support::PATIENCE).expect("it gets to post-copy"))
        {
        }
    }

    /// Expects that the guest has moved with all of its memory.
    fn expect_moved(self) -> PostCopyReport {
        let (outcome, arrival) = self.attempt.end();
        let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}; {arrival:?}") };
        assert_eq!(arrival.unwrap(), Epoch(2));
        assert!(self.target.is_running() && !self.vm.is_running());
        assert!(!self.runners.twice.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(self.vm.first_difference(&self.target), None);
        support::expect_verified(&report);
        *report.post_copy.expect("a report of post-copy")
    }
}

/// Somebody in the guest who looks at pages from all over its memory.
fn reader(vm: &Arc<ModelVm>) -> thread::JoinHandle<()> {
    let vm = Arc::clone(vm);
    thread::spawn(move || (0..2400).for_each(|index| vm.touch(256 + index * 1009 % 2400)))
}

#[test]
fn a_guest_whose_memory_never_rests_runs_on_at_the_destination_and_finds_all_of_it() {
    let world = World::start(tuning());
    world.await_post_copy();
    let reader = reader(&world.target);
    let report = world.expect_moved();
    reader.join().unwrap();
    // Loading the state touches a page, which the source serves before the commit.
    assert!(report.pages > 1000 && report.faults > 1 && report.reconnects == 0, "{report:?}");
    assert!(report.waited_ms >= report.longest_wait_ms && report.longest_wait_ms > 0.0, "{report:?}");
}

#[test]
fn a_network_that_fails_for_a_while_makes_the_guest_wait_and_loses_nothing() {
    let world = World::start(tuning());
    world.await_post_copy();
    let reader = reader(&world.target);
    for _ in 0..3 {
        world.relay.block();
        thread::sleep(Duration::from_millis(300));
        assert!(!reader.is_finished() && world.target.is_running());
        world.relay.mend();
        thread::sleep(Duration::from_millis(30));
    }
    let report = world.expect_moved();
    reader.join().unwrap();
    assert!(report.reconnects >= 1, "{report:?}");
}

#[test]
fn a_break_that_only_the_source_sees_ends_the_old_connections_at_the_destination() {
    let world = World::start(tuning());
    world.await_post_copy();
    world.relay.half_open();
    let report = world.expect_moved();
    assert!(report.reconnects >= 1, "{report:?}");
}

#[test]
fn a_source_that_stays_away_for_too_long_is_given_up_on_both_sides() {
    let world = World::start(Tuning { rejoin: Duration::from_millis(500), ..tuning() });
    world.await_post_copy();
    world.relay.block();
    let (outcome, arrival) = world.attempt.end();
    let lost = |error: &ApiError| error.message.contains("has not come back");
    assert!(matches!(&outcome, MigrationOutcome::HandedOver { error } if lost(error)), "{outcome:?}");
    assert!(lost(arrival.as_ref().unwrap_err()), "{arrival:?}");
    assert!(!world.vm.is_running());
}

#[test]
fn a_guest_that_begins_anew_needs_nothing_more_of_its_source() {
    let world = World::start(tuning());
    world.await_post_copy();
    world.target.forget();
    let (outcome, arrival) = world.attempt.end();
    assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}");
    assert_eq!(arrival.unwrap(), Epoch(2));
}

#[test]
fn a_destination_where_memory_cannot_follow_refuses_at_once_and_says_why() {
    let world = World::start_with(tuning(), |target| target.fail("can_follow"));
    let (outcome, arrival) = world.attempt.end();
    let error = failure(outcome);
    assert!(error.message.contains("post-copy") && error.message.contains("injected"), "{error:?}");
    assert!(arrival.is_err() && world.vm.is_running());
}

#[test]
fn a_cut_while_the_state_is_loaded_leaves_the_guest_at_the_source() {
    // Nobody answers the page that loading waits for.
    let world = World::start_with(tuning(), |target| target.fail("load-waits"));
    let relay = Arc::clone(&world.relay);
    let target = Arc::clone(&world.target);
    let cut = thread::spawn(move || {
        target.await_call("load");
        relay.block();
    });
    let (outcome, arrival) = world.attempt.end();
    cut.join().unwrap();
    assert!(matches!(outcome, MigrationOutcome::Failed { .. }), "{outcome:?}");
    assert!(arrival.is_err() && world.vm.is_running() && !world.target.is_running());
}
