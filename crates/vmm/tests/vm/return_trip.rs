//! A VM goes to and fro between two hosts, each of which keeps its memory when it leaves.

use std::os::fd::OwnedFd;

use godwit_types::control::{Notice, Request};
use godwit_types::migration::{Budget, BytesByKind, MigrationOutcome};

use crate::migration::{ENDLESS, ended};
use crate::reference::Fixture;
use crate::support::{Vmm, grant_everything, migration_id};

/// Moves the VM so often, and returns what each move has sent. The guest has found nothing wrong.
fn trips(fixture: &Fixture, mut here: Vmm, moves: u64, budget: &Budget) -> Vec<BytesByKind> {
    let mut kept: [Option<OwnedFd>; 2] = [None, None];
    let mut before = fixture.report();
    let mut trip = |hop: u64| {
        let (from, to) = ((hop + 1) as usize % 2, hop as usize % 2);
        let mut there = fixture.destination_with(&here, hop, kept[to].take());
        let file = godwit_provision::memory_file(here.config.spec.memory).unwrap();
        kept[from] = Some(file.try_clone().unwrap());
        here.migrate_keeping(&there, migration_id(hop), budget.clone(), Some(file));
        let outcome = grant_everything(&mut here, &mut there);
        let MigrationOutcome::Completed { report } = outcome else {
            panic!("{outcome:?}; {}", here.errors())
        };
        eprintln!("move {hop}: {report:?}");
        // Ends by itself once its memory is kept.
        assert!(here.wait().success(), "{}", here.errors());
        here = there;
        before = fixture.progress(&before);
        report.bytes
    };
    (1..=moves).map(&mut trip).collect()
}

/// Pages whose contents went.
fn contents(bytes: &BytesByKind) -> u64 {
    bytes.raw_pages + bytes.packed_pages
}

#[test]
fn a_guest_that_comes_home_is_sent_what_it_has_written_and_no_more() {
    for vcpus in [1, 2] {
        let Some(fixture) = Fixture::new() else { return };
        let here = fixture.boot(vcpus, "godwit.ws=40MiB godwit.rate=idle godwit.content=random");
        fixture.await_filled();
        let sent = trips(&fixture, here, 4, &Budget::default());
        assert_eq!(sent[0].reused_pages, 0);
        for home in &sent[1..] {
            assert!(home.reused_pages > contents(&sent[0]) / 2, "{home:?} after {:?}", sent[0]);
            assert!(home.sent * 100 < sent[0].sent * 6, "{home:?} after {:?}", sent[0]);
        }
    }
}

#[test]
fn a_busy_guest_goes_to_and_fro_and_finds_nothing_wrong() {
    let Some(fixture) = Fixture::new() else { return };
    let here = fixture.boot(2, "godwit.ws=24MiB godwit.rate=2000 godwit.content=random");
    let sent = trips(&fixture, here, 5, &Budget::default());
    assert!(sent[1..].iter().any(|home| home.reused_pages > 0), "{sent:?}");
}

#[test]
fn a_guest_whose_memory_follows_it_home_finds_nothing_wrong() {
    let Some(fixture) = Fixture::new() else { return };
    let here = fixture.boot(2, "godwit.ws=24MiB godwit.rate=20000 godwit.content=random");
    let budget = Budget {
        blackout_ms_max: 5,
        bandwidth_bytes_per_s_max: Some(32 << 20),
        post_copy: true,
        ..Budget::default()
    };
    trips(&fixture, here, 3, &budget);
}

#[test]
fn what_has_come_of_an_arrival_that_was_cancelled_is_not_sent_again() {
    let Some(fixture) = Fixture::new() else { return };
    let mut here = fixture.boot(1, "godwit.ws=40MiB godwit.rate=idle godwit.content=random");
    let before = fixture.report();
    let file = godwit_provision::memory_file(here.config.spec.memory).unwrap();
    let mut there = fixture.destination_with(&here, 1, Some(file.try_clone().unwrap()));
    let slow = Budget { bandwidth_bytes_per_s_max: Some(16 << 20), ..ENDLESS };
    here.migrate_to(&there, migration_id(1), slow);
    here.notices.until(|notice| match notice {
        Notice::Progress { progress, .. } if progress.bytes_sent > 8 << 20 => Some(()),
        _ => None,
    });
    here.must(&Request::CancelMigration { migration: migration_id(1) });
    assert!(matches!(ended(&mut here), MigrationOutcome::Failed { .. }));
    there.notices.until(|notice| matches!(notice, Notice::IncomingFailed { .. }).then_some(()));
    // Ends by itself once what has come is kept.
    assert!(!there.wait().success());
    let mut again = fixture.destination_with(&here, 2, Some(file));
    here.migrate_to(&again, migration_id(2), Budget::default());
    let outcome = grant_everything(&mut here, &mut again);
    let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}; {}", here.errors()) };
    assert!(report.bytes.reused_pages > 1000, "{report:?}");
    assert!(here.wait().success(), "{}", here.errors());
    fixture.progress(&before);
}
