//! `godwit-vmm` processes, driven through their control sockets as an agent would.

pub(crate) mod guest;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_types::control::{Descriptors, Notice, Question, Reply, Request, Role, Status, VmmConfig};
use godwit_types::migration::{Budget, MigrationOutcome};
use godwit_types::ownership::Verdict;
use godwit_types::vm::{BootSpec, CpuProfile, VmSpec};
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, MigrationId, MigrationKey};

/// How long anything may take before the test gives up. Never a measure of speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The user of process 0, if the tests are root; nobody else's.
const FIRST_USER: u32 = 1_900_100_000;

/// The key of every migration.
pub(crate) const KEY: MigrationKey = MigrationKey::from_bytes([0x5a; 32]);

/// A running `godwit-vmm`, killed when dropped.
pub(crate) struct Vmm {
    child: Child,
    pub(crate) config: VmmConfig,
    pub(crate) notices: Notices,
    errors: PathBuf,
    folder: PathBuf,
}

/// A subscription.
pub(crate) struct Notices {
    lines: BufReader<UnixStream>,
}

/// The name of the host that stands for process `n`.
pub(crate) fn host(n: usize) -> String {
    format!("host-{n}")
}

/// A specification without disks and network cards.
pub(crate) fn spec(vcpus: u8, memory: Bytes, cmdline: &str) -> VmSpec {
    let kernel = "shared/kernel".parse().unwrap();
    VmSpec {
        vcpus,
        memory,
        boot: BootSpec { kernel, initrd: None, cmdline: cmdline.into() },
        disks: vec![],
        nics: vec![],
        machine: Default::default(),
        cpu: CpuProfile::Host,
    }
}

impl Vmm {
    /// The configuration of process `n`, whose files lie in `folder`.
    pub(crate) fn config(
        folder: &Path,
        n: usize,
        kernel: &Path,
        spec: VmSpec,
        epoch: u64,
        role: Role,
    ) -> VmmConfig {
        let file = |name: &str| folder.join(format!("{name}-{n}"));
        VmmConfig {
            vm: "6f2c0000-0000-0000-0000-000000000001".parse().unwrap(),
            name: "web1".parse().unwrap(),
            host: host(n).parse().unwrap(),
            epoch: Epoch(epoch),
            spec,
            control: file("control"),
            console_socket: file("console"),
            console_log: file("log"),
            kernel: kernel.to_owned(),
            initrd: None,
            disks: vec![],
            nics: vec![],
            role,
            // SAFETY: the call always succeeds.
            user: (unsafe { libc::geteuid() } == 0).then_some(FIRST_USER + n as u32),
            cgroup: None,
            descriptors: None,
            write_log: None,
        }
    }

    /// Starts the process without waiting for its socket, as an agent does that is this user.
    pub(crate) fn spawn(config: &VmmConfig) -> (Child, PathBuf) {
        Self::spawn_with(config, None)
    }

    /// The same, with a memory file for what is kept of the VM.
    fn spawn_with(config: &VmmConfig, kept: Option<OwnedFd>) -> (Child, PathBuf) {
        let at = |extension: &str| config.control.with_extension(extension);
        let errors = std::fs::File::create(at("stderr")).unwrap();
        // Another place serves runs of the test binary on a machine where it was not built.
        let vmm = std::env::var_os("GODWIT_VMM").unwrap_or_else(|| env!("CARGO_BIN_EXE_godwit-vmm").into());
        let mut command = Command::new(vmm);
        let given = Descriptors { kept, ..godwit_provision::open(config).unwrap() };
        let descriptors = Some(godwit_provision::hand_to(&mut command, given));
        let config = VmmConfig { descriptors, ..config.clone() };
        std::fs::write(at("json"), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        let child =
            command.arg("--config").arg(at("json")).stdin(Stdio::null()).stderr(errors).spawn().unwrap();
        (child, at("stderr"))
    }

    /// Starts the process and subscribes to it.
    pub(crate) fn start(config: VmmConfig) -> Self {
        Self::start_with(config, None)
    }

    /// The same, with a memory file for what is kept of the VM.
    pub(crate) fn start_with(config: VmmConfig, kept: Option<OwnedFd>) -> Self {
        let (mut child, errors) = Self::spawn_with(&config, kept);
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&config.control) {
                break stream;
            }
            let ended = child.try_wait().unwrap();
            let text = std::fs::read_to_string(&errors).unwrap();
            assert!(ended.is_none(), "godwit-vmm ended at once: {text}");
            assert!(Instant::now() < deadline, "godwit-vmm does not serve its socket: {text}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let folder = config.control.parent().unwrap().to_owned();
        let notices = Notices::subscribe(stream).unwrap_or_else(|error| {
            panic!("{error}; godwit-vmm wrote: {}", std::fs::read_to_string(&errors).unwrap())
        });
        Self { child, config, notices, errors, folder }
    }

    /// Sends one request on a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.ask_with(request, &[])
    }

