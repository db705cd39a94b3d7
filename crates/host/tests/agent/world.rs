//! A network namespace with a manager, an agent and a client in it, which ends with the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use godwit_api::{Client, Token};
use godwit_host::{DatastoreConfig, HostConfig, NetworkConfig, run_until};
use godwit_types::agent::{
    AskAdmission, AskDisks, AskSurvey, BeginStorage, Fence, Incoming, Leftover, LocalState, LocalVm,
    MovedDisk, NewDiskPlace, PrepareIncoming, RemoveLeft, Standby, StartOutgoing, StartVm, StopVm,
};
use godwit_types::api::Empty;
use godwit_types::capability::{DiskFacts, GuestFacts, ProtocolRange, VmmOffer};
use godwit_types::check::Finding;
use godwit_types::cpu::CpuFacts;
use godwit_types::forecast::{Reading, Survey};
use godwit_types::storage::StorageStatus;
use godwit_types::task::SetBandwidth;
use godwit_types::usage::VmUsage;
use godwit_types::vm::VmSpec;
use godwit_types::{ApiError, Bytes, Epoch, MigrationId, VmId};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::fake_manager::{Manager, Shared};
use crate::fake_vmm;

/// How long anything that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const MANAGER: &str = "127.0.0.1:7400";
const AGENT: &str = "127.0.0.1:7401";
const TOKEN: &str = "a-token-for-tests-only";
pub(crate) const VM: VmId = VmId(Uuid::from_u128(0x0123_4567));
pub(crate) const MIGRATION: MigrationId = MigrationId(Uuid::from_u128(0xabc));
pub(crate) const TAP: &str = "gw01234567n0";

pub(crate) struct World {
    directory: tempfile::TempDir,
    pub(crate) book: Shared,
    manager: Option<Manager>,
    agent: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    pub(crate) client: Client,
}

/// Runs `test` in a network namespace of its own, or says why it cannot.
pub(crate) fn in_a_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = kvm {
        return eprintln!("SKIPPED: needs /dev/kvm, without which an agent starts no VM: {error}");
    }
    let thread = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return eprintln!(
                "SKIPPED: needs root, because it makes a network namespace of its own: {error}"
            );
        }
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            world.start_manager().await;
            world.start_agent().await;
            timeout(PATIENCE * 4, test(world)).await.expect("the test ends");
        });
    });
    thread.join().unwrap();
}

pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for World {
    /// After a failed test: ends the fakes that it has started. Their environment names its directory, which that of no
    /// other process does.
    fn drop(&mut self) {
        let needle = self.directory.path().as_os_str().as_encoded_bytes();
        let Ok(entries) = std::fs::read_dir("/proc") else { return };
        for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environment.windows(needle.len()).any(|window| window == needle) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        remove_cgroups(&format!("godwit-test-{}", std::process::id()));
    }
}

