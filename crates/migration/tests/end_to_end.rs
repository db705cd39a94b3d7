//! Both engines over loopback, moving a model VM.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use godwit_migration::wire::{MAGIC, PREAMBLE_BYTES};
use godwit_types::migration::{Budget, Comparison, MigrationOutcome, MigrationReport, OnDeadline, Phase};
use godwit_types::{Epoch, ErrorCode};

use support::arbiter::ModelArbiter;
use support::model::{Load, ModelVm, Runners};
use support::proxy::{self, Break};
use support::{Attempt, budget, expect_verified, failure, tuning};

/// 4 pages a millisecond are 16 MiB/s.
const BUSY: Load = Load { pages_per_ms: 4, working_set: 1000, noise: false };
const IDLE: Load = Load { pages_per_ms: 0, working_set: 1, noise: false };

struct World {
    runners: Arc<Runners>,
    arbiter: Arc<ModelArbiter>,
    vm: Arc<ModelVm>,
    load: Load,
    attempts: u128,
}

impl World {
    fn new(load: Load) -> Self {
        let runners = Arc::new(Runners::default());
        let vm = ModelVm::running(load, &runners);
        Self { runners, arbiter: Arc::default(), vm, load, attempts: 0 }
    }

    fn attempt(&mut self, route: impl FnOnce(SocketAddr) -> SocketAddr) -> (Attempt, Arc<ModelVm>) {
        self.attempt_with((budget(), tuning()), route)
    }

    fn attempt_with(
        &mut self,
        limits: (Budget, godwit_migration::Tuning),
        route: impl FnOnce(SocketAddr) -> SocketAddr,
    ) -> (Attempt, Arc<ModelVm>) {
        self.attempts += 1;
        let target = ModelVm::waiting(self.load, &self.runners);
        (Attempt::start(self.attempts, &self.vm, &target, &self.arbiter, limits, route), target)
    }

    /// Expects that the VM still runs where it was, and that an undisturbed attempt then succeeds.
    fn expect_retry_to_succeed(&mut self) {
        assert!(self.vm.is_running(), "the VM does not run after a failure before the commit");
        assert_eq!(self.runners.count(), 1);
        let (attempt, target) = self.attempt(|address| address);
        let (outcome, arrival) = attempt.end();
        self.expect_moved(outcome, &arrival, &target);
    }

    fn expect_moved(
        &mut self,
        outcome: MigrationOutcome,
        arrival: &Result<Epoch, godwit_types::ApiError>,
        target: &Arc<ModelVm>,
    ) -> MigrationReport {
        assert_eq!(arrival, &Ok(self.vm.epoch().next()));
        let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}") };
        assert_eq!(self.vm.first_difference(target), None, "a page differs");
        expect_verified(&report);
        assert_eq!((self.runners.count(), self.runners.twice.load(SeqCst)), (1, false));
        assert!(target.is_running() && !self.vm.is_running());
        self.arbiter.settle();
        self.vm = Arc::clone(target);
        self.vm.go_on();
        *report
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.vm.power_off();
    }
}

#[test]
fn a_busy_vm_moves_many_times_without_losing_a_write() {
    let mut world = World::new(BUSY);
    for _ in 0..12 {
        let (attempt, target) = world.attempt(|address| address);
        let (outcome, arrival) = attempt.end();
        let report = world.expect_moved(outcome, &arrival, &target);
        let blackout = &report.blackout;
        let parts = blackout.stop_ms
            + blackout.drain_ms
            + blackout.last_pages_ms
            + blackout.state_ms
            + blackout.commit_ms
            + blackout.claim_ms
            + blackout.locks_ms
            + blackout.resume_ms;
        assert!((parts - blackout.total_ms).abs() < 1e-6 && report.total_ms >= blackout.total_ms);
        let bytes = &report.bytes;
        assert_eq!(bytes.sent, bytes.raw + bytes.packed + bytes.state + bytes.overhead);
        assert!(bytes.zero_pages >= 900, "{} of about 1250 zero pages were left out", bytes.zero_pages);
        let pages = bytes.raw_pages + bytes.packed_pages + bytes.zero_pages;
        assert!(pages >= 2560, "all RAM is accounted for");
    }
}

