//! Both engines over loopback: a model VM comes to a host that has kept something of its memory.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use godwit_migration::Tuning;
use godwit_types::migration::{Budget, BytesByKind, MigrationOutcome};

use support::arbiter::ModelArbiter;
use support::model::{Load, ModelVm, Runners};
use support::{Attempt, budget, tuning};

const PAGE: usize = 4096;
const IDLE: Load = Load { pages_per_ms: 0, working_set: 1, noise: false };
/// Writes half of memory that is not zero, and all of the rest.
const BUSY: Load = Load { pages_per_ms: 8, working_set: 2000, noise: false };
/// Pages of the model that it fills when it starts, of which every seventh is zero.
const STAMPED: usize = 160 + 1144;

/// Moves a VM to a host that has kept `kept` of it; what was sent.
fn moved(load: Load, limits: (Budget, Tuning), kept: impl FnOnce(&ModelVm) -> Vec<u8>) -> BytesByKind {
    let runners = Arc::new(Runners::default());
    let (vm, target) = (ModelVm::running(load, &runners), ModelVm::waiting(load, &runners));
    target.keep(kept(&vm));
    let arbiter = Arc::new(ModelArbiter::default());
    let attempt = Attempt::start(1, &vm, &target, &arbiter, limits, |address| address);
    let (outcome, arrival) = attempt.end();
    assert!(arrival.is_ok(), "{arrival:?}");
    let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}") };
    assert_eq!(vm.first_difference(&target), None, "a page differs");
    assert_eq!((runners.count(), runners.twice.load(SeqCst)), (1, false));
    assert_eq!(target.kept_bytes(), 0, "kept memory that nobody needs any more is kept");
    vm.power_off();
    target.power_off();
    let bytes = report.bytes;
    assert_eq!(bytes.sent, bytes.raw + bytes.packed + bytes.state + bytes.overhead);
    let pages = bytes.raw_pages + bytes.packed_pages + bytes.zero_pages + bytes.reused_pages;
    assert!(pages >= 2560, "all RAM is accounted for: {bytes:?}");
    bytes
}

fn streams(page_streams: u32) -> (Budget, Tuning) {
    (budget(), Tuning { page_streams, ..tuning() })
}

#[test]
fn only_pages_that_have_changed_since_are_sent() {
    for page_streams in [1, 2, 5] {
        let bytes = moved(IDLE, streams(page_streams), |vm| {
            let mut image = vm.image();
            image.chunks_exact_mut(PAGE).step_by(20).for_each(|page| page[17] ^= 1);
            image
        });
        let filled = (STAMPED - STAMPED / 7) as u64;
        let sent = bytes.raw_pages + bytes.packed_pages;
        assert!((filled / 25..filled / 15).contains(&sent), "{bytes:?}");
        assert!(bytes.reused_pages + sent + 5 > filled, "{bytes:?}");
    }
}

#[test]
fn whatever_was_kept_a_busy_guest_arrives_as_it_was() {
    type Spoil = fn(Vec<u8>) -> Vec<u8>;
    let spoils: [(&str, Spoil); 6] = [
        ("its memory of a moment ago", |image| image),
        ("each page in the place of the next", |mut image| {
            image.rotate_right(PAGE);
            image
        }),
        ("pages that are the same but for their last byte", |mut image| {
            image.chunks_exact_mut(PAGE).for_each(|page| page[PAGE - 1] ^= 0x80);
            image
        }),
        ("another guest's memory", |mut image| {
            image.iter_mut().zip(0u32..).for_each(|(byte, at)| *byte = (at >> 3 ^ at) as u8);
            image
        }),
        ("zeros where there was something", |mut image| {
            image.chunks_exact_mut(PAGE).step_by(2).for_each(|page| page.fill(0));
            image
        }),
        ("something where there were zeros", |mut image| {
            image.chunks_exact_mut(PAGE).filter(|page| page[0] == 0).for_each(|page| page.fill(0x55));
            image
        }),
    ];
    for (what, spoil) in spoils {
        for page_streams in [1, 3] {
            let bytes = moved(BUSY, streams(page_streams), |vm| spoil(vm.image()));
            eprintln!("{what}: {bytes:?}");
        }
    }
}

#[test]
fn over_a_slow_network_what_has_changed_goes_packed_beside_what_has_not() {
    let budget = Budget { bandwidth_bytes_per_s_max: Some(2 << 20), ..budget() };
    let bytes = moved(IDLE, (budget, tuning()), |vm| {
        let mut image = vm.image();
        image.chunks_exact_mut(PAGE).step_by(3).for_each(|page| page.fill(3));
        image
    });
    assert!(bytes.reused_pages > 500 && bytes.packed_pages > 0, "{bytes:?}");
}

#[test]
fn pages_that_follow_by_post_copy_are_those_of_now() {
    let wild = Load { pages_per_ms: 400, working_set: 2400, noise: true };
    let budget = Budget {
        blackout_ms_max: 11,
        bandwidth_bytes_per_s_max: Some(30 << 20),
        post_copy: true,
        ..Budget::default()
    };
    moved(wild, (budget, tuning()), |vm| vm.image());
}