/// Those of VMs that ran when their test ended. A process that was just killed may take a moment to leave its own.
fn remove_cgroups(name: &str) {
    for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(|root| Path::new(root).join(name)) {
        for _ in 0..100 {
            let hosts = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path());
            for host in hosts.filter(|path| path.is_dir()) {
                let vms = std::fs::read_dir(&host).into_iter().flatten().flatten().map(|entry| entry.path());
                vms.filter(|path| path.is_dir()).for_each(|vm| drop(std::fs::remove_dir(vm)));
                let _ = std::fs::remove_dir(host);
            }
            let _ = std::fs::remove_dir(&root);
            if !root.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let datastore = directory.path().join("shared");
        std::fs::create_dir(&datastore).unwrap();
        std::fs::create_dir(directory.path().join("fast")).unwrap();
        for file in ["vmlinuz", "web1.raw"] {
            std::fs::write(datastore.join(file), "x").unwrap();
        }
        std::fs::write(directory.path().join("token"), TOKEN).unwrap();
        let base: std::net::SocketAddr = AGENT.parse().unwrap();
        let client = Client::new(base, Token::new(TOKEN)).with_timeout(PATIENCE);
        Self { directory, book: Shared::default(), manager: None, agent: None, client }
    }

    pub(crate) fn config(&self) -> HostConfig {
        let path = |name: &str| self.directory.path().join(name);
        HostConfig {
            name: "b".parse().unwrap(),
            manager: format!("http://{MANAGER}").parse().unwrap(),
            token_file: path("token"),
            listen: AGENT.parse().unwrap(),
            advertise: AGENT.parse().unwrap(),
            migration_address: "127.0.0.1".parse().unwrap(),
            state_dir: path("state"),
            networks: vec![NetworkConfig {
                name: "guests".parse().unwrap(),
                bridge: "gwtbr".to_owned(),
                uplink: None,
            }],
            datastores: ["shared", "fast"]
                .map(|name| DatastoreConfig { name: name.parse().unwrap(), path: path(name) })
                .into(),
            vm_users: 1_900_200_000..=1_900_200_099,
            keep: None,
            cgroup: format!("godwit-test-{}", std::process::id()).into(),
            moves_max: Some(3),
            bandwidth_bytes_per_s_max: Some(100 << 20),
            standby: vec!["mkdir".into(), self.switch().display().to_string()],
            vmm: Some(fake_vmm::install(self.directory.path())),
        }
    }

    pub(crate) async fn start_manager(&mut self) {
        let token = Token::new(TOKEN).unwrap();
        self.manager = Some(Manager::start(MANAGER.parse().unwrap(), token, Arc::clone(&self.book)).await);
    }

    pub(crate) async fn stop_manager(&mut self) {
        self.manager = None;
        until(|| async { tokio::net::TcpStream::connect(MANAGER).await.is_err() }).await;
    }

    pub(crate) async fn start_agent(&mut self) {
        let (stop, stopped) = oneshot::channel::<()>();
        let running = run_until(self.config(), async move { drop(stopped.await) });
        let task = tokio::spawn(async move { running.await.unwrap() });
        self.agent = Some((stop, task));
        until(|| async { tokio::net::TcpStream::connect(AGENT).await.is_ok() }).await;
    }

    /// The agent ends, as after SIGTERM.
    pub(crate) async fn stop_agent(&mut self) {
        let (stop, task) = self.agent.take().expect("an agent runs");
        drop(stop);
        timeout(PATIENCE, task).await.expect("it ends").unwrap();
    }

    /// What the command that switches the host off makes; it fails if that is there.
    pub(crate) fn switch(&self) -> PathBuf {
        self.directory.path().join("switched-off")
    }

    pub(crate) async fn standby(&self) -> Result<Empty, ApiError> {
        self.client.post("/v1/host/standby", &Standby {}).await
    }

    /// A file in the other datastore.
    pub(crate) fn fast(&self, name: &str) -> PathBuf {
        self.directory.path().join("fast").join(name)
    }

    /// Has the VM's disk move to the other datastore, at the epoch at which it runs here.
    pub(crate) async fn begin_storage(&self, epoch: u64) -> Result<StorageStatus, ApiError> {
        let place = NewDiskPlace { index: 0, image: "fast/vms/web1.raw".parse().unwrap() };
        let asked = BeginStorage {
            migration: MIGRATION,
            epoch: Epoch(epoch),
            disks: vec![place],
            at_rest: None,
            bandwidth_bytes_per_s_max: None,
        };
        self.client.post(&format!("/v1/vms/{VM}/storage"), &asked).await
    }

    /// The same of a VM that does not run here.
    pub(crate) async fn begin_storage_at_rest(&self, rate: Option<u64>) -> Result<StorageStatus, ApiError> {
        let place = NewDiskPlace { index: 0, image: "fast/vms/web1.raw".parse().unwrap() };
        let asked = BeginStorage {
            migration: MIGRATION,
            epoch: Epoch(1),
            disks: vec![place],
            at_rest: Some(spec("")),
            bandwidth_bytes_per_s_max: rate,
        };
        self.client.post(&format!("/v1/vms/{VM}/storage"), &asked).await
    }

    pub(crate) async fn measure_disks(&self) -> Result<Vec<DiskFacts>, ApiError> {
        let asked = AskDisks { spec: spec(""), epoch: Epoch(1) };
        self.client.post(&format!("/v1/vms/{VM}/disks"), &asked).await
    }

    pub(crate) async fn storage(&self) -> Result<StorageStatus, ApiError> {
        self.client.get(&format!("/v1/vms/{VM}/storage/{MIGRATION}")).await
    }

    pub(crate) async fn hold_storage(&self) -> Result<StorageStatus, ApiError> {
        self.client.post(&format!("/v1/vms/{VM}/storage/{MIGRATION}/hold"), &Empty {}).await
    }

    pub(crate) async fn switch_storage(&self) -> Result<Empty, ApiError> {
        self.client.post(&format!("/v1/vms/{VM}/storage/{MIGRATION}/switch"), &Empty {}).await
    }

    pub(crate) async fn cancel_storage(&self) -> Result<Empty, ApiError> {
        self.client.delete(&format!("/v1/vms/{VM}/storage/{MIGRATION}")).await
    }

    /// What the agent last told of images whose fate it does not know.
    pub(crate) fn told_leftovers(&self) -> Vec<Leftover> {
        self.book.lock().unwrap().reports.last().map(|report| report.leftovers.clone()).unwrap_or_default()
    }

    /// A file in the datastore.
    pub(crate) fn stored(&self, name: &str) -> PathBuf {
        self.directory.path().join("shared").join(name)
    }

    /// Has removed what the VM has left as its disk when it ran here at an epoch.
    pub(crate) async fn remove_left(&self, epoch: u64) -> Result<Empty, ApiError> {
        let asked = RemoveLeft { epoch: Epoch(epoch), images: vec!["shared/web1.raw".parse().unwrap()] };
        self.client.post(&format!("/v1/vms/{VM}/left"), &asked).await
    }

    /// The VM's directory.
    pub(crate) fn vm_dir(&self) -> PathBuf {
        self.directory.path().join("state/vms").join(VM.to_string())
    }

    /// What the fake VMM has said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.vm_dir().join("console.log")).unwrap_or_default()
    }

    pub(crate) async fn until_said(&self, what: &str) {
        until(|| async { self.said().contains(what) }).await;
    }

    pub(crate) async fn start_vm(&self, cmdline: &str, epoch: u64) -> Result<LocalVm, ApiError> {
        let start = StartVm { name: "web1".parse().unwrap(), epoch: Epoch(epoch), spec: spec(cmdline) };
        self.client.post(&format!("/v1/vms/{VM}/start"), &start).await
    }

    pub(crate) async fn stop_vm(&self, force: bool, timeout_ms: u64) -> Result<Empty, ApiError> {
        self.client.post(&format!("/v1/vms/{VM}/stop"), &StopVm { force, timeout_ms }).await
    }

    pub(crate) async fn fence(&self, epoch: u64) -> Result<Empty, ApiError> {
        let fence = Fence { owner: "c".parse().unwrap(), epoch: Epoch(epoch) };
        self.client.post(&format!("/v1/vms/{VM}/fence"), &fence).await
    }

    pub(crate) async fn vm(&self) -> Result<LocalVm, ApiError> {
        self.client.get(&format!("/v1/vms/{VM}")).await
    }

    pub(crate) async fn prepare_incoming(&self, spec: VmSpec) -> Result<Incoming, ApiError> {
        self.prepare_incoming_with(spec, Vec::new()).await
    }

    /// The same with disks that arrive.
    pub(crate) async fn prepare_incoming_with(
        &self,
        spec: VmSpec,
        disks: Vec<MovedDisk>,
    ) -> Result<Incoming, ApiError> {
        let asked = PrepareIncoming {
            key: None,
            migration: MIGRATION,
            name: "web1".parse().unwrap(),
            spec,
            epoch: Epoch(2),
            source: "a".parse().unwrap(),
            addresses: Vec::new(),
            disks,
        };
        self.client.post(&format!("/v1/vms/{VM}/incoming"), &asked).await
    }

    /// What keeps a VM of `spec` from arriving.
    pub(crate) async fn admission(&self, spec: VmSpec) -> Vec<Finding> {
        let asked = AskAdmission { spec, epoch: Epoch(2), disks: Default::default() };
        self.client.post(&format!("/v1/vms/{VM}/admission"), &asked).await.unwrap()
    }

    pub(crate) async fn survey(&self) -> Result<Survey, ApiError> {
        self.client.post(&format!("/v1/vms/{VM}/survey"), &AskSurvey { sample_ms: 10 }).await
    }

    pub(crate) async fn guest(&self) -> Result<GuestFacts, ApiError> {
        self.client.get(&format!("/v1/vms/{VM}/guest")).await
    }

    pub(crate) async fn discard_incoming(&self) -> Result<Empty, ApiError> {
        self.client.delete(&format!("/v1/vms/{VM}/incoming/{MIGRATION}")).await
    }

    pub(crate) async fn migrate_away(&self) -> Result<Empty, ApiError> {
        let destination = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let asked = StartOutgoing {
            key: None,
            migration: MIGRATION,
            destination: "c".parse().unwrap(),
            address: destination.local_addr().unwrap(),
            disks: Default::default(),
            budget: Default::default(),
        };
        self.client.post(&format!("/v1/vms/{VM}/outgoing"), &asked).await
    }

    /// What the manager allows the migration away to send.
    pub(crate) async fn allow(&self, bytes_per_s_max: Option<u64>) -> Result<Empty, ApiError> {
        let path = format!("/v1/vms/{VM}/outgoing/{MIGRATION}/bandwidth");
        self.client.post(&path, &SetBandwidth { bytes_per_s_max }).await
    }

    /// The same, of a migration that is none.
    pub(crate) async fn allow_other(&self) -> Result<Empty, ApiError> {
        let path = format!("/v1/vms/{VM}/outgoing/{}/bandwidth", uuid::Uuid::nil());
        self.client.post(&path, &SetBandwidth { bytes_per_s_max: None }).await
    }

    /// What the VMM offers, as the manager last heard.
    pub(crate) fn reported_offer(&self) -> Option<VmmOffer> {
        self.book.lock().unwrap().reports.last()?.facts.vmm.clone()
    }

    /// Waits until the manager has heard that the VM is in `state`.
    pub(crate) async fn until_reported(&self, state: LocalState) -> LocalVm {
        let found = || {
            let book = self.book.lock().unwrap();
            let last = book.reports.last()?;
            last.vms.iter().find(|vm| vm.id == VM && vm.state == state).cloned()
        };
        until(|| async { found().is_some() }).await;
        found().expect("reports only come about changes, or every two seconds")
    }

    /// What the VM uses, as soon as the manager is told.
    pub(crate) async fn until_used(&self) -> VmUsage {
        let found = || {
            let book = self.book.lock().unwrap();
            book.reports.last()?.vms.iter().find(|vm| vm.id == VM)?.usage
        };
        until(|| async { found().is_some() }).await;
        found().expect("once measured, it is always told")
    }

    /// Nothing of the VM is left: no tap, no socket, no configuration, no process.
    pub(crate) fn assert_nothing_left(&self) {
        assert!(!ip("-o link").contains(TAP), "a tap is left");
        for file in ["config.json", "control.sock", "console.sock"] {
            assert!(!self.vm_dir().join(file).exists(), "{file} is left");
        }
    }
}