#[test]
fn over_a_slow_network_memory_goes_packed_and_arrives_the_same() {
    let mut world = World::new(BUSY);
    for page_streams in [1, 2] {
        let budget = Budget { bandwidth_bytes_per_s_max: Some(4 << 20), ..budget() };
        let limits = (budget, godwit_migration::Tuning { page_streams, ..tuning() });
        let (attempt, target) = world.attempt_with(limits, |address| address);
        let (outcome, arrival) = attempt.end();
        let bytes = world.expect_moved(outcome, &arrival, &target).bytes;
        assert!(bytes.packed_pages > bytes.raw_pages, "{bytes:?}");
        assert!(bytes.packed < bytes.packed_pages * 4096 / 4, "{bytes:?}");
        assert_eq!(bytes.sent, bytes.raw + bytes.packed + bytes.state + bytes.overhead);
    }
}

#[test]
fn a_cap_that_is_lifted_in_flight_lets_go_of_whoever_waits_for_it() {
    let mut world = World::new(BUSY);
    for page_streams in [1, 3] {
        // At this rate the first page alone is owed for an hour.
        let budget = Budget { bandwidth_bytes_per_s_max: Some(1), ..budget() };
        let limits = (budget, godwit_migration::Tuning { page_streams, ..tuning() });
        let (attempt, target) = world.attempt_with(limits, |address| address);
        attempt.progress.iter().find(|progress| progress.bytes_sent > 4096).expect("it begins");
        assert!(attempt.run.set_bandwidth(Some(0)).is_err(), "a cap that lets nothing through");
        attempt.run.set_bandwidth(None).unwrap();
        let (outcome, arrival) = attempt.end();
        let report = world.expect_moved(outcome, &arrival, &target);
        assert!(report.capped, "its rate says nothing about the link");
    }
}

#[test]
fn several_page_streams_move_the_same_memory() {
    let mut world = World::new(BUSY);
    for page_streams in [2, 3, 5] {
        let limits = (budget(), godwit_migration::Tuning { page_streams, ..tuning() });
        let (attempt, target) = world.attempt_with(limits, |address| address);
        let (outcome, arrival) = attempt.end();
        world.expect_moved(outcome, &arrival, &target);
    }
}

#[test]
fn a_cut_at_any_byte_leaves_exactly_one_runner_and_a_retry_succeeds() {
    let mut world = World::new(BUSY);
    let (address_of_all, mut cuts) = (measure(&mut world), vec![0, 17, 100, 500]);
    cuts.extend((1..14).map(|part| address_of_all * part / 12));
    for after in cuts {
        let (attempt, target) = world.attempt(|address| proxy::start(address, Break::Cut { after }).0);
        let number = world.attempts;
        let outcome = attempt.run_to_source_end(&world.arbiter, number);
        match outcome {
            (MigrationOutcome::Failed { error, .. }, arrival) => {
                assert!(!error.message.is_empty() && error.remedy.is_some(), "{error:?}");
                assert!(arrival.is_err(), "both sides run after a cut at byte {after}");
                world.expect_retry_to_succeed();
            }
            // The commit had been granted, so the destination runs it, with or without RESUMED.
            (MigrationOutcome::HandedOver { .. }, arrival) => {
                assert_eq!(arrival, Ok(world.vm.epoch().next()), "nobody runs after a cut at byte {after}");
                assert_eq!(world.vm.first_difference(&target), None);
                world.arbiter.settle();
                world.vm = target;
                world.vm.go_on();
            }
            (completed, arrival) => {
                world.expect_moved(completed, &arrival, &target);
            }
        }
        assert!(!world.runners.twice.load(SeqCst), "two runners after a cut at byte {after}");
    }
}

