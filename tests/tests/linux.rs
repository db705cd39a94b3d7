//! An unmodified Debian cloud kernel on emulated hosts.

use std::time::{Duration, Instant};

use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::load::fetch;
use godwit_lab::{LabError, Result, exec};
use godwit_tests::console::Console;
use godwit_tests::{
    assert_alive, assert_unnoticed, boot, ensure, hosts, in_lab, load, migrate, migrate_in_lab,
};
use godwit_types::migration::Comparison;
use godwit_types::{Bytes, HostName};

const MOVES: usize = 10;
/// How long a shell on an emulated host may take to answer.
const SHELL_LIMIT: Duration = Duration::from_secs(60);
/// What asking for the guest's time may take, twice.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

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

/// What the guest fills and frees.
const MUCH: Bytes = Bytes::mib(64);
/// What of it may be in use again, or lie in blocks with other pages.
const REST: Bytes = Bytes::mib(16);
const FILL_LIMIT: Duration = Duration::from_secs(180);
/// Linux reports a page some seconds after it was freed.
const REPORT_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn memory_that_linux_has_freed_goes_back_to_its_host_and_is_not_sent() {
    in_lab(2, |cluster, place| {
        let [here, there] = hosts(cluster);
        let guest = GuestOptions {
            working_set: Bytes::mib(8),
            rate: "50".into(),
            content: "random".into(),
            ..GuestOptions::named("linux")
        };
        boot(cluster, place, &guest, &here)?;
        type_at(cluster, &format!("head -c {} /dev/urandom >/tmp/much", MUCH.0))?;
        let full = sent_and_verified(cluster, &there)?;
        let held = held(cluster, &there)?;
        type_at(cluster, "rm /tmp/much")?;
        let freed = exec::poll(REPORT_LIMIT, exec::POLL_COMMAND, || {
            Ok((self::held(cluster, &there)? + MUCH.0 <= held + REST.0).then_some(()))
        })?;
        ensure(
            freed.is_some(),
            format!("the host holds {held} bytes, and then {}", self::held(cluster, &there)?),
        )?;
        let empty = sent_and_verified(cluster, &here)?;
        eprintln!("{full} bytes were sent, and {empty} once {MUCH} were free");
        ensure(empty + MUCH.0 <= full + REST.0, format!("{full} bytes were sent, and then {empty}"))?;
        let report = fetch(cluster.client(), guest.address)?;
        ensure(report.memory.errors == 0, format!("{report:?}"))?;
        assert_alive(cluster, guest.address)
    });
}

/// Types a line at the guest `linux`, and waits until it is done.
fn type_at(cluster: &dyn Cluster, line: &str) -> Result<()> {
    let mut console = Console::attach(cluster, "linux")?;
    console.await_shell(SHELL_LIMIT)?;
    // What is typed is seen, too.
    console.enter(&format!("{line} && echo done: $((6*7))"))?;
    console.expect("done: 42", FILL_LIMIT)
}

/// Moves the guest `linux`, and compares its memory: the bytes on the wire.
fn sent_and_verified(cluster: &dyn Cluster, to: &HostName) -> Result<u64> {
    let report =
        migrate(cluster, "linux", to, &[cluster.setting().migrate_options(), &["--verify"]].concat())?;
    let verified = report.verified.as_ref().map(|verified| verified.memory);
    ensure(verified == Some(Comparison::Same), format!("{:?}", report.verified))?;
    Ok(report.bytes.sent)
}

/// The host's memory that the VM's process holds, in bytes.
fn held(cluster: &dyn Cluster, host: &HostName) -> Result<u64> {
    let said = cluster.shell(host, "awk '/^anon / { print $2 }' /sys/fs/cgroup/godwit/*/*/memory.stat")?;
    said.trim().parse().map_err(|_| LabError::Broken(format!("{said:?} is no number of bytes")))
}

/// Boots the VM `linux` on the first host, and moves it under load until it is there again.
fn boot_and_move(cluster: &dyn Cluster, place: &GuestPlace, vcpus: u8) -> Result<()> {
    let [here, there] = hosts(cluster);
    let guest = GuestOptions { vcpus, rate: "200".into(), ..GuestOptions::named("linux") };
    let report = boot(cluster, place, &guest, &here)?;
    ensure(report.vcpus == u32::from(vcpus), format!("{} vCPUs came up, not {vcpus}", report.vcpus))?;
    assert_limited(cluster, &guest, &here)?;
    let load = load(cluster, &guest)?;
    let (began, uptime) = (Instant::now(), uptime(cluster, &guest)?);
    let mut stood = Duration::ZERO;
    for number in 1..=MOVES {
        let to = if number % 2 == 1 { &there } else { &here };
        let mark = load.mark()?;
        let report = migrate_in_lab(cluster, "linux", to, number)?;
        let noticed = assert_unnoticed(&load, &mark, &format!("move {number} to {to}"))?;
        let (total, blackout) = (report.total_ms, report.blackout.total_ms);
        stood += Duration::from_secs_f64(blackout / 1e3);
        let silence = noticed.network_silence.as_millis();
        eprintln!("move {number}: total {total:.0} ms, blackout {blackout:.1} ms, silence {silence} ms");
    }
    let (passed, went) = (began.elapsed(), self::uptime(cluster, &guest)?.saturating_sub(uptime));
    eprintln!("the guest's clock went on by {went:?} in {passed:?}, in which it stood for {stood:?}");
    // Had its clock stood with it, it would be behind by all of that.
    ensure(
        went + CLOCK_SLACK + stood / 2 >= passed,
        format!("{went:?} in {passed:?}, standing for {stood:?}"),
    )?;
    let requests = load.stop();
    ensure(requests.downloaded > 0, "the download never began")?;
    assert_alive(cluster, guest.address)
}

fn uptime(cluster: &dyn Cluster, guest: &GuestOptions) -> Result<Duration> {
    Ok(Duration::from_micros(fetch(cluster.client(), guest.address)?.uptime_us))
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
