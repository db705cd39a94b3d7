//! The demo: a VM under load moves to another host and back, and the client notices as little as possible.

use std::time::{Duration, Instant};

use godwit_types::task::{Task, TaskState};
use godwit_types::{Bytes, HostName};

mod document;
mod setting;
mod table;

pub use document::{DemoReport, Move};
pub use setting::{Choice, choose};

use crate::cluster::attempt::attempt;
use crate::cluster::{Cluster, GuestOptions, GuestPlace, Setting, vms};
use crate::fabric::{Fabric, FabricOptions};
use crate::guest::{Guest, GuestFiles};
use crate::load::{self, Load, LoadOptions, Noticed};
use crate::setup::{packages, say};
use crate::{LabError, Result};

/// The VM of the demo.
const VM: &str = "web1";
/// How often a migration under way is looked at, and how often it is talked about.
const LOOK: Duration = Duration::from_millis(250);
const TALK: Duration = Duration::from_secs(2);
/// The load runs this long between two moves.
const SETTLE: Duration = Duration::from_millis(500);

/// What the demo is to show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    pub guest: Guest,
    /// `None`: what this machine can do.
    pub setting: Option<Setting>,
    /// Migrations, there and back in turn.
    pub moves: u32,
    pub vcpus: u8,
    /// Builds the programs that it shows.
    pub build: fn() -> Result<()>,
}

/// Runs the demo, talking on standard error. Failures that the client noticed are in the report, not an error.
pub fn run(options: &DemoOptions) -> Result<DemoReport> {
    let choice = choose(options.guest, options.setting)?;
    say(format_args!("{}: {}", choice.setting_in_words(), choice.why));
    packages::ensure(&packages::NATIVE)?;
    (options.build)()?;
    let files = files(options.guest)?;
    let guest = guest(options, choice.setting);
    let start = || start_cluster(choice.setting);
    let moves = attempt(start, |cluster| moves(cluster, &files, &guest, options.moves))?;
    Ok(DemoReport::new(choice, options, &guest, moves))
}

fn moves(cluster: &dyn Cluster, files: &GuestFiles, guest: &GuestOptions, count: u32) -> Result<Vec<Move>> {
    let place = files.install(cluster)?;
    let [here, there] = [&cluster.hosts()[0], &cluster.hosts()[1]];
    boot(cluster, &place, guest, here)?;
    let load = start_load(cluster, guest)?;
    if let [option, value] = cluster.setting().migrate_options() {
        say(format_args!(
            "migrating with {option} {value}: emulated hosts need that long for the handoff alone"
        ));
    }
    std::thread::sleep(SETTLE);
    let mut moves = Vec::new();
    for number in 1..=count {
        let (from, to) = if number % 2 == 1 { (here, there) } else { (there, here) };
        say(format_args!("move {number} of {count}: {VM} from {from} to {to}"));
        moves.push(one_move(cluster, &load, from, to)?);
        std::thread::sleep(SETTLE);
    }
    load.stop();
    cluster.stop(VM)?;
    Ok(moves)
}

fn files(guest: Guest) -> Result<GuestFiles> {
    match guest {
        Guest::Reference => GuestFiles::reference(),
        Guest::Linux => crate::emulated::linux_guest(),
    }
}

fn start_cluster(setting: Setting) -> Result<Box<dyn Cluster>> {
    match setting {
        Setting::Kvm => {
            say("starting a manager and two hosts in network namespaces of this machine");
            Ok(Box::new(Fabric::start(FabricOptions::default())?))
        }
        Setting::Lab => {
            say("starting a manager and two emulated hosts; they boot for some 10 to 30 s");
            crate::emulated::start_cluster(2)
        }
    }
}

/// What the VM does: as much as the setting can bear (an emulated host touches memory slowly).
fn guest(options: &DemoOptions, setting: Setting) -> GuestOptions {
    let (memory, working_set, rate) = match (options.guest, setting) {
        (Guest::Reference, _) => (Bytes::mib(256), Bytes::mib(128), "5000"),
        (Guest::Linux, Setting::Kvm) => (Bytes::mib(512), Bytes::mib(128), "5000"),
        (Guest::Linux, Setting::Lab) => (Bytes::mib(256), Bytes::mib(64), "200"),
    };
    GuestOptions { vcpus: options.vcpus, memory, working_set, rate: rate.into(), ..GuestOptions::named(VM) }
}

fn boot(cluster: &dyn Cluster, place: &GuestPlace, guest: &GuestOptions, host: &HostName) -> Result<()> {
    let begun = Instant::now();
    say(format_args!("booting {VM} on {host}: {} vCPU, {} of memory", guest.vcpus, guest.memory));
    cluster.create(place, guest)?;
    cluster.start(VM, host)?;
    let report = load::await_guest(cluster, guest.address)?;
    let (kind, seconds) = (report.guest, begun.elapsed().as_secs_f64());
    say(format_args!("{VM} ({kind}) answers at {} after {seconds:.1} s; starting the load", guest.address));
    Ok(())
}

fn start_load(cluster: &dyn Cluster, guest: &GuestOptions) -> Result<Load> {
    let image = cluster.datastore().join(guest.disk_path());
    Load::start(LoadOptions::new(cluster.client(), guest.address, image, cluster.setting()))
}

/// One migration, and what the client noticed of it.
fn one_move(cluster: &dyn Cluster, load: &Load, from: &HostName, to: &HostName) -> Result<Move> {
    let mark = load.mark()?;
    let task = cluster.migrate_detached(VM, to, cluster.setting().migrate_options())?;
    let task = follow(cluster, task)?;
    let report = match (task.state, task.report) {
        (TaskState::Succeeded, Some(report)) => report,
        (state, _) => {
            let why = task.error.map_or(task.message, |error| error.message);
            return Err(LabError::Broken(format!("the move to {to} ended as {state:?}: {why}")));
        }
    };
    let noticed = load.noticed(&mark)?;
    cluster.assert_runs_on(VM, to)?;
    summarise(&report.blackout, &noticed);
    Ok(Move::new(from, to, report, &noticed))
}

fn follow(cluster: &dyn Cluster, mut task: Task) -> Result<Task> {
    let begun = Instant::now();
    let mut talked = begun;
    while !task.state.is_final() {
        if begun.elapsed() > vms::MIGRATION_LIMIT {
            let limit = vms::MIGRATION_LIMIT.as_secs();
            return Err(LabError::Broken(format!("the migration has not ended after {limit} s")));
        }
        std::thread::sleep(LOOK);
        task = cluster.task(&task)?;
        if let (Some(progress), true) = (&task.progress, talked.elapsed() >= TALK) {
            talked = Instant::now();
            say(format_args!(
                "  round {}, {} left, {}/s",
                progress.round,
                progress.remaining,
                Bytes(progress.goodput_bytes_per_s)
            ));
        }
    }
    Ok(task)
}

fn summarise(blackout: &godwit_types::migration::Blackout, noticed: &Noticed) {
    say(format_args!(
        "  moved: blackout {:.1} ms, network silent for {} ms, {} requests answered, {} failed, {} writes lost, {} memory errors",
        blackout.total_ms,
        noticed.network_silence.as_millis(),
        noticed.requests_answered,
        noticed.requests_failed,
        noticed.writes.lost,
        noticed.memory_errors
    ));
    for error in
        [&noticed.first_failure, &noticed.writes.first, &noticed.first_guest_error].into_iter().flatten()
    {
        say(format_args!("  FAILED: {error}"));
    }
}
