//! A VM's life besides migration: start, stop, remove, disks, console.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::load::lost_writes;
use godwit_lab::{LabError, Result, load};
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
        let again = load::await_guest(cluster.client(), guest.address, load::BOOT_LIMIT)?;
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
fn the_console_shows_what_the_guest_prints() {
    on_fabric(|cluster, place| {
        let [here, _] = hosts(cluster);
        let guest = GuestOptions::named("talks");
        boot(cluster, place, &guest, &here)?;
        console_says_something(cluster, "talks")
    });
}

/// Attaches, presses Enter, and waits for the first byte.
fn console_says_something(cluster: &dyn Cluster, vm: &str) -> Result<()> {
    let mut command = cluster.cli().command(&["vm", "console", vm])?;
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(LabError::io("run `godwit vm console`"))?;
    let mut input = child.stdin.take().expect("its input is a pipe");
    let mut output = child.stdout.take().expect("its output is a pipe");
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        let _ = send.send(output.read_exact(&mut byte).is_ok());
    });
    let deadline = Instant::now() + CONSOLE_LIMIT;
    let mut said = false;
    while !said && Instant::now() < deadline {
        // A console that has ended takes no more input; what counts is whether it said something.
        let _ = input.write_all(b"\r");
        said = receive.recv_timeout(Duration::from_millis(200)).unwrap_or(false);
    }
    let _ = child.kill();
    let _ = child.wait();
    ensure(said, "the console said nothing")
}

const CONSOLE_LIMIT: Duration = Duration::from_secs(20);
