//! A VM moves between processes on one machine; the test plays the agents and the manager.

use std::path::Path;

use crate::support::{KEY, Vmm, grant_everything, guest, kvm_is_there, migration_id, spec};
use godwit_types::control::{Notice, Request, Role, VmmState};
use godwit_types::migration::{Budget, MigrationOutcome, MigrationProgress, OnDeadline, Phase};
use godwit_types::ownership::Verdict;
use godwit_types::{Bytes, Epoch};

pub(crate) fn boot(folder: &Path, vcpus: u8) -> Vmm {
    let kernel = guest::write(folder);
    Vmm::start(Vmm::config(folder, 0, &kernel, spec(vcpus, Bytes::mib(32), ""), 1, Role::Boot))
}

#[test]
fn a_guest_moves_there_and_back_many_times_and_goes_on_where_it_was() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 2);
    here.wait_log("up\n", 1);
    for hop in 1..10u8 {
        here.console().send(b"n");
        here.wait_log(&(hop - 1).to_string(), 1);
        let migration = migration_id(hop.into());
        let mut there = here.destination(hop.into(), migration);
        here.migrate_to(&there, migration, Budget::default());
        let outcome = grant_everything(&mut here, &mut there);
        assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}");
        assert!(here.wait().success(), "{}", here.errors());
        let status = there.status();
        assert_eq!((status.state, status.epoch), (VmmState::Running, Epoch(u64::from(hop) + 1)));
        here = there;
    }
    here.console().send(b"n");
    here.wait_log("9", 1);
    here.console().send(b"r");
    here.wait_log("up\n", 1);
}

#[test]
fn a_refused_commit_leaves_the_guest_running_here_and_the_next_attempt_succeeds() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    let refused = migration_id(1);
    let mut there = here.destination(1, refused);
    here.migrate_to(&there, refused, Budget::default());
    here.notices.until(|notice| matches!(notice, Notice::Question { .. }).then_some(()));
    let verdict = Verdict::Refused { reason: "the destination is in maintenance".into() };
    here.must(&Request::Answer { migration: refused, verdict });
    let outcome = ended(&mut here);
    assert!(matches!(outcome, MigrationOutcome::Failed { .. }), "{outcome:?}");
    assert_eq!(here.status().state, VmmState::Running);
    let mut console = here.console();
    console.send(b"x");
    console.expect(b"x");
    there.kill();

    let migration = migration_id(2);
    let mut there = here.destination(2, migration);
    here.migrate_to(&there, migration, Budget::default());
    let outcome = grant_everything(&mut here, &mut there);
    assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}");
}

#[test]
fn a_destination_that_dies_before_the_commit_costs_the_guest_nothing() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    let migration = migration_id(1);
    let mut there = here.destination(1, migration);
    let slow = Budget { bandwidth_bytes_per_s_max: Some(1 << 10), ..Budget::default() };
    here.migrate_to(&there, migration, slow);
    there.kill();
    let outcome = ended(&mut here);
    assert!(matches!(outcome, MigrationOutcome::Failed { .. }), "{outcome:?}");
    assert_eq!(here.status().state, VmmState::Running);
    let mut console = here.console();
    console.send(b"x");
    console.expect(b"x");
}

#[test]
fn a_machine_built_for_another_specification_refuses_the_guest_and_its_process_ends() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    let migration = migration_id(1);
    let role = Role::Incoming {
        migration,
        listen: "127.0.0.1:0".parse().unwrap(),
        key: Some(KEY),
        disks: Default::default(),
    };
    let other = spec(2, Bytes::mib(32), "");
    let mut there = Vmm::start(Vmm::config(folder.path(), 1, &here.config.kernel, other, 2, role));
    here.migrate_to(&there, migration, Budget::default());
    let error = there.notices.until(|notice| match notice {
        Notice::IncomingFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(error.message.contains("specification"), "{error}");
    assert!(!there.wait().success());
    let outcome = ended(&mut here);
    assert!(
        matches!(&outcome, MigrationOutcome::Failed { error, .. } if error.message.contains("specification")),
        "{outcome:?}"
    );
    assert_eq!(here.status().state, VmmState::Running);
}

/// No guest comes to rest enough for this, so the migration goes on until something else ends it.
pub(crate) const ENDLESS: Budget = Budget {
    blackout_ms_max: 0,
    deadline_ms: 60_000,
    on_deadline: OnDeadline::Cancel,
    bandwidth_bytes_per_s_max: None,
    plain: false,
    post_copy: false,
    verify: false,
    slowdown_percent_max: 0,
};

pub(crate) fn under_way(vmm: &mut Vmm) {
    let copying = |progress: &MigrationProgress| progress.phase == Phase::PreCopy;
    vmm.notices.until(|notice| match notice {
        Notice::Progress { progress, .. } if copying(progress) => Some(()),
        _ => None,
    });
}

pub(crate) fn ended(vmm: &mut Vmm) -> MigrationOutcome {
    vmm.notices.until(|notice| match notice {
        Notice::MigrationEnded { outcome, .. } => Some(outcome.clone()),
        _ => None,
    })
}

#[test]
fn a_cancelled_migration_leaves_the_guest_running_here() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    let migration = migration_id(1);
    let mut there = here.destination(1, migration);
    here.migrate_to(&there, migration, ENDLESS);
    under_way(&mut here);
    here.must(&Request::CancelMigration { migration });
    let outcome = ended(&mut here);
    assert!(matches!(outcome, MigrationOutcome::Failed { .. }), "{outcome:?}");
    there.notices.until(|notice| matches!(notice, Notice::IncomingFailed { .. }).then_some(()));
    assert!(!there.wait().success());
    let mut console = here.console();
    console.send(b"x");
    console.expect(b"x");
}

#[test]
fn a_guest_that_powers_off_while_it_moves_ends_here_and_the_migration_with_it() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    here.wait_log("up\n", 1);
    let migration = migration_id(1);
    let there = here.destination(1, migration);
    here.migrate_to(&there, migration, ENDLESS);
    under_way(&mut here);
    here.console().send(b"o");
    let outcome = ended(&mut here);
    assert!(matches!(outcome, MigrationOutcome::Failed { .. }), "{outcome:?}");
    assert!(here.wait().success(), "{}", here.errors());
}

#[test]
fn a_guest_that_resets_while_it_moves_arrives_reset() {
    if !kvm_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut here = boot(folder.path(), 1);
    here.wait_log("up\n", 1);
    here.console().send(b"nn");
    here.wait_log("01", 1);
    let migration = migration_id(1);
    let mut there = here.destination(1, migration);
    let soon = Budget { deadline_ms: 500, on_deadline: OnDeadline::Switch, ..ENDLESS };
    here.migrate_to(&there, migration, soon);
    under_way(&mut here);
    here.console().send(b"r");
    let outcome = grant_everything(&mut here, &mut there);
    assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}");
    let mut console = there.console();
    console.send(b"n");
    console.expect(b"0");
}
