//! A stand-in for `godwit-vmm`: the control protocol, real taps and no guest.
//!
//! The test binary runs itself as this process: see [`install`]. What it is to do is written in the guest's kernel
//! command line: `crash-at-start`, `stubborn` (ignores the power button).
//!
//! ```text
//!  --copy             in sync at once; with a cap for the rate, never
//!  reset              the process crashes
//!  migrate_out        asks "commit"; granted: hands over and ends; refused: runs on
//!  (TCP connection)   of an incoming one: asks "claim"; granted: runs
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use godwit_types::control::{
    CopyDisks, MigrationStatus, Notice, Question, Reply, Request, Role, Status, StorageOrder, VmmConfig,
    VmmState,
};
use godwit_types::migration::{MigrationOutcome, Phase};
use godwit_types::ownership::{Verdict, Witness};
use godwit_types::storage::{StoragePhase, StorageProgress, StorageStatus};
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, MigrationId};

/// Times that this process was asked how it is.
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

const CONFIG_VARIABLE: &str = "GODWIT_HOST_TEST_FAKE_VMM";
/// In its place: the process copies disks.
const COPY: &str = "copy";
pub(crate) const CRASH_WORDS: &str = "fake-vmm: the sky is falling";

/// Writes a program into `directory` that takes `--config FILE` and `--offer` as `godwit-vmm` does.
pub(crate) fn install(directory: &Path) -> PathBuf {
    let path = directory.join("fake-vmm");
    let test = std::env::current_exe().unwrap();
    let offer = directory.join("offer.json");
    std::fs::write(&offer, serde_json::to_vec(&super::world::offer()).unwrap()).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --offer ] && exec cat '{}'\n{CONFIG_VARIABLE}=\"${{2-{COPY}}}\" exec '{}' --exact fake_vmm::process --nocapture\n",
        offer.display(),
        test.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Not a test, but the process that the other tests start; on its own it has nothing to do.
#[test]
fn process() {
    match std::env::var_os(CONFIG_VARIABLE) {
        Some(config) if config == COPY => copy(),
        Some(config) => run(&PathBuf::from(config)),
        None => {}
    }
}

struct Vmm {
    config: VmmConfig,
    taps: Vec<File>,
    listening: Option<std::net::SocketAddr>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: VmmState,
    epoch: Epoch,
    open: Option<Question>,
    migration: Option<MigrationStatus>,
    storage: Option<StorageStatus>,
    subscribers: Vec<UnixStream>,
}

fn run(config: &Path) -> ! {
    let config: VmmConfig = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    if config.spec.boot.cmdline.contains("crash-at-start") {
        crash();
    }
    // SAFETY: the process was given these descriptors, each for itself.
    let take = |number| Ok::<_, ()>(unsafe { OwnedFd::from_raw_fd(number) });
    let given = config.descriptors.clone().unwrap().map(take).unwrap();
    let taps = given.taps.into_iter().map(File::from).collect();
    let listener = given.migration.map(TcpListener::from);
    let state = if listener.is_some() { VmmState::Incoming } else { VmmState::Running };
    let listening = listener.as_ref().map(|listener| listener.local_addr().unwrap());
    let control = godwit_provision::listen(given.control).unwrap();
    let epoch = config.epoch;
    let inner = Mutex::new(Inner {
        state,
        epoch,
        open: None,
        migration: None,
        storage: None,
        subscribers: Vec::new(),
    });
    let vmm = Arc::new(Vmm { config, taps, listening, inner });
    if let Some(listener) = listener {
        let vmm = Arc::clone(&vmm);
        std::thread::spawn(move || {
            listener.accept().unwrap();
            vmm.claim();
        });
    }
    for client in control.incoming() {
        let vmm = Arc::clone(&vmm);
        std::thread::spawn(move || vmm.serve(client.unwrap()));
    }
    unreachable!("a listener never ends")
}

