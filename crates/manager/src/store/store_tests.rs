//! What the store promises, on real files.

use godwit_types::ownership::Ownership;
use godwit_types::task::{Task, TaskKind, TaskState};
use godwit_types::{Epoch, MigrationId, TaskId};
use uuid::Uuid;

use super::*;
use crate::arbiter::{Change, Migration, MigrationState};
use crate::fixtures;
use crate::moving::Moving;
use crate::tasks::new_task;

struct Fixture {
    _dir: tempfile::TempDir,
    store: Store,
    vm: VmRow,
}

/// A store with the hosts `a` and `b` and a VM that `a` owns at epoch 1.
async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let vm = fixtures::vm("web1");
    let row = vm.clone();
    let filled = store.write(move |tx| {
        tx.put_host(&fixtures::host("a"))?;
        tx.put_host(&fixtures::host("b"))?;
        tx.add_vm(&row)?;
        Ok(tx.put_ownership(&owned(&row, "a", 1))?)
    });
    filled.await.unwrap();
    Fixture { _dir: dir, store, vm }
}

fn owned(vm: &VmRow, owner: &str, epoch: u64) -> Ownership {
    Ownership { vm: vm.id, owner: owner.parse().unwrap(), epoch: Epoch(epoch), claimed: true }
}

fn migration(vm: &VmRow, state: MigrationState) -> Migration {
    Migration {
        id: MigrationId(Uuid::new_v4()),
        task: TaskId(Uuid::new_v4()),
        vm: vm.id,
        source: "a".parse().unwrap(),
        destination: "b".parse().unwrap(),
        epoch: Epoch(1),
        state,
        taken_over: false,
    }
}

fn task(vm: &VmRow) -> Task {
    new_task(vm, TaskKind::StartVm { host: "a".parse().unwrap() }, "m".into())
}

#[tokio::test]
async fn rows_are_read_back_as_they_were_written() {
    let Fixture { store, vm, .. } = fixture().await;
    let row = vm.clone();
    let read = store
        .read(move |tx| Ok((tx.vm("web1")?, tx.vm(&row.id.to_string())?, tx.host(&"a".parse().unwrap())?)));
    let (by_name, by_id, host) = read.await.unwrap();
    assert_eq!((by_name, by_id), (Some(vm.clone()), Some(vm)));
    assert_eq!(host, Some(fixtures::host("a")));
}

#[tokio::test]
async fn an_epoch_that_goes_back_or_gets_a_second_owner_is_refused_by_the_store_itself() {
    let Fixture { store, vm, .. } = fixture().await;
    for (owner, epoch, allowed) in [("b", 1, false), ("b", 2, true), ("b", 1, false), ("a", 2, false)] {
        let record = owned(&vm, owner, epoch);
        let written = store.write(move |tx| Ok(tx.put_ownership(&record)?)).await;
        assert_eq!(written.is_ok(), allowed, "{owner}@{epoch}: {written:?}");
    }
}

#[tokio::test]
async fn a_vm_has_one_open_task_and_one_open_migration() {
    let Fixture { store, vm, .. } = fixture().await;
    let (first, second, m) = (task(&vm), task(&vm), migration(&vm, MigrationState::Running));
    let (id, again) = (first.id, migration(&vm, MigrationState::Preparing));
    let add = |task: Task| move |tx: &Tx<'_>| Ok(tx.add_task(&task, &())?);
    store.write(add(first)).await.unwrap();
    assert!(store.write(add(second.clone())).await.is_err());
    let finish = move |tx: &Tx<'_>| Ok(tx.finish_task(id, TaskState::Succeeded, "done", None, None)?);
    store.write(finish).await.unwrap();
    store.write(add(second)).await.unwrap();
    store.write(move |tx| Ok(tx.add_migration(&m)?)).await.unwrap();
    assert!(store.write(move |tx| Ok(tx.add_migration(&again)?)).await.is_err());
}

/// The disk in the datastore `shared` moves to the one named.
fn moving(vm: &VmRow, to: &str) -> Moving {
    let mut spec = vm.spec.clone();
    let images = vec![spec.disks[0].image.clone()];
    spec.disks[0].image.datastore = to.parse().unwrap();
    Moving { disks: [0].into(), images, spec }
}

#[tokio::test]
async fn with_the_commit_the_disks_are_where_they_have_come_and_what_is_left_is_known() {
    let Fixture { store, vm, .. } = fixture().await;
    let m = migration(&vm, MigrationState::Running);
    let (id, change, fast) = (m.id, arbiter_change(&vm), moving(&vm, "fast"));
    let specified = fast.spec.clone();
    let added = store.write(move |tx| {
        tx.add_migration(&m)?;
        Ok(tx.add_moving(id, &fast)?)
    });
    added.await.unwrap();
    let at_a = |tx: &Tx<'_>| Ok(tx.left_at(&"a".parse().unwrap())?);
    assert_eq!(store.read(at_a).await.unwrap(), []);
    let claim = Change { state: MigrationState::Claimed, ..change.clone() };
    store.write(move |tx| Ok(tx.apply_change(id, &change)?)).await.unwrap();
    assert_eq!(store.read(|tx| Ok(tx.vm("web1")?.unwrap().spec)).await.unwrap(), specified);
    let left = store.read(at_a).await.unwrap();
    assert_eq!(
        (left.len(), left[0].order.epoch, &left[0].order.images),
        (1, Epoch(1), &vec![vm.spec.disks[0].image.clone()])
    );
    store.write(move |tx| Ok(tx.set_nothing_left(id)?)).await.unwrap();
    // The claim is no second commit.
    store.write(move |tx| Ok(tx.apply_change(id, &claim)?)).await.unwrap();
    assert_eq!(store.read(at_a).await.unwrap(), []);
}

