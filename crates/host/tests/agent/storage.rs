//! Disks of a VM here that move to another datastore.

use std::io::Write;
use std::os::unix::net::UnixStream;

use godwit_types::agent::Leftover;
use godwit_types::control::VmmConfig;
use godwit_types::storage::StoragePhase;
use godwit_types::{Epoch, ErrorCode};

use crate::world::{MIGRATION, VM, World, in_a_world, until};

const LEFT: [Leftover; 1] = [Leftover { vm: VM, migration: MIGRATION }];

/// What a next agent would find the VM started with.
fn config(world: &World) -> VmmConfig {
    serde_json::from_slice(&std::fs::read(world.vm_dir().join("config.json")).unwrap()).unwrap()
}

fn crash(world: &World) {
    let mut control = UnixStream::connect(world.vm_dir().join("control.sock")).unwrap();
    control.write_all(b"{\"request\":\"reset\"}\n").unwrap();
}

async fn until_told(world: &World, left: &[Leftover]) {
    until(|| async { world.told_leftovers() == left }).await;
}

#[test]
fn a_disk_that_has_moved_is_the_vms_in_its_new_place_and_the_old_image_can_be_removed() {
    in_a_world(|mut world| async move {
        world.start_vm("", 1).await.unwrap();
        let begun = world.begin_storage(1).await.unwrap();
        assert_eq!((begun.migration, begun.progress.phase), (MIGRATION, StoragePhase::InSync));
        let new = world.fast("vms/web1.raw");
        world.until_said(&format!("moves into {}", new.display())).await;
        assert_eq!(std::fs::metadata(&new).unwrap().len(), 1);
        assert_eq!(world.begin_storage(1).await.unwrap(), begun, "asking again changes nothing");
        until_told(&world, &LEFT).await;
        assert!(world.switch_storage().await.is_err(), "it is not held");
        assert_eq!(world.hold_storage().await.unwrap().progress.phase, StoragePhase::Held);
        // Another agent does not know what this one has begun but for its note.
        world.stop_agent().await;
        world.start_agent().await;
        assert_eq!(world.storage().await.unwrap().progress.phase, StoragePhase::Held);
        world.switch_storage().await.unwrap();
        world.switch_storage().await.unwrap();
        until_told(&world, &[]).await;
        assert!(world.cancel_storage().await.is_err(), "it has moved");
        let config = config(&world);
        assert_eq!(config.disks[0].path, new);
        assert_eq!(config.spec.disks[0].image.to_string(), "fast/vms/web1.raw");
        let record = format!("{{\"vm\":\"{VM}\",\"host\":\"b\",\"epoch\":1}}");
        std::fs::write(world.stored("web1.raw.lock"), record).unwrap();
        world.remove_left(1).await.unwrap();
        assert!(!world.stored("web1.raw").exists() && new.exists());
    });
}

#[test]
fn a_move_that_is_cancelled_or_does_not_begin_leaves_nothing() {
    in_a_world(|world| async move {
        world.start_vm("", 1).await.unwrap();
        assert_eq!(world.begin_storage(2).await.unwrap_err().code, ErrorCode::Conflict, "another epoch");
        world.begin_storage(1).await.unwrap();
        world.cancel_storage().await.unwrap();
        assert!(!world.fast("vms").exists());
        until_told(&world, &[]).await;
        world.cancel_storage().await.unwrap();
        world.stop_vm(true, 0).await.unwrap();
        assert_eq!(world.begin_storage(1).await.unwrap_err().code, ErrorCode::NotFound);
        world.start_vm("immovable", 2).await.unwrap();
        let refused = world.begin_storage(2).await.unwrap_err();
        assert!(refused.message.contains("do not move"), "{refused}");
        assert!(!world.fast("vms").exists());
        std::fs::create_dir(world.fast("vms")).unwrap();
        std::fs::write(world.fast("vms/web1.raw"), "somebody's").unwrap();
        let refused = world.begin_storage(2).await.unwrap_err();
        assert!(refused.code == ErrorCode::Refused && refused.message.contains("already"), "{refused}");
        assert_eq!(std::fs::read(world.fast("vms/web1.raw")).unwrap(), b"somebody's");
    });
}