/// How many bytes an undisturbed migration sends from source to destination.
fn measure(world: &mut World) -> u64 {
    let mut counter: Option<Box<dyn Fn() -> u64>> = None;
    let (attempt, target) = world.attempt(|address| {
        let (address, count) = proxy::start(address, Break::Never);
        counter = Some(Box::new(count));
        address
    });
    let (outcome, arrival) = attempt.end();
    world.expect_moved(outcome, &arrival, &target);
    counter.unwrap()()
}

#[test]
fn a_changed_byte_is_found_and_named_and_a_retry_succeeds() {
    let mut world = World::new(BUSY);
    for at in [20, 40, 300, 5_000, 100_000, 1_000_000, 3_000_000] {
        let (attempt, _) = world.attempt(|address| proxy::start(address, Break::Corrupt { at }).0);
        let error = failure(attempt.outcome());
        assert!(!error.message.is_empty() && error.remedy.is_some(), "byte {at}: {error:?}");
        if at >= 5_000 {
            assert!(error.message.contains("not secure"), "byte {at}: {error:?}");
        }
        world.arbiter.close(world.attempts);
        world.expect_retry_to_succeed();
    }
}

#[test]
fn in_clear_a_vm_moves_too_and_a_changed_byte_of_a_frame_is_found() {
    let mut world = World::new(BUSY);
    let in_clear = || (Budget { plain: true, ..budget() }, tuning());
    for at in [20, 40, 300] {
        let corrupt = |address| proxy::start(address, Break::Corrupt { at }).0;
        let error = failure(world.attempt_with(in_clear(), corrupt).0.outcome());
        assert!(!error.message.is_empty() && error.remedy.is_some(), "byte {at}: {error:?}");
        world.arbiter.close(world.attempts);
        assert!(world.vm.is_running());
    }
    let (attempt, target) = world.attempt_with(in_clear(), |address| address);
    let (outcome, arrival) = attempt.end();
    world.expect_moved(outcome, &arrival, &target);
}

#[test]
fn a_network_that_swallows_everything_ends_the_attempt_in_bounded_time_and_names_the_peer() {
    let mut world = World::new(BUSY);
    for after in [0, 100, 2_000_000] {
        let (attempt, _) = world.attempt(|address| proxy::start(address, Break::Silence { after }).0);
        let error = failure(attempt.outcome());
        assert_eq!(error.code, ErrorCode::Unreachable, "{error:?}");
        assert!(error.message.contains("host-b"), "{error:?}");
        world.arbiter.close(world.attempts);
        world.expect_retry_to_succeed();
    }
}

#[test]
fn page_connections_that_swallow_everything_end_the_attempt_while_heartbeats_still_pass() {
    let mut world = World::new(BUSY);
    let (attempt, _) =
        world.attempt(|address| proxy::start(address, Break::SilentPages { after: 2_000_000 }).0);
    let error = failure(attempt.outcome());
    assert!(error.message.contains("acknowledged no memory"), "{error:?}");
    world.arbiter.close(world.attempts);
    world.expect_retry_to_succeed();
}

#[test]
fn a_cancelled_migration_leaves_the_vm_at_the_source_at_any_moment() {
    let mut world = World::new(BUSY);
    for wait_ms in [0, 2, 4, 7, 11, 16, 25, 40, 60, 90] {
        let (attempt, target) = world.attempt(|address| address);
        std::thread::sleep(Duration::from_millis(wait_ms));
        let cancelled = attempt.run.cancel();
        let (outcome, arrival) = attempt.end();
        match (cancelled, outcome) {
            (Ok(()), MigrationOutcome::Failed { error, .. }) => {
                assert_eq!(error.code, ErrorCode::Cancelled);
                let theirs = arrival.unwrap_err();
                assert_eq!(world.vm.resumes.load(SeqCst) > 0, target.calls.lock().unwrap().contains(&"load"));
                // A source that was cancelled before it connected never comes.
                assert!(matches!(theirs.code, ErrorCode::Cancelled | ErrorCode::Unreachable), "{theirs:?}");
                world.expect_retry_to_succeed();
            }
            (Err(refused), completed) => {
                assert_eq!(refused.code, ErrorCode::Conflict);
                world.expect_moved(completed, &arrival, &target);
            }
            (Ok(()), other) => panic!("a cancellation was accepted and then ignored: {other:?}"),
        }
    }
}

