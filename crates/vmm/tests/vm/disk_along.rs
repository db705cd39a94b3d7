//! The reference guest moves with its disk, of which it reads back what it has written.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use godwit_types::Bytes;
use godwit_types::control::{Notice, VmmState};
use godwit_types::migration::{Budget, MigrationOutcome};
use godwit_types::vm::DiskFormat;

use crate::reference::Fixture;
use crate::support::{grant_everything, migration_id};

const DISK: Bytes = Bytes::mib(64);
const LOAD: &str = "godwit.ws=16MiB godwit.rate=1000 godwit.content=random";

fn allocated(image: &Path) -> u64 {
    std::fs::metadata(image).unwrap().blocks() * 512
}

#[test]
fn a_guest_moves_with_its_disk_and_finds_on_it_what_it_has_written() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(fixture) = Fixture::with_disk(format, DISK) else { return };
        let mut here = fixture.boot(1, LOAD);
        let mut before = fixture.progress(&fixture.report());
        let mut image = fixture.disk();
        for hop in 1..=4 {
            let migration = migration_id(hop);
            let (mut there, arrived) = fixture.destination_with_own_disk(&here, hop, DISK);
            here.migrate_to(&there, migration, Budget::default());
            let outcome = grant_everything(&mut here, &mut there);
            let MigrationOutcome::Completed { report } = outcome else {
                panic!("{outcome:?}; {}", here.errors())
            };
            eprintln!("{format:?}, move {hop}: {report:?}");
            assert!(here.wait().success(), "{}", here.errors());
            // Nobody looks at what was left any more.
            let left = allocated(&image);
            std::fs::write(&image, "left").unwrap();
            before = fixture.progress(&before);
            let arrived_bytes = allocated(&arrived);
            assert!(
                arrived_bytes <= left + (1 << 20),
                "{arrived_bytes} bytes instead of {left}: holes were filled"
            );
            (here, image) = (there, arrived);
        }
    }
}

#[test]
fn a_destination_whose_disk_has_another_size_refuses_the_guest() {
    let Some(fixture) = Fixture::with_disk(DiskFormat::Raw, DISK) else { return };
    let mut here = fixture.boot(1, LOAD);
    let before = fixture.report();
    let (mut there, _) = fixture.destination_with_own_disk(&here, 1, Bytes(DISK.0 + 4096));
    here.migrate_to(&there, migration_id(1), Budget::default());
    let error = there.notices.until(|notice| match notice {
        Notice::IncomingFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(error.message.contains("other sizes"), "{error}");
    let outcome = here.notices.until(|notice| match notice {
        Notice::MigrationEnded { outcome, .. } => Some(outcome.clone()),
        _ => None,
    });
    assert!(matches!(outcome, MigrationOutcome::Failed { .. }), "{outcome:?}");
    assert_eq!(here.status().state, VmmState::Running);
    fixture.progress(&before);
}
