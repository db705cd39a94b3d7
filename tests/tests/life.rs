//! A VM's life besides migration: start, stop, remove, disks, console.

use std::io::Read;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::load::lost_writes;
use godwit_lab::{LabError, Result, exec, load};
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

/// `godwit vm console`, attached.
struct Console {
    child: Child,
    output: ChildStdout,
    /// The console ends when its input does.
    _input: ChildStdin,
}

impl Console {
    /// Attaches, and waits until it surely is.
    fn attach(cluster: &dyn Cluster, vm: &str) -> Result<Self> {
        let mut command = cluster.cli().command(&["vm", "console", vm])?;
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(LabError::io("run `godwit vm console`"))?;
        let output = child.stdout.take().expect("its output is a pipe");
        let input = child.stdin.take().expect("its input is a pipe");
        std::thread::sleep(ATTACH_PAUSE);
        Ok(Self { child, output, _input: input })
    }

    /// Everything it says until it ends by itself.
    fn until_its_end(mut self, limit: Duration) -> Result<String> {
        let ended = exec::wait(&mut self.child, limit)?;
        if ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let mut said = String::new();
        self.output.read_to_string(&mut said).map_err(LabError::io("read the console"))?;
        ensure(ended.is_some(), format!("the console did not end with its VM; it said {said:?}"))?;
        Ok(said)
    }
}

const CONSOLE_LIMIT: Duration = Duration::from_secs(20);
/// The command has no way to say that it is attached but on a terminal.
const ATTACH_PAUSE: Duration = Duration::from_secs(1);
