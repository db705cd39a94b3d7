//! A disk moves with its VM.

use std::fs;

use godwit_lab::cluster::Cluster;
use godwit_lab::fabric::{Fabric, OWN_DATASTORE};
use godwit_lab::{LabError, Result, exec, load};
use godwit_tests::{assert_alive, ensure, hosts, migrate};
use godwit_types::check::{Check, MigrationCheck, Verdict};
use godwit_types::host::Host;
use godwit_types::migration::{MigrationReport, Phase};
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::DiskFormat;
use godwit_types::{Bytes, ErrorCode, HostName};

use super::{LIMIT, allocated, await_files, files, fill, image, intact, settled, still_sparse};

/// Slow enough that the move is still in pre-copy when it is disturbed.
const SLOWLY: [&str; 3] = ["--move-disks", "--max-bandwidth", "2MiB"];

fn there_and_back(format: DiskFormat) {
    settled(format, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        for (from, to) in [(&here, &there), (&there, &here), (&here, &there)] {
            let before = allocated(&image(fabric, from, guest)?)?;
            let report: MigrationReport = migrate(cluster, &guest.name, to, &["--move-disks"])?;
            eprintln!("{from} to {to}: {:.0} ms, {:?}, {:?}", report.total_ms, report.blackout, report.bytes);
            intact(fabric, to, guest)?;
            still_sparse(&image(fabric, to, guest)?, before)?;
            ensure(files(fabric, from)?.is_empty(), format!("left on {from}: {:?}", files(fabric, from)?))?;
        }
        cluster.stop(&guest.name)?;
        let elsewhere = cluster.start(&guest.name, &here);
        ensure(elsewhere.is_err(), "it should not start where its disk is not")?;
        cluster.start(&guest.name, &there)?;
        load::await_guest(cluster, guest.address)?;
        intact(fabric, &there, guest)
    });
}

#[test]
fn a_vm_with_a_raw_disk_of_its_hosts_own_moves_there_and_back() {
    there_and_back(DiskFormat::Raw);
}

#[test]
fn a_vm_with_a_qcow2_disk_of_its_hosts_own_moves_there_and_back() {
    there_and_back(DiskFormat::Qcow2);
}

#[test]
fn a_disk_that_the_destination_does_not_share_moves_only_if_that_is_asked_for() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let refused = cluster.migrate(&guest.name, &there, &[]);
        let Err(LabError::Cli(refused)) = refused else {
            return Err(LabError::Broken(format!("it should be refused: {refused:?}")));
        };
        ensure(refused.is(ErrorCode::Refused), format!("{refused}"))?;
        let said = &refused.stderr;
        ensure(said.contains("does not share with") && said.contains("--move-disks"), said)?;
        ensure(!said.contains("cannot open"), said)?;
        let check = ["vm", "check-migration", &guest.name, "--to", there.as_str(), "--move-disks"];
        let told: MigrationCheck = cluster.cli().ask(&check)?;
        let disks = told.hosts[0].findings.iter().find(|finding| finding.check == Check::Disks);
        ensure(disks.is_some_and(|finding| finding.verdict == Verdict::Ok), format!("{told:#?}"))?;
        let in_the_way = image(fabric, &there, guest)?;
        fs::write(&in_the_way, "somebody's").map_err(LabError::io("write a file"))?;
        let refused = cluster.migrate(&guest.name, &there, &["--move-disks"]);
        ensure(refused.is_err_and(|error| error.to_string().contains("already")), "a file is in the way")?;
        let kept = fs::read_to_string(&in_the_way).map_err(LabError::io("read a file"))?;
        ensure(kept == "somebody's", "what is somebody's stays")?;
        fs::remove_file(&in_the_way).map_err(LabError::io("remove a file"))?;
        // The shared datastore takes it as well, and is then no reason to move anything.
        migrate(cluster, &guest.name, &there, &["--move-disks=shared"])?;
        ensure(
            cluster.vm(&guest.name)?.spec.disks[0].image.to_string() == "shared/settler.raw",
            "it is specified there",
        )?;
        migrate(cluster, &guest.name, &here, &[])?;
        assert_alive(cluster, guest.address)
    });
}

fn in_pre_copy(task: &Task) -> bool {
    task.progress
        .as_ref()
        .is_some_and(|progress| progress.phase == Phase::PreCopy && progress.bytes_sent > 1 << 20)
}

/// Begins a move, disturbs it, and expects that it leaves nothing at the destination and that the next one succeeds.
fn disturbed(state: TaskState, disturb: impl Fn(&Fabric, &Task, &HostName) -> Result<()>) {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let task = cluster.migrate_detached(&guest.name, &there, &SLOWLY)?;
        cluster.await_task(&task, "pre-copy under way", LIMIT, in_pre_copy)?;
        ensure(files(fabric, &there)?.contains(&guest.disk_path()), "its image is being filled")?;
        disturb(fabric, &task, &there)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        eprintln!("{}", ended.message);
        ensure(ended.state == state, format!("{ended:?}"))?;
        cluster.assert_runs_on(&guest.name, &here)?;
        intact(fabric, &here, guest)?;
        await_files(fabric, &there, &[])?;
        migrate(cluster, &guest.name, &there, &["--move-disks"])?;
        intact(fabric, &there, guest)
    });
}

#[test]
fn a_move_that_is_cancelled_leaves_nothing_at_the_destination() {
    disturbed(TaskState::Cancelled, |fabric, task, _| {
        let cluster: &dyn Cluster = fabric;
        cluster.cli().text(&["task", "cancel", &task.id.to_string()], LIMIT).map(drop)
    });
}

#[test]
fn a_destination_whose_process_dies_leaves_nothing_of_the_disk() {
    disturbed(TaskState::Failed, |fabric, _, there| fabric.kill_vmms(there).map(drop));
}

#[test]
fn a_datastore_that_becomes_full_fails_the_move_and_the_vm_runs_on() {
    settled(DiskFormat::Raw, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        let task = cluster.migrate_detached(&guest.name, &there, &SLOWLY)?;
        let filler = fabric.own_datastore(&there)?.join("filler");
        cluster.await_task(&task, "pre-copy under way", LIMIT, in_pre_copy)?;
        fill(&filler)?;
        let ended = cluster.await_task(&task, "an end", LIMIT, |task| task.state.is_final())?;
        let why = ended.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        ensure(ended.state == TaskState::Failed && why.contains("No space left"), format!("{ended:?}"))?;
        cluster.assert_runs_on(&guest.name, &here)?;
        intact(fabric, &here, guest)?;
        // What had come is removed, and so there is room again.
        await_files(fabric, &there, &["filler"])?;
        fill(&filler)?;
        await_full(cluster, &there)?;
        let refused = cluster.migrate(&guest.name, &there, &["--move-disks"]);
        ensure(refused.is_err_and(|error| error.to_string().contains("free")), "there is no room")?;
        await_files(fabric, &there, &["filler"])
    });
}

/// Waits until the manager knows that there is no room.
fn await_full(cluster: &dyn Cluster, host: &HostName) -> Result<()> {
    let told = exec::poll(LIMIT, exec::POLL_COMMAND, || {
        let shown: Host = cluster.cli().ask(&["host", "show", host.as_str()])?;
        let own = shown.facts.datastores.iter().find(|offer| offer.name.as_str() == OWN_DATASTORE);
        Ok(own.filter(|offer| offer.free < Bytes(64 << 10)).map(drop))
    })?;
    ensure(told.is_some(), format!("{host} does not say that its datastore is full"))
}
