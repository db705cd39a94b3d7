//! What the end-to-end tests share: a cluster with one guest that answers.

pub mod console;
pub mod footprint;
pub mod handoff;
pub mod heartbeat;

use std::net::Ipv4Addr;
use std::sync::OnceLock;

use godwit_lab::cluster::attempt::attempt;
use godwit_lab::cluster::{Cluster, GuestOptions, GuestPlace};
use godwit_lab::emulated::Postgres;
use godwit_lab::fabric::{Fabric, FabricOptions, require_root_and_kvm};
use godwit_lab::guest::GuestFiles;
use godwit_lab::load::{self, GuestReport, Load, LoadOptions, Mark, Noticed};
use godwit_lab::{LabError, Result, cleanup, emulated, logs, setup};
use godwit_types::migration::MigrationReport;
use godwit_types::task::{Task, TaskState};
use godwit_types::{Bytes, HostName};

/// How long a verb may take that does not wait for a migration.
pub const VERB_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Environment variable: why the tests on emulated hosts are left out.
const NO_LAB: &str = "GODWIT_NO_LAB";

/// Runs a test on two native hosts, with the reference guest in their datastore.
pub fn on_fabric(test: impl Fn(&dyn Cluster, &GuestPlace) -> Result<()>) {
    on_fabric_with(FabricOptions::default(), test);
}

/// Runs a test on native hosts as wished, with the reference guest in their datastore.
pub fn on_fabric_with(options: FabricOptions, test: impl Fn(&dyn Cluster, &GuestPlace) -> Result<()>) {
    run(prepare_native, || Ok(Box::new(Fabric::start(options.clone())?)), test);
}

/// Runs a test on two native hosts that it can reach into, with the reference guest in their datastore.
pub fn on_one_fabric(test: impl Fn(&Fabric, &GuestPlace) -> Result<()>) {
    on_one_fabric_with(FabricOptions::default(), test);
}

/// Runs a test on native hosts as wished that it can reach into, with the reference guest in their datastore.
pub fn on_one_fabric_with(options: FabricOptions, test: impl Fn(&Fabric, &GuestPlace) -> Result<()>) {
    native(|guest| {
        let fabric = Fabric::start(options)?;
        let done = guest.install(&fabric).and_then(|place| test(&fabric, &place));
        done.inspect_err(|_| eprintln!("{}", logs::tails(fabric.logs())))
    });
}

/// Runs a test that makes its own native clusters, with the reference guest's files.
pub fn native(test: impl FnOnce(&GuestFiles) -> Result<()>) {
    cleanup::on_interrupt();
    match prepare_native() {
        Ok(guest) => test(&guest).unwrap_or_else(|error| panic!("{}", error.chain())),
        Err(error) => skip(error),
    }
}

fn prepare_native() -> Result<GuestFiles> {
    require_root_and_kvm()?;
    setup::packages::ensure(&setup::packages::NATIVE)?;
    setup::build_tested_programs()?;
    GuestFiles::reference()
}

/// Says so in the one form that `cargo xtask test` counts, if the machine is to blame.
fn skip(error: LabError) {
    match error {
        LabError::Unsupported(why) => eprintln!("SKIPPED: {}", why.replace('\n', " ")),
        error => panic!("{}", error.chain()),
    }
}

/// Runs a test on two or three emulated hosts, with the Linux guest in their datastore.
pub fn in_lab(hosts: u8, test: impl Fn(&dyn Cluster, &GuestPlace) -> Result<()>) {
    let prepare = || prepare_lab().and_then(|()| emulated::linux_guest());
    run(prepare, || emulated::start_cluster(hosts), test);
}

/// Runs a test on two emulated hosts, with the Linux guest in their datastore and PostgreSQL to go with it.
pub fn in_lab_with_postgres(test: impl Fn(&dyn Cluster, &GuestPlace, &Postgres) -> Result<()>) {
    let postgres = OnceLock::new();
    let prepare = || {
        prepare_lab()?;
        let (guest, disk) = emulated::postgres_guest()?;
        postgres.get_or_init(|| disk);
        Ok(guest)
    };
    run(
        prepare,
        || emulated::start_cluster(2),
        |cluster, place| test(cluster, place, postgres.get().expect("it was prepared")),
    );
}

/// Runs a test with the lab that `cargo xtask lab up` starts, of so many hosts, and takes it down at the end. Leaves one alone that
/// somebody else has started.
pub fn with_standing_lab(hosts: u8, test: impl FnOnce() -> Result<()>) {
    struct Down;
    impl Drop for Down {
        fn drop(&mut self) {
            let _best_effort = emulated::down();
        }
    }

    cleanup::on_interrupt();
    let prepared = prepare_lab().and_then(|()| emulated::unavailable()).and_then(|()| emulated::is_up());
    match prepared {
        Ok(false) => {
            let _down = Down;
            let tested = emulated::up(hosts, setup::build_tested_programs).and_then(|()| test());
            tested.unwrap_or_else(|error| panic!("{}", error.chain()));
        }
        Ok(true) => skip(LabError::Unsupported(
            "somebody's lab is up: take it down with `cargo xtask lab down`".into(),
        )),
        Err(error) => skip(error),
    }
}

fn prepare_lab() -> Result<()> {
    if let Some(why) = std::env::var_os(NO_LAB) {
        return Err(LabError::Unsupported(why.to_string_lossy().into_owned()));
    }
    setup::build_tested_programs()
}

