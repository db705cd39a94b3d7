//! The reference guest, which notices what a migration does wrong to it, moves under load.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use godwit_types::Bytes;
use godwit_types::control::{DiskBacking, NicBacking, Notice, Request, Role, VmmConfig, VmmState};
use godwit_types::migration::{Budget, Comparison, MigrationOutcome, MigrationReport, Phase};
use godwit_types::vm::{DiskFormat, DiskSpec, NicSpec};
use serde_json::Value;

use crate::support::{
    PATIENCE, Route, Vmm, ended, grant, grant_everything, kvm_is_there, migration_id, spec,
};

const GUEST: &str = "10.77.0.10:80";
const MAC: &str = "52:54:00:00:77:10";
const MOVES: u64 = 6;

#[test]
fn the_reference_guest_moves_under_load_and_finds_nothing_wrong() {
    for vcpus in [1, 2] {
        let Some(fixture) = Fixture::new() else { return };
        let mut here = fixture.boot(vcpus, "godwit.ws=24MiB godwit.rate=2000 godwit.content=random");
        let mut before = fixture.report();
        for hop in 1..=MOVES {
            let migration = migration_id(hop);
            let mut there = fixture.destination(&here, hop);
            here.migrate_to(&there, migration, Budget { verify: true, ..Budget::default() });
            let outcome = grant_everything(&mut here, &mut there);
            let MigrationOutcome::Completed { report } = outcome else {
                panic!("{outcome:?}; {}", here.errors())
            };
            eprintln!("{vcpus} vCPUs, move {hop}: {report:?}");
            expect_verified(&report);
            assert!(here.wait().success(), "{}", here.errors());
            here = there;
            before = fixture.progress(&before);
            assert_eq!(before["disruptions"], hop, "the guest is told of each move: {before:#}");
        }
    }
}

/// The guest writes faster than its memory may leave.
const WILD: &str = "godwit.ws=24MiB godwit.rate=20000 godwit.content=random";

pub(crate) fn expect_verified(report: &MigrationReport) {
    let verified = report.verified.as_ref().expect("memory was compared");
    assert_eq!(verified.memory, Comparison::Same, "{verified:?}");
}

fn post_copy() -> Budget {
    Budget {
        blackout_ms_max: 5,
        bandwidth_bytes_per_s_max: Some(32 << 20),
        post_copy: true,
        verify: true,
        ..Budget::default()
    }
}

#[test]
fn a_guest_that_never_rests_moves_by_post_copy_and_finds_nothing_wrong() {
    for vcpus in [1, 2] {
        let Some(fixture) = Fixture::new() else { return };
        let mut here = fixture.boot(vcpus, WILD);
        let mut before = fixture.report();
        for hop in 1..=2 {
            let migration = migration_id(hop);
            let mut there = fixture.destination(&here, hop);
            here.migrate_to(&there, migration, post_copy());
            let outcome = grant_everything(&mut here, &mut there);
            let MigrationOutcome::Completed { report } = outcome else {
                panic!("{outcome:?}; {}", here.errors())
            };
            eprintln!("{vcpus} vCPUs, move {hop}: {report:?}");
            expect_verified(&report);
            let rest = report.post_copy.expect("memory followed");
            assert!(rest.pages > 0 && rest.faults > 0, "{rest:?}");
            assert!(here.wait().success(), "{}", here.errors());
            here = there;
            before = fixture.progress(&before);
            assert_eq!(before["disruptions"], hop, "the guest is told of each move: {before:#}");
        }
    }
}

