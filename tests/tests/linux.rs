//! An unmodified Debian cloud kernel on emulated hosts.

use std::time::Duration;

use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::{LabError, Result};
use godwit_tests::console::Console;
use godwit_tests::{assert_alive, assert_unnoticed, boot, ensure, hosts, in_lab, load, migrate};
use godwit_types::HostName;

const MOVES: usize = 10;
/// How long a shell on an emulated host may take to answer.
const SHELL_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn linux_with_one_vcpu_moves_ten_times_unnoticed_and_its_virtio_console_moves_along() {
    in_lab(2, |cluster, place| {
        let [_, there] = hosts(cluster);
        boot_and_move(cluster, place, 1)?;
        let mut console = Console::attach(cluster, "linux")?;
        console.enter("echo $((6*7)) on $(tty)")?;
        console.expect("42 on /dev/hvc0", SHELL_LIMIT)?;
        migrate(cluster, "linux", &there, cluster.setting().migrate_options())?;
        let mut console = Console::attach(cluster, "linux")?;
        console.enter("echo $((7*7)) on $(tty)")?;
        console.expect("49 on /dev/hvc0", SHELL_LIMIT)
    });
}

#[test]
fn linux_with_two_vcpus_moves_ten_times_unnoticed() {
    in_lab(2, |cluster, place| boot_and_move(cluster, place, 2));
}

/// Boots the VM `linux` on the first host, and moves it under load until it is there again.
fn boot_and_move(cluster: &dyn Cluster, place: &GuestPlace, vcpus: u8) -> Result<()> {
    let [here, there] = hosts(cluster);
    let guest = GuestOptions { vcpus, rate: "200".into(), ..GuestOptions::named("linux") };
    let report = boot(cluster, place, &guest, &here)?;
    ensure(report.vcpus == u32::from(vcpus), format!("{} vCPUs came up, not {vcpus}", report.vcpus))?;
    assert_limited(cluster, &guest, &here)?;
    let load = load(cluster, &guest)?;
    for number in 1..=MOVES {
        let to = if number % 2 == 1 { &there } else { &here };
        let mark = load.mark()?;
        let report = migrate(cluster, "linux", to, cluster.setting().migrate_options())?;
        let noticed = assert_unnoticed(&load, &mark, &format!("move {number} to {to}"))?;
        let (total, blackout) = (report.total_ms, report.blackout.total_ms);
        let silence = noticed.network_silence.as_millis();
        eprintln!("move {number}: total {total:.0} ms, blackout {blackout:.1} ms, silence {silence} ms");
    }
    load.stop();
    assert_alive(cluster, guest.address)
}

/// Fails if the VM's process is not held to the VM's size by a cgroup of its own, and has no user of its own.
fn assert_limited(cluster: &dyn Cluster, guest: &GuestOptions, host: &HostName) -> Result<()> {
    let line = "cd /sys/fs/cgroup/godwit/*/*/ && cat memory.max memory.current pids.max cpu.weight && \
                awk '/^Uid/ { print $2 }' /proc/$(head -n 1 cgroup.procs)/status";
    let said = cluster.shell(host, line)?;
    let numbers: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let [max, current, threads, weight, user] = numbers[..] else {
        return Err(LabError::Broken(format!("there are limits missing: {said:?}")));
    };
    let memory = guest.memory.0;
    ensure((memory..2 * memory).contains(&max), format!("the VM may use {max} bytes of memory"))?;
    ensure((1..max).contains(&current), format!("{current} bytes of memory are counted as the VM's"))?;
    ensure(threads < 1000, format!("the VM may have {threads} threads"))?;
    ensure(weight == 100 * u64::from(guest.vcpus), format!("the VM's weight is {weight}"))?;
    ensure(user > 65_535, format!("the VM's process is the user {user}"))
}
