//! A model VM that moves with its disks.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use godwit_migration::Tuning;
use godwit_types::ErrorCode;
use godwit_types::migration::{Budget, MigrationOutcome};

use support::arbiter::ModelArbiter;
use support::disk::ModelDisks;
use support::model::{Load, ModelVm, Runners};
use support::{Attempt, budget, failure, tuning};

const BUSY: Load = Load { pages_per_ms: 2, working_set: 500, noise: false };

/// A VM that has filled a part of its disks, and goes on.
fn running(runners: &Arc<Runners>) -> (Arc<ModelVm>, Arc<ModelDisks>) {
    let vm = ModelVm::running(BUSY, runners);
    let disks = vm.give_disks();
    (1..600).for_each(|random| disks.work(random, 1));
    (vm, disks)
}

fn attempt(vm: &Arc<ModelVm>, target: &Arc<ModelVm>, limits: (Budget, Tuning)) -> (MigrationOutcome, bool) {
    let arbiter = Arc::<ModelArbiter>::default();
    let attempt = Attempt::start(1, vm, target, &arbiter, limits, |address| address);
    let (outcome, arrival) = attempt.run_to_source_end(&arbiter, 1);
    (outcome, arrival.is_ok())
}

#[test]
fn what_a_guest_writes_to_its_disks_while_it_moves_is_there_and_durable_when_it_goes_on() {
    for (page_streams, cap) in [(1, None), (3, None), (2, Some(6 << 20))] {
        let runners = Arc::new(Runners::default());
        let (vm, disks) = running(&runners);
        let target = ModelVm::waiting(BUSY, &runners);
        let arrived = target.give_disks();
        target.keep(vm.image());
        let budget = Budget { bandwidth_bytes_per_s_max: cap, ..budget() };
        let (outcome, arrives) = attempt(&vm, &target, (budget, Tuning { page_streams, ..tuning() }));
        let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}") };
        assert!(arrives && report.bytes.reused_pages > 0, "{report:?}");
        assert_eq!(vm.first_difference(&target), None);
        assert!(disks.is_like(&arrived), "with {page_streams} streams");
        assert!(arrived.flushed.load(Relaxed));
        // Three quarters of each disk were never written: named, and not read.
        assert!(report.bytes.zero_pages > 1200, "{report:?}");
        vm.power_off();
    }
}

#[test]
fn a_full_datastore_leaves_the_vm_where_it_is_and_the_reason_is_told() {
    let runners = Arc::new(Runners::default());
    let (vm, _) = running(&runners);
    let target = ModelVm::waiting(BUSY, &runners);
    target.give_disks().full.store(true, Relaxed);
    let (outcome, arrives) = attempt(&vm, &target, (budget(), tuning()));
    let error = failure(outcome);
    assert!(error.message.contains("no space is left") && !arrives, "{error:?}");
    assert!(vm.is_running() && runners.count() == 1);
    vm.power_off();
}

#[test]
fn a_destination_without_the_disks_or_with_post_copy_is_refused() {
    let runners = Arc::new(Runners::default());
    let (vm, _) = running(&runners);
    let target = ModelVm::waiting(BUSY, &runners);
    let (outcome, _) = attempt(&vm, &target, (budget(), tuning()));
    let error = failure(outcome);
    assert!(error.message.contains("other disks"), "{error:?}");
    target.give_disks();
    let (outcome, _) = attempt(&vm, &target, (Budget { post_copy: true, ..budget() }, tuning()));
    let error = failure(outcome);
    assert!(error.code == ErrorCode::Refused && error.message.contains("post-copy"), "{error:?}");
    assert!(vm.is_running() && runners.count() == 1);
    vm.power_off();
}
