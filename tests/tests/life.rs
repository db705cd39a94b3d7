//! A VM's life besides migration: start, stop, remove, disks, console.

use std::time::Duration;

use godwit_lab::cluster::GuestOptions;
use godwit_lab::load;
use godwit_lab::load::lost_writes;
use godwit_tests::console::Console;
use godwit_tests::{VERB_LIMIT, assert_alive, boot, ensure, hosts, migrate, on_fabric};
use godwit_types::vm::{DiskFormat, Vm, VmState};

#[test]
fn a_vm_starts_stops_starts_again_and_is_removed() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions::named("cycle");
        boot(cluster, place, &guest, &here)?;
        assert_alive(cluster, guest.address)?;
        let acknowledged = load::fetch(cluster.client(), guest.address)?.disk.acked;
        cluster.stop("cycle")?;
        ensure(cluster.vm("cycle")?.state == VmState::Stopped, "the VM should be stopped")?;
        let lost = lost_writes(&cluster.datastore().join(guest.disk_path()), acknowledged)?;
        ensure(lost.lost == 0, format!("writes were lost: {lost:?}"))?;
        cluster.start("cycle", &there)?;
        let again = load::await_guest(cluster, guest.address)?;
        ensure(again.disk.errors == 0, format!("the disk did not survive the stop: {again:?}"))?;
        cluster.assert_runs_on("cycle", &there)?;
        cluster.stop("cycle")?;
        cluster.cli().text(&["vm", "rm", "cycle"], VERB_LIMIT)?;
        let left: Vec<Vm> = cluster.cli().ask(&["vm", "ls"])?;
        ensure(left.is_empty(), format!("removed, and still there: {left:?}"))
    });
}

#[test]
fn a_qcow2_disk_keeps_every_acknowledged_write_through_a_move_and_a_stop() {
    on_fabric(|cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions { disk_format: DiskFormat::Qcow2, ..GuestOptions::named("thin") };
        boot(cluster, place, &guest, &here)?;
        assert_alive(cluster, guest.address)?;
        migrate(cluster, "thin", &there, &[])?;
        assert_alive(cluster, guest.address)?;
        let report = load::fetch(cluster.client(), guest.address)?;
        ensure(report.disk.errors == 0, format!("the guest read back something else: {:?}", report.disk))?;
        cluster.stop("thin")?;
        let lost = lost_writes(&cluster.datastore().join(guest.disk_path()), report.disk.acked)?;
        ensure(lost.expected > 0 && lost.lost == 0, format!("writes were lost: {lost:?}"))
    });
}

#[test]
fn the_power_button_shuts_the_guest_down_and_the_console_shows_it() {
    on_fabric(|cluster, place| {
        let [here, _] = hosts(cluster);
        let guest = GuestOptions::named("talks");
        boot(cluster, place, &guest, &here)?;
        let console = Console::attach(cluster, "talks")?;
        let before = load::fetch(cluster.client(), guest.address)?;
        cluster.cli().text(&["vm", "stop", "talks", "--timeout", "30s"], VERB_LIMIT)?;
        let said = console.until_its_end(CONSOLE_LIMIT)?;
        ensure(said.contains("power off"), format!("the console does not show the shutdown: {said:?}"))?;
        let image = cluster.datastore().join(guest.disk_path());
        let lost = lost_writes(&image, before.disk.acked)?;
        ensure(lost.lost == 0, format!("writes were lost: {lost:?}"))
    });
}

const CONSOLE_LIMIT: Duration = Duration::from_secs(20);
