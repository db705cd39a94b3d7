//! A VM whose disk only its host reaches moves with it; and its disk moves alone, to another datastore of its host.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::fabric::{Fabric, FabricOptions, OWN_DATASTORE, Process};
use godwit_lab::{LabError, Result, exec, load};
use godwit_tests::{assert_alive, ensure, hosts, migrate, on_one_fabric_with};
use godwit_types::check::{Check, MigrationCheck, Verdict};
use godwit_types::host::Host;
use godwit_types::migration::{MigrationReport, Phase};
use godwit_types::storage::StoragePhase;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::DiskFormat;
use godwit_types::{Bytes, ErrorCode, HostName};

const LIMIT: Duration = Duration::from_secs(90);
/// What each host's own datastore takes.
const OWN: Bytes = Bytes::mib(96);
/// Where something lies on a raw disk that the guest did not write, in bytes.
const OLD_AT: u64 = 50 << 20;
/// Slow enough that the move is still in pre-copy when it is disturbed.
const SLOWLY: [&str; 3] = ["--move-disks", "--max-bandwidth", "2MiB"];

fn guest(format: DiskFormat) -> GuestOptions {
    GuestOptions { disk: Bytes::mib(64), disk_format: format, ..GuestOptions::named("settler") }
}

/// Runs a test with a guest whose disk lies on the first of two hosts, with something at its end.
fn settled(format: DiskFormat, test: impl Fn(&Fabric, &GuestOptions) -> Result<()>) {
    let options = FabricOptions { own_datastores: Some(OWN), ..FabricOptions::default() };
    on_one_fabric_with(options, |fabric, place| {
        boot(fabric, place, &guest(format))?;
        test(fabric, &guest(format))
    });
}

fn boot(fabric: &Fabric, place: &GuestPlace, guest: &GuestOptions) -> Result<()> {
    let cluster: &dyn Cluster = fabric;
    let [here, _] = hosts(cluster);
    cluster.create_in(place, guest, (OWN_DATASTORE, &fabric.own_datastore(&here)?))?;
    if guest.disk_format == DiskFormat::Raw {
        let file = fs::OpenOptions::new().write(true).open(image(fabric, &here, guest)?);
        let written = file.and_then(|file| file.write_all_at(&old_contents(), OLD_AT));
        written.map_err(LabError::io("write to the disk"))?;
    }
    cluster.start(&guest.name, &here)?;
    load::await_guest(cluster, guest.address).map(drop)
}

/// Something that does not pack, behind all that the guest writes.
fn old_contents() -> Vec<u8> {
    let words = std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), |last| {
        Some(last.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17).wrapping_add(1))
    });
    words.take(1 << 20).flat_map(u64::to_le_bytes).collect()
}

/// What lies in a host's own datastore, but for its identity.
fn files(fabric: &Fabric, host: &HostName) -> Result<Vec<String>> {
    let directory = fabric.own_datastore(host)?;
    let entries = fs::read_dir(&directory).map_err(LabError::io(format!("read {}", directory.display())))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| !name.starts_with(".godwit")).collect())
}

fn image(fabric: &Fabric, host: &HostName, guest: &GuestOptions) -> Result<PathBuf> {
    Ok(fabric.own_datastore(host)?.join(guest.disk_path()))
}

fn allocated(image: &Path) -> Result<u64> {
    let found = fs::metadata(image).map_err(LabError::io(format!("look at {}", image.display())))?;
    Ok(found.blocks() * 512)
}

/// Fails unless everything that the guest was promised is on its disk in the host's own datastore, and it has seen nothing
/// wrong.
fn intact(fabric: &Fabric, host: &HostName, guest: &GuestOptions) -> Result<()> {
    intact_in(fabric, &image(fabric, host, guest)?, guest)
}

/// The same with its disk wherever it is.
fn intact_in(fabric: &Fabric, image: &Path, guest: &GuestOptions) -> Result<()> {
    assert_alive(fabric, guest.address)?;
    let report = load::fetch(fabric.client(), guest.address)?;
    ensure(report.disk.errors == 0 && report.memory.errors == 0, format!("{report:?}"))?;
    let lost = load::lost_writes(image, report.disk.acked)?;
    ensure(lost.expected > 0 && lost.lost == 0, format!("in {}: {lost:?}", image.display()))?;
    if guest.disk_format == DiskFormat::Raw {
        let mut found = old_contents();
        let read = fs::File::open(image).and_then(|file| file.read_exact_at(&mut found, OLD_AT));
        read.map_err(LabError::io("read the disk"))?;
        let why = format!("what lay on the disk before is not in {}", image.display());
        ensure(found == old_contents(), why)?;
    }
    Ok(())
}

fn there_and_back(format: DiskFormat) {
    settled(format, |fabric, guest| {
        let cluster: &dyn Cluster = fabric;
        let [here, there] = hosts(cluster);
        for (from, to) in [(&here, &there), (&there, &here), (&here, &there)] {
            let before = allocated(&image(fabric, from, guest)?)?;
            let report: MigrationReport = migrate(cluster, &guest.name, to, &["--move-disks"])?;
            eprintln!("{from} to {to}: {:.0} ms, {:?}, {:?}", report.total_ms, report.blackout, report.bytes);
            intact(fabric, to, guest)?;
            let after = allocated(&image(fabric, to, guest)?)?;
            let grown = Bytes::mib(4).0;
            ensure(after <= before + grown, format!("{before} bytes became {after}: holes were filled"))?;
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

/// Waits until nothing is left of an arrival beside what was there.
fn await_files(fabric: &Fabric, host: &HostName, wanted: &[&str]) -> Result<()> {
    let gone = exec::poll(LIMIT, exec::POLL, || Ok((files(fabric, host)? == wanted).then_some(())))?;
    ensure(gone.is_some(), format!("left on {host}: {:?}", files(fabric, host)?))
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

/// Writes zeros until there is no room for more.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).map_err(LabError::io("create the filler"))?;
    let chunk = vec![0; 64 << 10];
    while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    Ok(())
}

/// The guest's disk in the datastore that the hosts share.
fn shared_image(fabric: &Fabric, guest: &GuestOptions) -> PathBuf {
    let cluster: &dyn Cluster = fabric;
    cluster.datastore().join(guest.disk_path())
}

/// Moves the guest's disk to a datastore of its host.
fn move_storage(fabric: &Fabric, guest: &GuestOptions, to: &str) -> Result<()> {
    let cluster: &dyn Cluster = fabric;
    let task: Task = cluster.cli().ask(&["vm", "move-storage", &guest.name, "--to", to])?;
    eprintln!("{}", task.message);
    ensure(task.state == TaskState::Succeeded, format!("{task:?}"))?;
    let image = cluster.vm(&guest.name)?.spec.disks[0].image.to_string();
    ensure(image == format!("{to}/{}", guest.disk_path()), format!("it is specified in {image}"))
}

/// Begins to move it, slowly, and waits until some of it is copied.
fn begin_to_move_storage(fabric: &Fabric, guest: &GuestOptions, to: &str) -> Result<Task> {
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

fn nothing_at(image: &Path) -> Result<()> {
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
        let after = allocated(&shared)?;
        let grown = Bytes::mib(4).0;
        ensure(after <= before + grown, format!("{before} bytes became {after}: holes were filled"))?;
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
        let lost = load::lost_writes(&image(fabric, &here, guest)?, acked)?;
        ensure(lost.expected > 0 && lost.lost == 0, format!("{lost:?}"))?;
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