#[test]
fn the_new_image_of_a_vm_that_crashes_stays_until_the_manager_says_what_became_of_it() {
    in_a_world(|world| async move {
        for (epoch, switched) in [(1, false), (2, true)] {
            world.start_vm("", epoch).await.unwrap();
            world.begin_storage(epoch).await.unwrap();
            world.hold_storage().await.unwrap();
            crash(&world);
            until(|| async { world.storage().await.is_err_and(|error| error.code == ErrorCode::NotFound) })
                .await;
            until_told(&world, &LEFT).await;
            let new = world.fast("vms/web1.raw");
            assert!(new.exists());
            if switched {
                world.switch_storage().await.unwrap();
            } else {
                world.cancel_storage().await.unwrap();
            }
            until_told(&world, &[]).await;
            assert_eq!(new.exists(), switched);
        }
    });
}

#[test]
fn a_vm_that_starts_where_its_disk_was_has_not_moved_it() {
    in_a_world(|world| async move {
        world.start_vm("", 1).await.unwrap();
        world.begin_storage(1).await.unwrap();
        crash(&world);
        until_told(&world, &LEFT).await;
        until(|| async { world.storage().await.is_err_and(|error| error.code == ErrorCode::NotFound) }).await;
        let local = world.start_vm("", 2).await.unwrap();
        assert_eq!(local.epoch, Epoch(2));
        assert!(!world.fast("vms").exists());
        until_told(&world, &[]).await;
    });
}

#[test]
fn disks_of_a_vm_that_does_not_run_are_copied_by_a_process_of_their_own() {
    in_a_world(|mut world| async move {
        let facts = world.measure_disks().await.unwrap();
        assert_eq!((facts.len(), facts[0].size.0, facts[0].layered), (1, 1, false));
        world.begin_storage_at_rest(None).await.unwrap();
        until(|| async { world.hold_storage().await.is_ok() }).await;
        assert_eq!(world.storage().await.unwrap().progress.phase, StoragePhase::Held);
        until_told(&world, &LEFT).await;
        // The next agent knows by its note alone, and is told by the manager's record.
        world.stop_agent().await;
        world.start_agent().await;
        assert_eq!(world.storage().await.unwrap_err().code, ErrorCode::NotFound);
        let taken = world.begin_storage_at_rest(None).await.unwrap_err();
        assert_eq!(taken.code, ErrorCode::Refused, "{taken}");
        world.switch_storage().await.unwrap();
        until_told(&world, &[]).await;
        assert!(world.fast("vms/web1.raw").exists());
    });
}

#[test]
fn a_copy_ends_with_its_agent_when_it_is_cancelled_and_before_its_vm_starts() {
    in_a_world(|mut world| async move {
        for end in 0..3 {
            let begun = world.begin_storage_at_rest(Some(1)).await.unwrap();
            assert_eq!(begun.progress.phase, StoragePhase::Copying);
            assert_eq!(world.begin_storage_at_rest(Some(1)).await.unwrap(), begun, "asking again");
            assert_eq!(world.hold_storage().await.unwrap_err().code, ErrorCode::Conflict);
            assert!(world.fast("vms/web1.raw").exists());
            match end {
                0 => {}
                1 => {
                    world.stop_agent().await;
                    world.start_agent().await;
                    assert_eq!(world.storage().await.unwrap_err().code, ErrorCode::NotFound);
                    until_told(&world, &LEFT).await;
                }
                _ => {
                    world.start_vm("", 2).await.unwrap();
                    assert!(world.begin_storage_at_rest(Some(1)).await.is_err(), "it runs");
                }
            }
            world.cancel_storage().await.unwrap();
            until_told(&world, &[]).await;
            assert!(!world.fast("vms").exists());
        }
    });
}