/// What the fake VMM can run.
pub(crate) fn offer() -> VmmOffer {
    let cpu = CpuFacts { vendor: "FakeFakeFake".into(), physical_bits: 40, ..CpuFacts::default() };
    VmmOffer {
        release: "0.1.0".into(),
        protocol: ProtocolRange { min: 1, max: 1 },
        machines: vec!["godwit-1".into()],
        sections: Default::default(),
        vcpus_max: 7,
        cpu,
        no_post_copy: None,
    }
}

/// What the fake VMM's guest does to its memory.
pub(crate) fn survey() -> Survey {
    let reading = Reading { at_ms: 10.0, written_pages: 5, distinct_pages: 5, took_ms: 0.5 };
    Survey {
        memory: Bytes::mib(64),
        sampled_pages: 2048,
        zero_pages: 1000,
        readings: vec![reading],
        vcpu_pages: vec![5],
    }
}

/// What the fake VMM's guest needs.
pub(crate) fn guest() -> GuestFacts {
    let VmmOffer { release, protocol, sections, cpu, .. } = offer();
    GuestFacts {
        release,
        protocol,
        sections,
        cpu,
        blockers: vec!["a card that is passed through".into()],
        moves_disks: true,
        moves_storage: true,
        disks: vec![],
    }
}

pub(crate) fn spec(cmdline: &str) -> VmSpec {
    let spec = serde_json::json!({
        "vcpus": 1,
        "memory": 64 << 20,
        "boot": { "kernel": "shared/vmlinuz", "cmdline": cmdline },
        "disks": [{ "image": "shared/web1.raw" }],
        "nics": [{ "network": "guests", "mac": "52:54:00:00:00:01" }],
    });
    serde_json::from_value(spec).unwrap()
}

/// Waits until `condition` holds.
pub(crate) async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let holds = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, holds).await.expect("it happens in time");
}
