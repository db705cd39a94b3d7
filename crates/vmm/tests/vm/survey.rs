//! A running guest is watched: how much it writes, and how much of its memory is zeros.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use godwit_migration::Source;
use godwit_migration::bitmap::PageBitmap;
use godwit_types::control::{Reply, Request, Role, VmmConfig, VmmState, WriteLog};
use godwit_types::forecast::{SAMPLE_MS_MAX, Survey};
use godwit_types::migration::{Budget, MigrationOutcome};
use godwit_types::{Bytes, Epoch, ErrorCode};
use godwit_vmm::machine::{Machine, Observer, Parts};

use crate::migration::{ENDLESS, boot, ended, under_way};
use crate::reference::Fixture;
use crate::support::{Vmm, grant_everything, guest, kvm_is_there, migration_id, spec};

fn surveyed(reply: Reply) -> Survey {
    match reply {
        Reply::Survey(survey) => *survey,
        other => panic!("{other:?}"),
    }
}

fn survey(vmm: &Vmm, sample_ms: u32) -> Survey {
    surveyed(vmm.ask(&Request::Survey { sample_ms }))
}

#[test]
fn a_survey_finds_the_pages_that_the_guest_writes_and_those_that_are_zeros() {
    const HOT_PAGES: u64 = 512;
    // The guest's stacks, rings and reports.
    const OWN_PAGES_MAX: u64 = 256;
    let Some(fixture) = Fixture::new() else { return };
    let vmm = fixture
        .boot(1, "godwit.ws=24MiB godwit.hot=2MiB godwit.rate=0 godwit.content=random godwit.disk=off");
    fixture.await_filled();
    let mut seen = survey(&vmm, 1000);
    for _ in 0..10 {
        // Other work on this machine may have left the guest no time.
        if seen.readings.last().unwrap().distinct_pages >= HOT_PAGES {
            break;
        }
        seen = survey(&vmm, 2000);
    }
    let last = seen.readings.last().unwrap();
    assert!((HOT_PAGES..=HOT_PAGES + OWN_PAGES_MAX).contains(&last.distinct_pages), "{seen:#?}");
    assert!(
        seen.readings.is_sorted_by(|one, next| {
            one.at_ms < next.at_ms && one.distinct_pages <= next.distinct_pages
        })
    );
    let zero = seen.zero_pages as f64 / seen.sampled_pages as f64;
    assert!((0.5..0.65).contains(&zero), "40 of 64 MiB, less what the guest itself needs: {seen:#?}");
    assert_eq!(seen.memory, Bytes::mib(64));
}

#[test]
fn a_migration_that_begins_meanwhile_ends_the_survey_and_succeeds() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    let migration = migration_id(1);
    let mut there = here.destination(1, migration);
    let begin = |here: &Vmm| here.ask_beside(Request::Survey { sample_ms: SAMPLE_MS_MAX });
    let mut survey = begin(&here);
    // A short one is refused as soon as the long one has begun, unless that came second and was refused itself.
    while !matches!(here.ask(&Request::Survey { sample_ms: 1 }), Reply::Error { .. }) {
        if survey.is_finished() {
            survey = begin(&here);
        }
    }
    here.migrate_to(&there, migration, Budget::default());
    let outcome = grant_everything(&mut here, &mut there);
    assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}");
    let cut = surveyed(survey.join().unwrap());
    assert!(cut.readings.iter().all(|reading| reading.at_ms < f64::from(SAMPLE_MS_MAX)), "{cut:?}");
}

#[test]
fn a_guest_that_is_being_migrated_is_not_surveyed_and_afterwards_it_is() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    let migration = migration_id(1);
    let there = here.destination(1, migration);
    here.migrate_to(&there, migration, ENDLESS);
    under_way(&mut here);
    let Reply::Error { error } = here.ask(&Request::Survey { sample_ms: 10 }) else { panic!("surveyed") };
    assert!(error.code == ErrorCode::Conflict && error.message.contains("being migrated"), "{error}");
    here.must(&Request::CancelMigration { migration });
    ended(&mut here);
    assert_eq!(survey(&here, 10).readings.len(), 1);
    for sample_ms in [0, SAMPLE_MS_MAX + 1] {
        let reply = here.ask(&Request::Survey { sample_ms });
        assert!(matches!(reply, Reply::Error { error } if error.code == ErrorCode::Invalid));
    }
}

struct Nobody;

impl Observer for Nobody {
    fn state(&self, _: VmmState, _: Epoch) {}
    fn device_error(&self, _: &str, _: &str) {}
}

/// A machine in this process, without disks and network cards, that runs.
pub(crate) fn started(config: VmmConfig) -> Arc<Machine> {
    let given = godwit_provision::open(&config).unwrap();
    let parts = Parts {
        kvm: given.kvm,
        kernel: given.kernel,
        initrd: None,
        disks: vec![],
        taps: vec![],
        console: UnixListener::from(given.console),
        console_log: given.console_log,
        userfault: Err("none is needed".into()),
        kept: None,
    };
    let machine = Machine::build(config, parts, Arc::new(Nobody)).unwrap();
    machine.start().unwrap();
    machine
}

#[test]
fn the_dirty_log_is_off_after_a_survey() {
    if !kvm_is_there() {
        return;
    }
    for log in [WriteLog::Bitmap, WriteLog::Rings { entries: 1 << 16 }] {
        off_after_a_survey(log);
    }
}

fn off_after_a_survey(log: WriteLog) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest::write(folder.path());
    let config = Vmm::config(folder.path(), 0, &kernel, spec(1, Bytes::mib(32), ""), 1, Role::Boot);
    let config = VmmConfig { write_log: Some(log), ..config };
    let machine = started(config);
    let mut dirty = PageBitmap::covering(machine.memory().ranges());
    assert_eq!(machine.survey(Duration::from_millis(30)).unwrap().readings.len(), 2);
    let read = machine.harvest_dirty(&mut dirty);
    assert!(read.is_err() || dirty.is_empty(), "KVM has no log to read, or nothing in it");
    machine.start_dirty_log().unwrap();
    assert!(machine.survey(Duration::from_millis(30)).is_err());
    machine.harvest_dirty(&mut dirty).unwrap();
    machine.stop_dirty_log();
    machine.stop();
}