#[test]
fn every_failing_step_of_either_side_is_told_to_both_and_a_retry_succeeds() {
    for step in ["blockers", "start_dirty_log", "harvest_dirty", "pause", "save"] {
        let mut world = World::new(BUSY);
        world.vm.fail(step);
        let (attempt, _) = world.attempt(|address| address);
        let error = failure(attempt.outcome());
        assert!(error.message.contains("injected"), "{step}: {error:?}");
        world.vm.heal();
        world.expect_retry_to_succeed();
    }
    for step in ["admit", "load"] {
        let mut world = World::new(BUSY);
        let (attempt, target) = world.attempt(|address| address);
        target.fail(step);
        let (outcome, arrival) = attempt.end();
        let error = failure(outcome);
        assert!(error.message.contains("host-b") && error.message.contains("injected"), "{step}: {error:?}");
        assert!(arrival.unwrap_err().message.contains("injected"));
        world.expect_retry_to_succeed();
    }
}

#[test]
fn a_refused_commit_lets_the_source_run_on_with_the_managers_reason() {
    let mut world = World::new(BUSY);
    world.arbiter.refuse_commits.store(true, SeqCst);
    let (attempt, _) = world.attempt(|address| address);
    let (outcome, arrival) = attempt.end();
    let error = failure(outcome);
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("maintenance"), "{error:?}");
    assert!(arrival.unwrap_err().message.contains("maintenance"));
    world.arbiter.refuse_commits.store(false, SeqCst);
    world.expect_retry_to_succeed();
}

#[test]
fn a_vm_whose_destination_may_have_everything_stands_until_its_disks_are_reclaimed() {
    let mut world = World::new(BUSY);
    world.arbiter.refuse_commits.store(true, SeqCst);
    world.vm.fail("reclaim");
    let (attempt, _) = world.attempt(|address| address);
    let tries = || world.vm.calls.lock().unwrap().iter().filter(|call| **call == "reclaim").count();
    while tries() < 3 {
        assert!(!world.vm.calls.lock().unwrap().contains(&"resume"));
        std::thread::sleep(Duration::from_millis(1));
    }
    world.vm.heal();
    assert_eq!(failure(attempt.outcome()).code, ErrorCode::Refused);
    assert!(world.vm.is_running());
    world.arbiter.refuse_commits.store(false, SeqCst);
    world.expect_retry_to_succeed();
}

#[test]
fn a_link_that_dies_while_the_commit_is_decided_leaves_the_vm_to_whom_the_manager_gave_it() {
    for refused in [false, true] {
        let mut world = World::new(BUSY);
        let dead = Arc::new(AtomicBool::new(false));
        *world.arbiter.on_commit.lock().unwrap() = Some(Arc::clone(&dead));
        world.arbiter.refuse_commits.store(refused, SeqCst);
        let (attempt, target) = world.attempt(|address| proxy::start(address, Break::CutWhen(dead)).0);
        let (outcome, arrival) = attempt.run_to_source_end(&world.arbiter, 1);
        if refused {
            assert!(failure(outcome).message.contains("maintenance"));
            assert!(arrival.unwrap_err().message.contains("did not give the VM to this host"));
            world.arbiter.refuse_commits.store(false, SeqCst);
            world.expect_retry_to_succeed();
        } else {
            let MigrationOutcome::HandedOver { error } = outcome else { panic!("{outcome:?}") };
            assert!(error.remedy.unwrap().contains("host-b"));
            assert_eq!(arrival, Ok(Epoch(2)));
            assert_eq!(world.vm.first_difference(&target), None);
            assert!(target.is_running() && !world.vm.is_running() && !world.runners.twice.load(SeqCst));
        }
        assert!(world.arbiter.claims.load(SeqCst) >= 1, "a destination in doubt asks");
    }
}

