//! A disk moves to another datastore of its host, under its guest.

use std::path::Path;

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::{Fabric, OWN_DATASTORE, Process};
use godwit_lab::{Result, load};
use godwit_tests::{ensure, hosts, migrate};
use godwit_types::storage::StoragePhase;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::DiskFormat;

use super::{
    LIMIT, allocated, await_files, files, fill, image, intact, intact_in, nothing_lost, settled,
    shared_image, still_sparse,
};

/// Moves the guest's disk to a datastore of its host.
pub(crate) fn move_storage(fabric: &Fabric, guest: &GuestOptions, to: &str) -> Result<()> {
    let cluster: &dyn Cluster = fabric;
    let task: Task = cluster.cli().ask(&["vm", "move-storage", &guest.name, "--to", to])?;
    eprintln!("{}", task.message);
    ensure(task.state == TaskState::Succeeded, format!("{task:?}"))?;
    let image = cluster.vm(&guest.name)?.spec.disks[0].image.to_string();
    ensure(image == format!("{to}/{}", guest.disk_path()), format!("it is specified in {image}"))
}

/// Begins to move it, slowly, and waits until some of it is copied.
pub(crate) fn begin_to_move_storage(fabric: &Fabric, guest: &GuestOptions, to: &str) -> Result<Task> {
    let cluster: &dyn Cluster = fabric;
    let begin = ["vm", "move-storage", &guest.name, "--to", to, "--max-bandwidth", "2MiB", "--detach"];
    let task: Task = cluster.cli().ask(&begin)?;
    let copying = |task: &Task| {
        task.storage.as_ref().is_some_and(|progress| {
            progress.phase == StoragePhase::Copying && progress.copied.0 > 0 && progress.remaining.0 > 1 << 20
        })
    };
    cluster.await_task(&task, "a copy under way", LIMIT, copying)?;
    Ok(task)
}

pub(crate) fn nothing_at(image: &Path) -> Result<()> {
    let lock = format!("{}.lock", image.display());
    ensure(!image.exists() && !Path::new(&lock).exists(), format!("{} is left", image.display()))
}

fn storage_there_and_back(format: DiskFormat) {
    settled(format, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let before = allocated(&image(fabric, &here, guest)?)?;
        move_storage(fabric, guest, "shared")?;
        let shared = shared_image(fabric, guest);
        intact_in(fabric, &shared, guest)?;
        ensure(files(fabric, &here)?.is_empty(), format!("left: {:?}", files(fabric, &here)?))?;
        still_sparse(&shared, before)?;
        // It lies where both hosts reach it.
        migrate(cluster, &guest.name, &there, &[])?;
        intact_in(fabric, &shared, guest)?;
        move_storage(fabric, guest, OWN_DATASTORE)?;
        intact(fabric, &there, guest)?;
        nothing_at(&shared)?;
        cluster.stop(&guest.name)?;
        cluster.start(&guest.name, &there)?;
        load::await_guest(cluster, guest.address)?;
        intact(fabric, &there, guest)?;
        migrate(cluster, &guest.name, &here, &["--move-disks"])?;
        intact(fabric, &here, guest)
    });
}

#[test]
fn a_raw_disk_moves_to_another_datastore_while_its_guest_writes() {
    storage_there_and_back(DiskFormat::Raw);
}

#[test]
fn a_qcow2_disk_moves_to_another_datastore_while_its_guest_writes() {
    storage_there_and_back(DiskFormat::Qcow2);
}

#[test]
fn a_move_of_storage_that_is_cancelled_leaves_the_disk_where_it_is() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let task = begin_to_move_storage(fabric, guest, "shared")?;
        let refused = cluster.migrate(&guest.name, &there, &["--move-disks"]);
        ensure(refused.is_err_and(|error| error.to_string().contains("moving disks")), "it is busy")?;
        ensure(shared_image(fabric, guest).exists(), "its image is being filled")?;
        cluster.cli().text(&["task", "cancel", &task.id.to_string()], LIMIT)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        ensure(ended.state == TaskState::Cancelled, format!("{ended:?}"))?;
        intact(fabric, &here, guest)?;
        nothing_at(&shared_image(fabric, guest))?;
        let stays = cluster.cli().ask::<Task>(&["vm", "move-storage", &guest.name, "--to", OWN_DATASTORE]);
        ensure(stays.is_err_and(|error| error.to_string().contains("already")), "it is there already")?;
        move_storage(fabric, guest, "shared")?;
        intact_in(fabric, &shared_image(fabric, guest), guest)
    });
}

#[test]
fn a_vm_whose_process_dies_while_its_disk_moves_starts_again_with_everything_it_was_promised() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, _] = hosts(cluster);
        let task = begin_to_move_storage(fabric, guest, "shared")?;
        let acked = load::fetch(fabric.client(), guest.address)?.disk.acked;
        fabric.kill_vmms(&here)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        eprintln!("{}", ended.message);
        ensure(ended.state == TaskState::Failed && ended.message.contains("crashed"), format!("{ended:?}"))?;
        nothing_lost(&image(fabric, &here, guest)?, acked)?;
        nothing_at(&shared_image(fabric, guest))?;
        cluster.start(&guest.name, &here)?;
        load::await_guest(cluster, guest.address)?;
        intact(fabric, &here, guest)?;
        move_storage(fabric, guest, "shared")?;
        intact_in(fabric, &shared_image(fabric, guest), guest)
    });
}

#[test]
fn a_datastore_that_becomes_full_ends_a_move_of_storage_and_the_guest_hears_nothing_of_it() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, _] = hosts(cluster);
        move_storage(fabric, guest, "shared")?;
        let task = begin_to_move_storage(fabric, guest, OWN_DATASTORE)?;
        fill(&fabric.own_datastore(&here)?.join("filler"))?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        let why = ended.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        ensure(ended.state == TaskState::Failed && why.contains("No space left"), format!("{ended:?}"))?;
        intact_in(fabric, &shared_image(fabric, guest), guest)?;
        await_files(fabric, &here, &["filler"])
    });
}

#[test]
fn a_move_of_storage_outlives_its_manager_and_its_agent() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, _] = hosts(cluster);
        let task = begin_to_move_storage(fabric, guest, "shared")?;
        for process in [Process::Manager, Process::Agent(here.clone())] {
            fabric.kill_process(&process)?;
            fabric.start_process(process)?;
        }
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        ensure(ended.state == TaskState::Succeeded, format!("{ended:?}"))?;
        intact_in(fabric, &shared_image(fabric, guest), guest)?;
        await_files(fabric, &here, &[])
    });
}
