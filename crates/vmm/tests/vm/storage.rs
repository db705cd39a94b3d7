//! The reference guest's disk moves to another place on its host, and the guest reads back what it has written.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use godwit_types::control::{DiskBacking, NewPlace, Reply, Request, StorageOrder};
use godwit_types::migration::{Budget, MigrationOutcome};
use godwit_types::storage::{StoragePhase, StorageStatus};
use godwit_types::vm::{DatastorePath, DiskFormat};
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationId};

use crate::reference::Fixture;
use crate::support::{PATIENCE, Vmm, grant_everything, migration_id};

const DISK: Bytes = Bytes::mib(64);
const LOAD: &str = "godwit.ws=16MiB godwit.rate=1000 godwit.content=random";
/// Something that lies on a raw disk, where the guest does not write, and is copied in about a second.
const OLD_AT: u64 = 16 << 20;
const OLD_BYTES: usize = 24 << 20;
const A_SECOND_LONG: Option<u64> = Some(24 << 20);
/// Slow enough that a move is still copying when it is disturbed.
const SLOWLY: Option<u64> = Some(64 << 10);

/// An empty image beside the disk's.
fn place(fixture: &Fixture, format: DiskFormat, n: u64) -> DiskBacking {
    let path = PathBuf::from(format!("{}-new{n}", fixture.disk().display()));
    godwit_provision::create_image(&path, format, DISK).unwrap();
    DiskBacking { lock: godwit_provision::lock_of(&path), path, format, read_only: false }
}

/// Where the specification has it.
fn image(backing: &DiskBacking) -> DatastorePath {
    format!("fast/{}", backing.path.file_name().unwrap().to_str().unwrap()).parse().unwrap()
}

/// As an agent does.
fn begin(
    vmm: &Vmm,
    migration: MigrationId,
    backing: &DiskBacking,
    bytes_per_s_max: Option<u64>,
) -> Result<StorageStatus, ApiError> {
    let files = godwit_provision::open_disk(backing).unwrap();
    let lock = files.lock.as_ref().unwrap().as_fd();
    let order = StorageOrder::Begin {
        disks: vec![NewPlace { index: 0, image: image(backing), backing: backing.clone() }],
        bytes_per_s_max,
    };
    answer(vmm.ask_with(&Request::Storage { migration, order }, &[files.images[0].1.as_fd(), lock]))
}

fn order(vmm: &Vmm, migration: MigrationId, order: StorageOrder) -> Result<StorageStatus, ApiError> {
    answer(vmm.ask(&Request::Storage { migration, order }))
}

fn answer(reply: Reply) -> Result<StorageStatus, ApiError> {
    match reply {
        Reply::Storage(status) => Ok(*status),
        Reply::Error { error } => Err(error),
        other => panic!("{other:?}"),
    }
}