    /// Sends one request, and waits for its answer on a thread of its own.
    pub(crate) fn ask_beside(&self, request: Request) -> JoinHandle<Reply> {
        let stream = UnixStream::connect(&self.config.control).unwrap();
        std::thread::spawn(move || exchange(stream, &request, &[]))
    }

    /// The same, with descriptors.
    pub(crate) fn ask_with(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Reply {
        exchange(UnixStream::connect(&self.config.control).unwrap(), request, descriptors)
    }

    /// Sends a request that must succeed.
    pub(crate) fn must(&self, request: &Request) {
        assert_eq!(self.ask(request), Reply::Done, "{request:?}; {}", self.errors());
    }

    pub(crate) fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Connects to the serial console.
    pub(crate) fn console(&self) -> Console {
        let stream = UnixStream::connect(&self.config.console_socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Console { stream }
    }

    /// What the guest has printed so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.config.console_log).unwrap()).into_owned()
    }

    /// Waits until the guest has printed a text this many times.
    pub(crate) fn wait_log(&self, text: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.log().matches(text).count() < times {
            assert!(
                Instant::now() < deadline,
                "no {times} times {text:?} in {:?}; {}",
                self.log(),
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the process has written to standard error.
    pub(crate) fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts process `n` of the same VM as the destination of a migration.
    pub(crate) fn destination(&self, n: usize, migration: MigrationId) -> Self {
        let role = Role::Incoming {
            migration,
            listen: "127.0.0.1:0".parse().unwrap(),
            key: Some(KEY),
            disks: Default::default(),
        };
        let epoch = self.status().epoch.0 + 1;
        let mut config =
            Self::config(&self.folder, n, &self.config.kernel, self.config.spec.clone(), epoch, role);
        config.disks = self.config.disks.clone();
        config.initrd = self.config.initrd.clone();
        Self::start(config)
    }

    /// Asks for a migration away to `destination`, over the connections that it returns.
    pub(crate) fn migrate_to(
        &self,
        destination: &Self,
        migration: MigrationId,
        budget: Budget,
    ) -> Vec<TcpStream> {
        self.migrate(destination, migration, budget, Route::default(), None)
    }

    /// The same by another route.
    pub(crate) fn migrate_by(
        &self,
        destination: &Self,
        migration: MigrationId,
        budget: Budget,
        route: Route,
    ) -> Vec<TcpStream> {
        self.migrate(destination, migration, budget, route, None)
    }

    /// The same; memory is kept in a file once the VM has left.
    pub(crate) fn migrate_keeping(
        &self,
        destination: &Self,
        migration: MigrationId,
        budget: Budget,
        kept: Option<OwnedFd>,
    ) -> Vec<TcpStream> {
        self.migrate(destination, migration, budget, Route::default(), kept)
    }

    /// The same, which may be refused.
    pub(crate) fn try_migrate(&self, destination: &Self, migration: MigrationId) -> Result<(), ApiError> {
        match self.request_migration(destination, migration, Budget::default(), Route::default(), None).0 {
            Reply::Error { error } => Err(error),
            reply => {
                assert_eq!(reply, Reply::Done);
                Ok(())
            }
        }
    }

    fn migrate(
        &self,
        destination: &Self,
        migration: MigrationId,
        budget: Budget,
        route: Route,
        kept: Option<OwnedFd>,
    ) -> Vec<TcpStream> {
        let (reply, connections) = self.request_migration(destination, migration, budget, route, kept);
        assert_eq!(reply, Reply::Done, "{}", self.errors());
        connections
    }

    fn request_migration(
        &self,
        destination: &Self,
        migration: MigrationId,
        budget: Budget,
        route: Route,
        kept: Option<OwnedFd>,
    ) -> (Reply, Vec<TcpStream>) {
        let address: SocketAddr = destination.status().listening.expect("an incoming VMM listens");
        let disks = match &destination.config.role {
            Role::Incoming { disks, .. } => disks.clone(),
            Role::Boot => BTreeSet::new(),
        };
        let destination = destination.config.host.clone();
        let connections = connect(address, route.streams);
        let (key, keep) = (route.key(), kept.is_some());
        let request = Request::MigrateOut { migration, destination, address, key, keep, disks, budget };
        let given: Vec<_> = connections.iter().map(AsFd::as_fd).chain(kept.iter().map(AsFd::as_fd)).collect();
        (self.ask_with(&request, &given), connections)
    }

    /// Waits until it wishes for new connections, and answers, for which there is a network or not.
    pub(crate) fn reconnect(&mut self, network: bool) -> Vec<TcpStream> {
        let (migration, address) = self.notices.until(|notice| match notice {
            Notice::Disconnected { migration, address, .. } => Some((*migration, *address)),
            _ => None,
        });
        let connections = connect(address, 1);
        let error = (!network).then(|| ApiError::new(ErrorCode::Unreachable, "no route"));
        let all: Vec<_> = connections.iter().map(AsFd::as_fd).collect();
        let given = if network { &all[..] } else { &[] };
        assert_eq!(self.ask_with(&Request::Reconnect { migration, error }, given), Reply::Done);
        connections
    }
}

/// How the two sides are connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// For pages.
    pub(crate) streams: usize,
    /// Not encrypted.
    pub(crate) plain: bool,
}

impl Route {
    pub(crate) fn key(self) -> Option<MigrationKey> {
        (!self.plain).then_some(KEY)
    }
}

impl Default for Route {
    fn default() -> Self {
        Self { streams: 1, plain: false }
    }
}

/// As an agent does: for control, then for each page stream.
fn connect(address: SocketAddr, streams: usize) -> Vec<TcpStream> {
    (0..=streams).map(|_| TcpStream::connect(address).unwrap()).collect()
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} wrote: {}", self.config.host, self.errors());
        }
    }
}