/// Runs a test, unless this machine cannot.
fn run(
    prepare: impl FnOnce() -> Result<GuestFiles>,
    start: impl Fn() -> Result<Box<dyn Cluster>>,
    test: impl Fn(&dyn Cluster, &GuestPlace) -> Result<()>,
) {
    cleanup::on_interrupt();
    let tested = prepare().and_then(|guest| {
        attempt(start, |cluster| {
            let done = guest.install(cluster).and_then(|place| test(cluster, &place));
            // What a test meets once its cluster is up is no reason to skip it.
            done.map_err(|error| match error {
                LabError::Unsupported(why) => LabError::Broken(why),
                other => other,
            })
        })
    });
    tested.unwrap_or_else(skip);
}

/// The hosts' names, in order.
pub fn hosts(cluster: &dyn Cluster) -> [HostName; 2] {
    let hosts = cluster.hosts();
    [hosts[0].clone(), hosts[1].clone()]
}

/// Creates a VM, starts it on a host, and waits until its guest answers.
pub fn boot(
    cluster: &dyn Cluster,
    place: &GuestPlace,
    guest: &GuestOptions,
    host: &HostName,
) -> Result<GuestReport> {
    cluster.create(place, guest)?;
    cluster.start(&guest.name, host)?;
    load::await_guest(cluster, guest.address)
}

/// Starts the load on a guest.
pub fn load(cluster: &dyn Cluster, guest: &GuestOptions) -> Result<Load> {
    let image = cluster.datastore().join(guest.disk_path());
    Load::start(LoadOptions::new(cluster.client(), guest.address, image, cluster.setting()))
}

/// Migrates a VM, and fails unless it then runs at the destination.
pub fn migrate(cluster: &dyn Cluster, vm: &str, to: &HostName, more: &[&str]) -> Result<MigrationReport> {
    let task = cluster.migrate(vm, to, more)?;
    let report = succeeded(task)?;
    cluster.assert_runs_on(vm, to)?;
    Ok(report)
}

/// The same in the lab for the `number`th time. An emulated processor encrypts as slowly as it does all the rest together, so
/// that only the way there and back, the first two, are encrypted.
pub fn migrate_in_lab(
    cluster: &dyn Cluster,
    vm: &str,
    to: &HostName,
    number: usize,
) -> Result<MigrationReport> {
    let clear: &[&str] = if number <= 2 { &[] } else { &["--plain"] };
    migrate(cluster, vm, to, &[cluster.setting().migrate_options(), clear].concat())
}

/// The report of a task that succeeded.
pub fn succeeded(task: Task) -> Result<MigrationReport> {
    match (task.state, task.report) {
        (TaskState::Succeeded, Some(report)) => Ok(report),
        (state, _) => {
            let why = task.error.map_or(task.message, |error| error.message);
            Err(LabError::Broken(format!("the migration ended as {state:?}: {why}")))
        }
    }
}

/// Fails if anybody noticed anything since the mark.
pub fn assert_unnoticed(load: &Load, since: &Mark, what: &str) -> Result<Noticed> {
    let noticed = load.noticed(since)?;
    let failures = [
        ("requests failed", noticed.requests_failed),
        ("acknowledged writes lost", noticed.writes.lost),
        ("disk errors", noticed.disk_errors),
        ("memory errors", noticed.memory_errors),
        ("steps back of a clock", noticed.clock_steps_back),
    ];
    let failures: Vec<_> = failures.iter().filter(|(_, count)| *count > 0).collect();
    if failures.is_empty() {
        return Ok(noticed);
    }
    Err(LabError::Broken(format!("{what}: {failures:?}: {noticed:#?}")))
}

/// Fails unless the guest goes on: its heart beats, it acknowledges new writes, and every vCPU of a guest that counts
/// them gets timer ticks and interrupts from the others.
pub fn assert_alive(cluster: &dyn Cluster, guest: Ipv4Addr) -> Result<()> {
    let before = load::fetch(cluster.client(), guest)?;
    let deadline = std::time::Instant::now() + ALIVE_LIMIT;
    loop {
        let now = load::fetch(cluster.client(), guest)?;
        let interrupts =
            grown(&before.ticks, &now.ticks) && (now.vcpus == 1 || grown(&before.ipis, &now.ipis));
        if now.beats > before.beats && now.disk.acked > before.disk.acked && interrupts {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            return Err(LabError::Broken(format!("the guest stands still: {before:?}, then {now:?}")));
        }
        std::thread::sleep(godwit_lab::exec::POLL_COMMAND);
    }
}

fn grown(before: &[u64], now: &[u64]) -> bool {
    before.iter().zip(now).all(|(before, now)| now > before)
}

/// How long a guest may take until it has visibly gone on.
const ALIVE_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Fails if the condition does not hold.
pub fn ensure(holds: bool, promise: impl Into<String>) -> Result<()> {
    if holds { Ok(()) } else { Err(LabError::Broken(promise.into())) }
}

/// Three native hosts.
pub fn three_hosts() -> FabricOptions {
    let hosts = ["host-a", "host-b", "host-c"].map(|name| name.parse().expect("a name"));
    FabricOptions { hosts: hosts.into(), ..FabricOptions::default() }
}

/// A small guest that writes at this rate, 0 as fast as it can, with an address of its own.
pub fn small_guest(number: u8, rate: &str) -> GuestOptions {
    GuestOptions {
        memory: Bytes::mib(128),
        working_set: Bytes::mib(32),
        rate: rate.into(),
        address: Ipv4Addr::new(10, 77, 0, 20 + number),
        ..GuestOptions::named(&format!("web{number}"))
    }
}

/// The host that runs the VM.
pub fn owner(cluster: &dyn Cluster, vm: &str) -> Result<HostName> {
    let shown = cluster.vm(vm)?;
    shown.owner.ok_or_else(|| LabError::Broken(format!("{vm} has no owner")))
}