/// Waits until the disk has come so far.
fn until(vmm: &Vmm, migration: MigrationId, phase: StoragePhase) -> StorageStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = order(vmm, migration, StorageOrder::Look).unwrap();
        assert_eq!(status.ended, None);
        if status.progress.phase >= phase {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn allocated(image: &Path) -> u64 {
    std::fs::metadata(image).unwrap().blocks() * 512
}

#[test]
fn a_guest_goes_on_while_its_disk_moves_there_and_back_and_moves_with_it_then() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(fixture) = Fixture::with_disk(format, DISK) else { return };
        let old = if format == DiskFormat::Raw { vec![0x5a; OLD_BYTES] } else { Vec::new() };
        std::fs::File::options()
            .write(true)
            .open(fixture.disk())
            .unwrap()
            .write_all_at(&old, OLD_AT)
            .unwrap();
        let mut here = fixture.boot(1, LOAD);
        let mut before = fixture.progress(&fixture.report());
        let mut image = fixture.disk();
        for hop in 1..=3 {
            let (migration, new) = (migration_id(hop), place(&fixture, format, hop));
            begin(&here, migration, &new, A_SECOND_LONG).unwrap();
            assert_eq!(begin(&here, migration_id(9), &new, None).unwrap_err().code, ErrorCode::Conflict);
            let status = until(&here, migration, StoragePhase::InSync);
            eprintln!("{format:?}, move {hop}: {status:?}");
            assert!(
                status.progress.copied.0 > old.len() as u64 && status.progress.remaining.0 == 0,
                "{status:?}"
            );
            // Writes go to both, for as long as it takes.
            before = fixture.progress(&before);
            assert_eq!(order(&here, migration, StorageOrder::Switch).unwrap_err().code, ErrorCode::Conflict);
            order(&here, migration, StorageOrder::Hold).unwrap();
            before = fixture.progress(&before);
            for _ in 0..2 {
                let switched = order(&here, migration, StorageOrder::Switch).unwrap();
                assert_eq!(switched.progress.phase, StoragePhase::Switched);
            }
            assert!(order(&here, migration, StorageOrder::Cancel).is_err());
            // Nobody looks at what was left any more.
            let left = allocated(&image);
            std::fs::write(&image, "left").unwrap();
            before = fixture.progress(&before);
            let grown = allocated(&new.path);
            assert!(grown <= left + (1 << 20), "{grown} bytes instead of {left}: holes were filled");
            let mut found = vec![0; old.len()];
            std::fs::File::open(&new.path).unwrap().read_exact_at(&mut found, OLD_AT).unwrap();
            assert!(found == old, "what lay on the disk before lies there still");
            image = new.path.clone();
            here.config.spec.disks[0].image = self::image(&new);
            here.config.disks[0] = new;
        }
        let migration = migration_id(7);
        let mut there = fixture.destination_on(&here, 7);
        here.migrate_to(&there, migration, Budget::default());
        let outcome = grant_everything(&mut here, &mut there);
        assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}; {}", here.errors());
        fixture.progress(&before);
    }
}

#[test]
fn a_move_that_is_cancelled_leaves_the_disk_where_it_was_and_the_guest_in_peace() {
    let Some(fixture) = Fixture::with_disk(DiskFormat::Raw, DISK) else { return };
    let here = fixture.boot(1, LOAD);
    let mut before = fixture.progress(&fixture.report());
    for (n, held) in [(1, false), (2, true)] {
        let (migration, new) = (migration_id(n), place(&fixture, DiskFormat::Raw, n));
        begin(&here, migration, &new, if held { None } else { SLOWLY }).unwrap();
        if held {
            until(&here, migration, StoragePhase::InSync);
            order(&here, migration, StorageOrder::Hold).unwrap();
        } else {
            assert_eq!(order(&here, migration, StorageOrder::Hold).unwrap_err().code, ErrorCode::Conflict);
        }
        let cancelled = order(&here, migration, StorageOrder::Cancel).unwrap();
        assert_eq!(cancelled.ended.unwrap().code, ErrorCode::Cancelled);
        std::fs::write(&new.path, "nobody's").unwrap();
        before = fixture.progress(&before);
        assert_eq!(std::fs::read(&new.path).unwrap(), b"nobody's");
    }
}

#[test]
fn a_vm_does_not_migrate_while_its_disk_moves_and_the_other_way_round() {
    let Some(fixture) = Fixture::with_disk(DiskFormat::Raw, DISK) else { return };
    let here = fixture.boot(1, LOAD);
    let before = fixture.report();
    let new = place(&fixture, DiskFormat::Raw, 1);
    begin(&here, migration_id(1), &new, SLOWLY).unwrap();
    let there = fixture.destination(&here, 2);
    let refused = here.try_migrate(&there, migration_id(2)).unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("disks"), "{refused}");
    order(&here, migration_id(1), StorageOrder::Cancel).unwrap();
    let slowly = Budget { bandwidth_bytes_per_s_max: Some(1 << 20), ..Budget::default() };
    let _connections = here.migrate_to(&there, migration_id(2), slowly);
    let refused = begin(&here, migration_id(3), &new, None).unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("migrated"), "{refused}");
    fixture.progress(&before);
}