/// Tells that it copies, and then, if it may do so at any rate, that it has.
fn copy() -> ! {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut line = String::new();
    let mut orders = BufReader::new(socket.try_clone().unwrap());
    orders.read_line(&mut line).unwrap();
    let order: CopyDisks = serde_json::from_str(&line).unwrap();
    let mut status = in_sync(order.migration);
    if order.bytes_per_s_max.is_some() {
        status.progress.phase = StoragePhase::Copying;
        send(&socket, &status);
        std::io::copy(&mut orders, &mut std::io::sink()).unwrap();
        std::process::exit(0);
    }
    send(&socket, &status);
    std::process::exit(0);
}

fn in_sync(migration: MigrationId) -> StorageStatus {
    let (phase, copied, remaining) = (StoragePhase::InSync, Bytes(1), Bytes(0));
    let progress = StorageProgress { phase, copied, remaining, bytes_per_s: 1, elapsed_ms: 1 };
    StorageStatus { migration, progress, ended: None }
}

fn crash() -> ! {
    eprintln!("{CRASH_WORDS}");
    std::process::exit(3)
}

impl Vmm {
    fn serve(&self, client: UnixStream) {
        for line in BufReader::new(client.try_clone().unwrap()).lines() {
            let Ok(line) = line else { return };
            let request: Request = serde_json::from_str(&line).unwrap();
            let last = request == Request::Quit;
            match request {
                Request::Subscribe => self.subscribe(&client),
                request => send(&client, &self.reply(request)),
            }
            if last {
                std::process::exit(0);
            }
        }
    }

    fn subscribe(&self, client: &UnixStream) {
        let mut inner = self.inner.lock().unwrap();
        send(client, &Reply::Done);
        send(client, &Notice::State { state: inner.state, epoch: inner.epoch });
        if let Some(question) = inner.open.clone() {
            send(client, &Notice::Question { question });
        }
        inner.subscribers.push(client.try_clone().unwrap());
    }

    fn reply(&self, request: Request) -> Reply {
        let mut inner = self.inner.lock().unwrap();
        match request {
            Request::Status => return Reply::Status(Box::new(self.status(&inner))),
            Request::Guest => return Reply::Guest(Box::new(super::world::guest())),
            Request::Survey { .. } => return Reply::Survey(Box::new(super::world::survey())),
            Request::Reset => crash(),
            Request::PowerButton if !self.config.spec.boot.cmdline.contains("stubborn") => {
                inner.enter(VmmState::Stopped);
                std::process::exit(0);
            }
            Request::MigrateOut { migration, budget, .. }
                if self.config.spec.boot.cmdline.contains("slow") =>
            {
                self.say(&format!("begins with {:?}", budget.bandwidth_bytes_per_s_max));
                inner.migration = Some(MigrationStatus { migration, progress: None, outcome: None });
            }
            Request::MigrateOut { migration, destination, .. } => {
                let (vm, epoch) = (self.config.vm, inner.epoch);
                inner.enter(VmmState::Paused);
                inner.migration = Some(MigrationStatus { migration, progress: None, outcome: None });
                inner.ask(Question::Commit { migration, vm, epoch, destination });
            }
            Request::SetBandwidth { bytes_per_s_max, .. } => {
                self.say(&format!("may send {bytes_per_s_max:?}"));
            }
            Request::CancelMigration { .. } => {
                let error = ApiError::new(ErrorCode::Conflict, "the commit has been asked for");
                return Reply::Error { error };
            }
            Request::Storage { migration, order } => return self.storage(&mut inner, migration, order),
            Request::Answer { migration, verdict } => self.answered(&mut inner, migration, verdict),
            Request::Subscribe | Request::PowerButton | Request::Quit => {}
            Request::Balloon { .. } | Request::Reconnect { .. } => {}
        }
        Reply::Done
    }

