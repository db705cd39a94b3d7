//! A VM goes to and fro between two hosts, each of which keeps its memory when it leaves.

use std::os::fd::OwnedFd;

use godwit_types::migration::{Budget, BytesByKind, MigrationOutcome};

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