#[test]
fn a_question_that_gets_lost_is_asked_again() {
    let mut world = World::new(BUSY);
    world.arbiter.unanswered.store(3, SeqCst);
    let (attempt, target) = world.attempt(|address| address);
    let (outcome, arrival) = attempt.end();
    world.expect_moved(outcome, &arrival, &target);
}

#[test]
fn a_destination_whose_locks_fall_late_still_runs_the_vm() {
    let mut world = World::new(IDLE);
    let (attempt, target) = world.attempt(|address| address);
    target.fail("run");
    while !target.calls.lock().unwrap().contains(&"run") {
        std::thread::sleep(Duration::from_millis(1));
    }
    target.heal();
    let (outcome, arrival) = attempt.end();
    world.expect_moved(outcome, &arrival, &target);
}

#[test]
fn a_destination_that_cannot_run_the_vm_says_why_and_the_source_stays_stopped() {
    let mut world = World::new(IDLE);
    let (attempt, target) = world.attempt(|address| address);
    target.fail("run");
    let (outcome, arrival) = attempt.end();
    let MigrationOutcome::HandedOver { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.message.contains("injected"), "{error:?}");
    assert!(arrival.unwrap_err().message.contains("injected"));
    assert!(!world.vm.is_running());
    assert_eq!(world.runners.count(), 0);
}

#[test]
fn memory_that_never_rests_fails_at_the_deadline_or_switches_over_as_the_user_chose() {
    let wild = Load { pages_per_ms: 200, working_set: 2400, noise: true };
    let limits = |on_deadline| {
        let budget = Budget {
            blackout_ms_max: 11,
            deadline_ms: 400,
            on_deadline,
            bandwidth_bytes_per_s_max: Some(30 << 20),
            ..budget()
        };
        (budget, tuning())
    };
    let mut world = World::new(wild);
    let (attempt, _) = world.attempt_with(limits(OnDeadline::Cancel), |address| address);
    let outcome = attempt.outcome();
    assert!(matches!(outcome, MigrationOutcome::Failed { phase: Phase::PreCopy, .. }), "{outcome:?}");
    let error = failure(outcome);
    assert!(error.message.contains("budget of 11 ms") && error.remedy.is_some(), "{error:?}");
    assert!(world.vm.is_running());

    let (attempt, target) = world.attempt_with(limits(OnDeadline::Switch), |address| address);
    let (outcome, arrival) = attempt.end();
    let report = world.expect_moved(outcome, &arrival, &target);
    assert!(report.predicted_blackout_ms > 11.0);
}

#[test]
fn progress_names_every_phase_and_ends_with_nothing_left() {
    let mut world = World::new(BUSY);
    let (attempt, target) = world.attempt(|address| address);
    let mut seen = Vec::new();
    while let Ok(progress) = attempt.progress.recv_timeout(support::PATIENCE) {
        seen.push(progress);
    }
    let (outcome, arrival) = attempt.end();
    world.expect_moved(outcome, &arrival, &target);
    let last = seen.last().unwrap();
    assert_eq!((last.phase, last.remaining.0), (Phase::Done, 0));
    assert!(seen.windows(2).all(|pair| pair[0].phase <= pair[1].phase), "phases went backwards");
}

#[test]
fn strangers_at_the_listener_do_not_disturb_a_migration() {
    let mut world = World::new(BUSY);
    let (attempt, target) = world.attempt(|address| {
        use std::io::Write;
        let mut stranger = std::net::TcpStream::connect(address).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // These say nothing, and are there before the source is.
        for _ in 0..20 {
            std::mem::forget(std::net::TcpStream::connect(address).unwrap());
        }
        address
    });
    let (outcome, arrival) = attempt.end();
    world.expect_moved(outcome, &arrival, &target);
}