#[test]
fn a_network_that_fails_during_post_copy_makes_the_guest_wait_and_loses_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let mut here = fixture.boot(2, WILD);
    let before = fixture.report();
    let mut there = fixture.destination(&here, 1);
    let mut connections = here.migrate_to(&there, migration_id(1), post_copy());
    assert_eq!(grant(&mut here, &mut there), None);
    for network in [false, true, false, true] {
        if network {
            connections = here.reconnect(true);
        } else {
            here.notices.until(|notice| match notice {
                Notice::Progress { progress, .. } if progress.phase == Phase::PostCopy => Some(()),
                _ => None,
            });
            // The VMM may have given them up itself.
            connections.iter().for_each(|connection| drop(connection.shutdown(Shutdown::Both)));
            here.reconnect(false);
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    let outcome = ended(&mut here, &mut there);
    let MigrationOutcome::Completed { report } = outcome else { panic!("{outcome:?}; {}", here.errors()) };
    eprintln!("{report:?}");
    expect_verified(&report);
    let rest = report.post_copy.expect("memory followed");
    assert!(rest.reconnects >= 2 && rest.faults > 0, "{rest:?}");
    assert!(here.wait().success(), "{}", here.errors());
    fixture.progress(&before);
}

#[test]
fn a_guest_that_is_ended_during_post_copy_lets_its_source_go() {
    let Some(fixture) = Fixture::new() else { return };
    let mut here = fixture.boot(1, WILD);
    fixture.report();
    let mut there = fixture.destination(&here, 1);
    let connections = here.migrate_to(&there, migration_id(1), post_copy());
    assert_eq!(grant(&mut here, &mut there), None);
    there.notices.until(|notice| match notice {
        Notice::State { state: VmmState::Running, .. } => Some(()),
        _ => None,
    });
    there.must(&Request::Quit);
    assert!(there.wait().success(), "{}", there.errors());
    let outcome = here.notices.until(|notice| match notice {
        Notice::MigrationEnded { outcome, .. } => Some(outcome.clone()),
        _ => None,
    });
    assert!(matches!(outcome, MigrationOutcome::Completed { .. }), "{outcome:?}");
    assert!(here.wait().success(), "{}", here.errors());
    drop(connections);
}

/// A network of its own for this thread and the processes that it starts, and a folder for their files.
pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    guest: PathBuf,
    format: DiskFormat,
}

impl Fixture {
    pub(crate) fn new() -> Option<Self> {
        Self::with_disk(DiskFormat::Raw, Bytes::mib(4))
    }

    pub(crate) fn with_disk(format: DiskFormat, size: Bytes) -> Option<Self> {
        let guest = reference_guest()?;
        if !kvm_is_there() || !private_network() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let fixture = Self { folder, guest, format };
        godwit_provision::create_image(&fixture.disk(), format, size).unwrap();
        Some(fixture)
    }