/// Waits for a process to end by itself.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "godwit-vmm does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Notices {
    fn subscribe(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        send(&stream, &Request::Subscribe, &[]);
        let mut lines = BufReader::new(stream);
        let mut reply = String::new();
        lines.read_line(&mut reply)?;
        assert_eq!(serde_json::from_str::<Reply>(&reply)?, Reply::Done);
        Ok(Self { lines })
    }

    /// The next notice; `None` once the process has ended.
    pub(crate) fn next(&mut self) -> Option<Notice> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) => panic!("no notice: {error}"),
        }
    }

    /// Reads notices until one is wanted; ends with the process.
    pub(crate) fn until<T>(&mut self, mut wanted: impl FnMut(&Notice) -> Option<T>) -> T {
        let mut seen = Vec::new();
        while let Some(notice) = self.next() {
            if let Some(found) = wanted(&notice) {
                return found;
            }
            seen.push(notice);
        }
        panic!("godwit-vmm has ended; its last notices: {seen:?}");
    }
}

fn exchange(stream: UnixStream, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Reply {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    send(&stream, request, descriptors);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn send(stream: &UnixStream, request: &Request, descriptors: &[BorrowedFd<'_>]) {
    let mut line = serde_json::to_string(request).unwrap();
    line.push('\n');
    let sent = godwit_provision::send(stream, line.as_bytes(), descriptors).unwrap();
    assert_eq!(sent, line.len(), "a short line fits into the socket's buffer");
}

/// A client of the serial console.
pub(crate) struct Console {
    stream: UnixStream,
}

impl Console {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until the guest has printed this.
    pub(crate) fn expect(&mut self, text: &[u8]) {
        let mut seen = Vec::new();
        while !seen.ends_with(text) {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!(
                    "no {:?} but {:?}: {error}",
                    String::from_utf8_lossy(text),
                    String::from_utf8_lossy(&seen)
                )
            });
            seen.push(byte[0]);
        }
    }
}

/// A migration's id that no other has.
pub(crate) fn migration_id(n: u64) -> MigrationId {
    format!("6f2c0000-0000-0000-0001-{n:012x}").parse().unwrap()
}

/// Plays both agents and the manager, who grants everything: answers the questions of both sides until the migration
/// has ended on both.
pub(crate) fn grant_everything(source: &mut Vmm, destination: &mut Vmm) -> MigrationOutcome {
    match grant(source, destination) {
        Some(outcome) => outcome,
        None => ended(source, destination),
    }
}

/// Answers the questions of both sides; how the migration has ended if it did so before the commit.
pub(crate) fn grant(source: &mut Vmm, destination: &mut Vmm) -> Option<MigrationOutcome> {
    let question = source.notices.until(|notice| match notice {
        Notice::Question { question } => Some(Ok(question.clone())),
        Notice::MigrationEnded { outcome, .. } => Some(Err(outcome.clone())),
        _ => None,
    });
    let question = match question {
        Ok(question) => question,
        Err(outcome) => return Some(outcome),
    };
    let Question::Commit { migration, epoch, .. } = question else { panic!("{question:?}") };
    source.must(&Request::Answer { migration, verdict: Verdict::Granted { epoch: epoch.next() } });
    let claimed = destination.notices.until(|notice| match notice {
        Notice::Question { question: Question::Claim { migration, epoch, .. } } => Some((*migration, *epoch)),
        _ => None,
    });
    assert_eq!(claimed, (migration, epoch.next()));
    destination.must(&Request::Answer { migration, verdict: Verdict::Granted { epoch: epoch.next() } });
    None
}

/// Waits until a granted migration has ended on both sides.
pub(crate) fn ended(source: &mut Vmm, destination: &mut Vmm) -> MigrationOutcome {
    destination.notices.until(|notice| matches!(notice, Notice::Arrived { .. }).then_some(()));
    source.notices.until(|notice| match notice {
        Notice::MigrationEnded { outcome, .. } => Some(outcome.clone()),
        _ => None,
    })
}

/// Whether tests that run a guest can run; says loudly when they cannot.
pub(crate) fn kvm_is_there() -> bool {
    match godwit_vmm::kvm::open() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: needs /dev/kvm: {}", godwit_vmm::kvm::chain(&error));
            false
        }
    }
}