    /// A move is in sync at once.
    fn storage(&self, inner: &mut Inner, migration: MigrationId, order: StorageOrder) -> Reply {
        let refused = |code, why: &str| Reply::Error { error: ApiError::new(code, why) };
        if let StorageOrder::Begin { disks, .. } = &order {
            if self.config.spec.boot.cmdline.contains("immovable") {
                return refused(ErrorCode::Failed, "its disks do not move");
            }
            self.say(&format!("moves into {}", disks[0].backing.path.display()));
            inner.storage = Some(in_sync(migration));
        }
        let Some(status) = inner.storage.as_mut().filter(|status| status.migration == migration) else {
            return refused(ErrorCode::NotFound, "no such move");
        };
        let phase = &mut status.progress.phase;
        match order {
            StorageOrder::Begin { .. } | StorageOrder::Look => {}
            StorageOrder::Hold => *phase = StoragePhase::Held,
            StorageOrder::Switch if *phase < StoragePhase::Held => {
                return refused(ErrorCode::Conflict, "not held");
            }
            StorageOrder::Switch => *phase = StoragePhase::Switched,
            StorageOrder::Cancel if *phase == StoragePhase::Switched => {
                return refused(ErrorCode::Conflict, "moved already");
            }
            StorageOrder::Cancel => status.ended = Some(ApiError::new(ErrorCode::Cancelled, "cancelled")),
        }
        Reply::Storage(Box::new(status.clone()))
    }

    fn status(&self, inner: &Inner) -> Status {
        Status {
            vm: self.config.vm,
            epoch: inner.epoch,
            pid: std::process::id(),
            state: inner.state,
            listening: self.listening,
            migration: inner.migration.clone(),
            balloon: Bytes(0),
            // The guest asks for a hundred of them each time.
            disk_operations: 100 * OPERATIONS.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn claim(&self) {
        let Role::Incoming { migration, .. } = self.config.role else { unreachable!() };
        self.say(&format!("before the claim, taps open: {}", self.taps_open()));
        let mut inner = self.inner.lock().unwrap();
        let (vm, epoch) = (self.config.vm, inner.epoch);
        inner.enter(VmmState::Paused);
        inner.ask(Question::Claim { migration, vm, epoch, witness: Witness::None });
    }

    fn answered(&self, inner: &mut Inner, migration: MigrationId, verdict: Verdict) {
        match (inner.open.take(), verdict) {
            (Some(Question::Claim { .. }), Verdict::Granted { epoch }) => {
                self.say(&format!("claim granted, taps open: {}", self.taps_open()));
                inner.epoch = epoch;
                inner.enter(VmmState::Running);
                inner.tell(&Notice::Arrived { migration });
            }
            (Some(Question::Commit { .. }), Verdict::Granted { .. }) => {
                inner.enter(VmmState::HandedOver);
                let error = ApiError::new(ErrorCode::Unreachable, "nobody confirmed");
                inner.tell(&Notice::MigrationEnded {
                    migration,
                    outcome: MigrationOutcome::HandedOver { error },
                });
            }
            (Some(Question::Commit { .. }), Verdict::Refused { reason }) => {
                inner.enter(VmmState::Running);
                let error = ApiError::new(ErrorCode::Refused, reason);
                let outcome = MigrationOutcome::Failed { phase: Phase::Commit, error };
                inner.tell(&Notice::MigrationEnded { migration, outcome });
            }
            (Some(Question::Claim { .. }), Verdict::Refused { reason }) => {
                let error = ApiError::new(ErrorCode::Refused, reason);
                inner.tell(&Notice::IncomingFailed { migration, error });
                std::process::exit(1);
            }
            (Some(question), Verdict::Undecided) => inner.ask(question),
            (None, verdict) => panic!("an answer without a question: {verdict:?}"),
        }
    }

    /// The kernel takes a frame only if the tap is up.
    fn taps_open(&self) -> bool {
        let frame = [0; 12 + 60];
        self.taps.iter().all(|mut tap| tap.write_all(&frame).is_ok())
    }

    /// Writes a line for the test to read.
    fn say(&self, line: &str) {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.config.console_log).unwrap();
        writeln!(log, "{line}").unwrap();
    }
}

impl Inner {
    fn enter(&mut self, state: VmmState) {
        self.state = state;
        let epoch = self.epoch;
        self.tell(&Notice::State { state, epoch });
    }

    fn ask(&mut self, question: Question) {
        self.open = Some(question.clone());
        self.tell(&Notice::Question { question });
    }

    fn tell(&mut self, notice: &Notice) {
        self.subscribers.iter().for_each(|client| send(client, notice));
    }
}

/// A client that has left misses it.
fn send<T: serde::Serialize>(mut client: &UnixStream, document: &T) {
    let mut line = serde_json::to_string(document).unwrap();
    line.push('\n');
    let _ = client.write_all(line.as_bytes());
}