    /// The first disk's image.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    pub(crate) fn boot(&self, vcpus: u8, load: &str) -> Vmm {
        Vmm::start(self.config(vcpus, load))
    }

    /// Of the first process, with a disk and a network card.
    pub(crate) fn config(&self, vcpus: u8, load: &str) -> VmmConfig {
        let cmdline = format!("godwit.ip=10.77.0.10/24 {load}");
        let mut spec = spec(vcpus, Bytes::mib(64), &cmdline);
        spec.disks =
            vec![DiskSpec { image: "shared/disk".parse().unwrap(), format: self.format, read_only: false }];
        spec.nics = vec![NicSpec { network: "lan".parse().unwrap(), mac: Some(MAC.parse().unwrap()) }];
        let config = Vmm::config(self.folder.path(), 0, &self.guest, spec, 1, Role::Boot);
        self.equip(config, 0)
    }

    pub(crate) fn destination(&self, here: &Vmm, n: u64) -> Vmm {
        self.destination_with(here, n, None)
    }

    /// The same, with what its host has kept of the VM.
    pub(crate) fn destination_with(&self, here: &Vmm, n: u64, kept: Option<OwnedFd>) -> Vmm {
        self.start_destination(here, n, Route::default(), kept)
    }

    /// The same by another route.
    pub(crate) fn destination_by(&self, here: &Vmm, n: u64, route: Route) -> Vmm {
        self.start_destination(here, n, route, None)
    }

    /// The same, on the disks that the source has now.
    pub(crate) fn destination_on(&self, here: &Vmm, n: u64) -> Vmm {
        let mut config = self.destination_config(here, n, Route::default());
        config.disks.clone_from(&here.config.disks);
        Vmm::start(config)
    }

    fn start_destination(&self, here: &Vmm, n: u64, route: Route, kept: Option<OwnedFd>) -> Vmm {
        Vmm::start_with(self.destination_config(here, n, route), kept)
    }

    fn destination_config(&self, here: &Vmm, n: u64, route: Route) -> VmmConfig {
        let listen = "127.0.0.1:0".parse().unwrap();
        let role =
            Role::Incoming { migration: migration_id(n), listen, key: route.key(), disks: BTreeSet::new() };
        let epoch = here.status().epoch.0 + 1;
        let spec = here.config.spec.clone();
        let config = Vmm::config(self.folder.path(), n as usize, &self.guest, spec, epoch, role);
        self.equip(config, n)
    }

    /// Waits until a process that does not run the guest any more has ended, and takes its tap away.
    pub(crate) fn leave(&self, mut vmm: Vmm) {
        vmm.wait();
        vmm.config.nics.iter().for_each(|nic| assert!(ip(&format!("link delete {}", nic.tap))));
    }

    /// A destination that reaches no disk of the source: it has a new, empty one, which the test is told of.
    pub(crate) fn destination_with_own_disk(&self, here: &Vmm, n: u64, size: Bytes) -> (Vmm, PathBuf) {
        let role = Role::Incoming {
            migration: migration_id(n),
            listen: "127.0.0.1:0".parse().unwrap(),
            key: Route::default().key(),
            disks: BTreeSet::from([0]),
        };
        let epoch = here.status().epoch.0 + 1;
        let mut spec = here.config.spec.clone();
        spec.disks[0].image = format!("local/disk{n}").parse().unwrap();
        let format = spec.disks[0].format;
        let config = Vmm::config(self.folder.path(), n as usize, &self.guest, spec, epoch, role);
        let mut config = self.equip(config, n);
        let path = self.folder.path().join(format!("disk{n}"));
        godwit_provision::create_image(&path, format, size).unwrap();
        let lock = self.folder.path().join(format!("disk{n}.lock"));
        config.disks = vec![DiskBacking { path: path.clone(), lock, format, read_only: false }];
        (Vmm::start(config), path)
    }

    fn equip(&self, mut config: VmmConfig, n: u64) -> VmmConfig {
        let (path, lock) = (self.disk(), self.folder.path().join("disk.lock"));
        config.disks = vec![DiskBacking { path, lock, format: self.format, read_only: false }];
        let tap = format!("tap{n}");
        assert!(ip(&format!("tuntap add {tap} mode tap vnet_hdr")));
        assert!(ip(&format!("link set {tap} master lan up")));
        config.nics = vec![NicBacking { tap, mac: MAC.parse().unwrap() }];
        config
    }

    /// The guest's report, which must not name an error.
    pub(crate) fn report(&self) -> Value {
        let report = loop {
            // The guest takes a moment to come up; the caller's patience is that of the connection.
            if let Ok(report) = get("/report") {
                break report;
            }
        };
        for part in ["memory", "disk"] {
            assert_eq!(report[part]["errors"], 0, "{report:#}");
        }
        report
    }

    /// Waits until the guest has written its whole working set once.
    pub(crate) fn await_filled(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.report()["memory"]["passes"].as_u64().unwrap() == 0 {
            assert!(std::time::Instant::now() < deadline, "the guest does not fill its memory");
        }
    }

    /// Waits until all of the guest's work has gone on since `before`.
    pub(crate) fn progress(&self, before: &Value) -> Value {
        let count = |report: &Value, path: &str| report.pointer(path).and_then(Value::as_u64).unwrap();
        let paths = ["/beats", "/memory/pages_checked", "/disk/acked", "/disk/read_back"];
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let now = self.report();
            let ticks = |report: &Value| {
                report["ticks"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>()
            };
            let ticked = ticks(before).iter().zip(ticks(&now)).all(|(before, now)| now > *before);
            if ticked && paths.iter().all(|path| count(&now, path) > count(before, path)) {
                return now;
            }
            assert!(std::time::Instant::now() < deadline, "the guest stands still: {before:#} {now:#}");
        }
    }
}

/// Gives this thread a network of its own with a bridge called `lan`; says loudly when it cannot.
fn private_network() -> bool {
    // SAFETY: affects this thread and its future children only.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let made = unshared
        && [
            "link set lo up",
            "link add lan type bridge",
            "address add 10.77.0.1/24 dev lan",
            "link set lan up",
        ]
        .iter()
        .all(|arguments| ip(arguments));
    if !made {
        eprintln!(
            "SKIPPED: needs a network namespace, bridges and the command ip: run as root, install iproute2"
        );
    }
    made
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).status().is_ok_and(|status| status.success())
}

fn get(path: &str) -> std::io::Result<Value> {
    let address: SocketAddr = GUEST.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(Into::into)
}

/// The reference guest's image, if it was built; says loudly when it was not.
pub(crate) fn reference_guest() -> Option<PathBuf> {
    let built =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests/release/godwit-reference-guest");
    let image = std::env::var_os("GODWIT_REFERENCE_GUEST").map_or(built, PathBuf::from);
    if !image.exists() {
        eprintln!("SKIPPED: needs the reference guest at {}: run 'cargo xtask test'", image.display());
        return None;
    }
    Some(image)
}
