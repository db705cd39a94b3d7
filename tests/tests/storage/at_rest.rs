//! A disk moves to another datastore while its VM is stopped.

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::{Fabric, OWN_DATASTORE, OwnDatastores, Process};
use godwit_lab::{Result, exec, load};
use godwit_tests::{ensure, hosts};
use godwit_types::HostName;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::DiskFormat;

use super::alone::{begin_to_move_storage, move_storage, nothing_at};
use super::{
    LIMIT, allocated, await_files, fill, image, intact_in, nothing_lost, settled, settled_in, shared_image,
    still_sparse,
};

/// Stops the guest, and says what its disk had acknowledged by then at least.
fn stopped(fabric: &Fabric, guest: &GuestOptions) -> Result<u64> {
    let cluster: &dyn Cluster = fabric;
    let acked = load::fetch(fabric.client(), guest.address)?.disk.acked;
    cluster.stop(&guest.name)?;
    Ok(acked)
}

fn storage_moves_at_rest(format: DiskFormat) {
    settled(format, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let acked = stopped(fabric, guest)?;
        let (own, shared) = (image(fabric, &here, guest)?, shared_image(fabric, guest));
        let before = allocated(&own)?;
        move_storage(fabric, guest, "shared")?;
        nothing_lost(&shared, acked)?;
        still_sparse(&shared, before)?;
        nothing_at(&own)?;
        // To where it came from, and then to where both hosts reach it.
        move_storage(fabric, guest, OWN_DATASTORE)?;
        nothing_lost(&own, acked)?;
        nothing_at(&shared)?;
        move_storage(fabric, guest, "shared")?;
        cluster.start(&guest.name, &there)?;
        load::await_guest(cluster, guest.address)?;
        intact_in(fabric, &shared, guest)
    });
}

#[test]
fn a_raw_disk_moves_to_another_datastore_while_its_vm_is_stopped() {
    storage_moves_at_rest(DiskFormat::Raw);
}

#[test]
fn a_qcow2_disk_moves_to_another_datastore_while_its_vm_is_stopped() {
    storage_moves_at_rest(DiskFormat::Qcow2);
}

/// Disturbs a move of a stopped VM's disk, and expects the disk where it was and nothing else, and that the next one succeeds.
fn disturbed_at_rest(state: TaskState, disturb: impl Fn(&Fabric, &Task, &HostName) -> Result<()>) {
    settled_in(OwnDatastores::Lasting, DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, _] = hosts(cluster);
        let acked = stopped(fabric, guest)?;
        let task = begin_to_move_storage(fabric, guest, "shared")?;
        ensure(shared_image(fabric, guest).exists(), "its image is being filled")?;
        ensure(cluster.start(&guest.name, &here).is_err(), "its disk is on its way")?;
        disturb(fabric, &task, &here)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        eprintln!("{}", ended.message);
        ensure(ended.state == state, format!("{ended:?}"))?;
        let shared = shared_image(fabric, guest);
        let gone = exec::poll(LIMIT, exec::POLL, || Ok(nothing_at(&shared).ok()))?;
        ensure(gone.is_some(), format!("{} is left", shared.display()))?;
        nothing_lost(&image(fabric, &here, guest)?, acked)?;
        move_storage(fabric, guest, "shared")?;
        nothing_lost(&shared, acked)?;
        await_files(fabric, &here, &[])
    });
}

#[test]
fn a_move_of_a_stopped_vms_storage_that_is_cancelled_leaves_the_disk_where_it_is() {
    disturbed_at_rest(TaskState::Cancelled, |fabric, task, _| {
        let cluster: &dyn Cluster = fabric;
        cluster.cli().text(&["task", "cancel", &task.id.to_string()], LIMIT).map(drop)
    });
}

#[test]
fn a_move_of_a_stopped_vms_storage_ends_with_its_agent_and_leaves_the_disk_where_it_is() {
    disturbed_at_rest(TaskState::Failed, |fabric, _, here| {
        let agent = Process::Agent(here.clone());
        fabric.kill_process(&agent)?;
        fabric.start_process(agent)
    });
}

#[test]
fn a_move_of_a_stopped_vms_storage_outlives_its_manager() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, _] = hosts(cluster);
        let acked = stopped(fabric, guest)?;
        let task = begin_to_move_storage(fabric, guest, "shared")?;
        fabric.kill_process(&Process::Manager)?;
        fabric.start_process(Process::Manager)?;
        cluster.await_hosts(LIMIT)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        ensure(ended.state == TaskState::Succeeded, format!("{ended:?}"))?;
        nothing_lost(&shared_image(fabric, guest), acked)?;
        await_files(fabric, &here, &[])
    });
}

#[test]
fn a_datastore_that_becomes_full_ends_a_move_of_a_stopped_vms_storage() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, _] = hosts(cluster);
        move_storage(fabric, guest, "shared")?;
        let acked = stopped(fabric, guest)?;
        let task = begin_to_move_storage(fabric, guest, OWN_DATASTORE)?;
        fill(&fabric.own_datastore(&here)?.join("filler"))?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        let why = ended.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        ensure(ended.state == TaskState::Failed && why.contains("No space left"), format!("{ended:?}"))?;
        nothing_lost(&shared_image(fabric, guest), acked)?;
        await_files(fabric, &here, &["filler"])?;
        cluster.start(&guest.name, &here)?;
        load::await_guest(cluster, guest.address)?;
        intact_in(fabric, &shared_image(fabric, guest), guest)
    });
}