#[tokio::test]
async fn what_a_vm_has_left_is_replaced_when_its_disk_comes_back_to_the_same_place() {
    for (to, left_at_home) in [("shared", 0), ("fast", 1)] {
        let Fixture { store, vm, .. } = fixture().await;
        let (out, back) = (migration(&vm, MigrationState::Running), migration(&vm, MigrationState::Running));
        let back = Migration {
            source: out.destination.clone(),
            destination: out.source.clone(),
            epoch: Epoch(2),
            ..back
        };
        for (m, to, owner, epoch) in [(out, "shared", "b", 2), (back, to, "a", 3)] {
            let (id, ownership, moving) = (m.id, owned(&vm, owner, epoch), moving(&vm, to));
            let change = Change { ownership, state: MigrationState::Committed, taken_over: false };
            let moved = store.write(move |tx| {
                tx.add_migration(&m)?;
                tx.add_moving(id, &moving)?;
                Ok(tx.apply_change(id, &change)?)
            });
            moved.await.unwrap();
        }
        let left =
            store.read(|tx| Ok((tx.left_at(&"a".parse().unwrap())?, tx.left_at(&"b".parse().unwrap())?)));
        let (at_a, at_b) = left.await.unwrap();
        assert_eq!((at_a.len(), at_b.len()), (left_at_home, 1), "to {to}");
    }
}

#[tokio::test]
async fn an_abort_and_a_commit_never_both_win() {
    let Fixture { store, vm, .. } = fixture().await;
    let reason = ApiError::new(ErrorCode::Failed, "first reason");
    let m = migration(&vm, MigrationState::Running);
    let (id, other) = (m.id, migration(&vm, MigrationState::Running));
    store.write(move |tx| Ok(tx.add_migration(&m)?)).await.unwrap();
    let first = reason.clone();
    assert!(store.write(move |tx| Ok(tx.abort_migration(id, &first)?)).await.unwrap());
    let second = ApiError::new(ErrorCode::Failed, "second reason");
    assert!(store.write(move |tx| Ok(tx.abort_migration(id, &second)?)).await.unwrap());
    assert_eq!(store.read(move |tx| Ok(tx.abort_reason(id)?)).await.unwrap(), Some(reason.clone()));
    // Whatever the code above it decides, the store does not take a commit after an abort.
    let change = arbiter_change(&vm);
    assert!(store.write(move |tx| Ok(tx.apply_change(id, &change)?)).await.is_err());

    let (id, change) = (other.id, arbiter_change(&vm));
    store.write(move |tx| Ok(tx.add_migration(&other)?)).await.unwrap();
    store.write(move |tx| Ok(tx.apply_change(id, &change)?)).await.unwrap();
    assert!(!store.write(move |tx| Ok(tx.abort_migration(id, &reason)?)).await.unwrap());
}

fn arbiter_change(vm: &VmRow) -> crate::arbiter::Change {
    crate::arbiter::Change {
        ownership: owned(vm, "b", 2),
        state: MigrationState::Committed,
        taken_over: false,
    }
}

#[tokio::test]
async fn a_failed_job_leaves_nothing_behind() {
    let Fixture { store, vm, .. } = fixture().await;
    let job = move |tx: &Tx<'_>| -> Result<(), ApiError> {
        tx.set_power(vm.id, Power::Crashed)?;
        Err(ApiError::new(ErrorCode::Refused, "no"))
    };
    assert_eq!(store.write(job).await.unwrap_err().code, ErrorCode::Refused);
    let vm = store.read(|tx| Ok(tx.vm("web1")?)).await.unwrap().unwrap();
    assert_eq!(vm.power, Power::Running);
}

#[tokio::test]
async fn only_the_last_events_are_kept_and_their_numbers_go_on() {
    let Fixture { store, .. } = fixture().await;
    let many = store.note(|tx| {
        for _ in 0..10_100 {
            tx.add_event(NewEvent::new("test", "m"))?;
        }
        Ok(tx.events_after(0, u64::from(u32::MAX))?)
    });
    let events = many.await.unwrap();
    assert_eq!(events.len(), 10_000);
    assert_eq!((events[0].sequence, events[9_999].sequence), (101, 10_100));
    assert_eq!(*store.last_event().borrow(), 10_100);
}

#[tokio::test]
async fn a_second_manager_on_the_same_store_is_refused_and_a_later_one_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (store, thread) = Store::open(dir.path()).unwrap();
    store.write(|tx| Ok(tx.put_host(&fixtures::host("a"))?)).await.unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Open { .. })));
    store.close().await;
    thread.join().unwrap();
    let late = store.read(|tx| Ok(tx.hosts()?)).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::Internal);
    let (store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(store.read(|tx| Ok(tx.hosts()?)).await.unwrap(), [fixtures::host("a")]);
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let sql = Connection::open(dir.path().join("store.sqlite")).unwrap();
    sql.pragma_update(None, "user_version", 99).unwrap();
    drop(sql);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error:?}");
}