#[test]
fn another_protocol_version_is_refused_on_both_sides_with_the_remedy() {
    let mut world = World::new(BUSY);
    let mut preamble = [0; PREAMBLE_BYTES];
    preamble[..8].copy_from_slice(&MAGIC);
    preamble[8..12].copy_from_slice(&[9, 0, 12, 0]);

    // A source that speaks versions 9 to 12 meets our destination.
    let (attempt, _) = world.attempt(|address| {
        use std::io::Write;
        std::net::TcpStream::connect(address).unwrap().write_all(&preamble).unwrap();
        // Our own source then finds somebody who hangs up.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = nobody.local_addr().unwrap();
        std::thread::spawn(move || nobody.incoming().take(2).for_each(drop));
        address
    });
    let (outcome, arrival) = attempt.end();
    let error = arrival.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("9 to 12") && error.remedy.is_some(), "{error:?}");
    assert_eq!(failure(outcome).code, ErrorCode::Unreachable);

    // A destination that speaks versions 9 to 12 meets our source.
    for (greeting, word) in [(preamble, "9 to 12"), (*b"HTTP/1.1 200 OK\r", "does not speak")] {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let mut streams = [(); 2].map(|()| other.accept().unwrap().0);
            for stream in &mut streams {
                stream.write_all(&greeting).unwrap();
            }
            for stream in &mut streams {
                let _ = stream.read(&mut [0; 64]);
            }
        });
        let (attempt, _) = world.attempt(|_| address);
        let error = failure(attempt.outcome());
        assert!(error.message.contains(word) && error.remedy.is_some(), "{error:?}");
        thread.join().unwrap();
    }
    world.expect_retry_to_succeed();
}

#[test]
fn memory_that_differs_at_the_end_is_told_whatever_went_wrong() {
    for (at_source, fault) in [(true, "forgets-writes"), (false, "flips-a-bit")] {
        let mut world = World::new(BUSY);
        let budget = Budget { bandwidth_bytes_per_s_max: Some(20 << 20), ..budget() };
        world.attempts += 1;
        let target = ModelVm::waiting(world.load, &world.runners);
        if at_source { &world.vm } else { &target }.fail(fault);
        let limits = (budget, tuning());
        let attempt =
            Attempt::start(world.attempts, &world.vm, &target, &world.arbiter, limits, |address| address);
        let (outcome, arrival) = attempt.end();
        let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}; {arrival:?}") };
        let verified = report.verified.expect("memory was compared");
        assert_eq!(verified.memory, Comparison::Different, "{fault}: {verified:?}");
        target.power_off();
    }
}

#[test]
fn the_guests_clock_goes_on_by_the_time_that_has_passed_whatever_the_hosts_clocks_say() {
    let mut world = World::new(IDLE);
    for there_ms in [0_i64, 3_000, -3_000, 90_000, -90_000] {
        let here_ms = world.vm.clock_ahead_ms.load(SeqCst);
        let target = ModelVm::waiting(world.load, &world.runners);
        target.clock_ahead_ms.store(there_ms, SeqCst);
        world.attempts += 1;
        let limits = (budget(), tuning());
        let attempt =
            Attempt::start(world.attempts, &world.vm, &target, &world.arbiter, limits, |address| address);
        let (outcome, arrival) = attempt.end();
        let clock = world.expect_moved(outcome, &arrival, &target).guest_clock.unwrap();
        let differ_ms = (there_ms - here_ms) as f64;
        // What reading two clocks, one after the other, may add.
        let within_ms = clock.within_ms + 1.0;
        assert!((clock.hosts_differ_ms - differ_ms).abs() <= within_ms, "{clock:?} for {differ_ms}");
        let error_ms = target.clock_error_ns.load(SeqCst) as f64 / 1e6;
        // What was known when it was saved may have been less exact than what is reported.
        assert!(
            error_ms.abs() <= differ_ms.abs() / 10.0 + within_ms,
            "{error_ms}, {clock:?} for {differ_ms}"
        );
        assert!((clock.error_ms - error_ms).abs() <= within_ms, "{error_ms}, {clock:?} for {differ_ms}");
    }
}
