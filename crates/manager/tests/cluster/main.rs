//! The manager with fake agents, over loopback.

mod agent;
mod checks;
mod cpu_baseline;
mod fake_storage;
mod lifecycle;
mod maintenance;
mod migrations;
mod plans;
mod power;
mod queue;
mod requests;
mod restarts;
mod rulebook;
mod scheduler;
mod storage;

use std::time::Duration;

use agent::Agent;
use godwit_api::{Client, Token};
use godwit_manager::{Limits, ManagerConfig, ManagerError};
use godwit_types::check::MigrationCheck;
use godwit_types::event::Event;
use godwit_types::host::{Host, HostState};
use godwit_types::migration::{Budget, MigrateVm, MoveDisks};
use godwit_types::ownership::Verdict;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::{BootSpec, CreateVm, DiskSpec, NicSpec, StartRequest, Vm, VmSpec, VmState};
use godwit_types::{ApiError, Bytes, TaskId};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longest wait for anything, so that a broken promise fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A manager that serves, and how to stop it.
type Running = (oneshot::Sender<()>, JoinHandle<Result<(), ManagerError>>);

/// A manager and the fake hosts `a` and `b`.
struct Cluster {
    dir: TempDir,
    client: Client,
    a: Agent,
    b: Agent,
    config: ManagerConfig,
    manager: Option<Running>,
}

impl Cluster {
    /// Both hosts are up, there are no VMs.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("token");
        let token = Token::read_or_create(&token_file).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let config = ManagerConfig { listen, state_dir: dir.path().join("state"), token_file };
        let client = Client::new(listen, Some(token.clone()));
        let a = Agent::start("a", client.clone(), token.clone()).await;
        let b = Agent::start("b", client.clone(), token).await;
        a.meet(&b);
        b.meet(&a);
        let mut cluster = Self { dir, client, a, b, config, manager: None };
        cluster.run(listener);
        cluster
            .until("both hosts are up", async |c| {
                c.host_state("a").await.is_some() && c.host_state("b").await.is_some()
            })
            .await;
        cluster
    }

    fn run(&mut self, listener: TcpListener) {
        let limits = Limits {
            host_silence: Duration::from_millis(400),
            poll: Duration::from_millis(10),
            patience: Duration::from_millis(300),
            round: Duration::from_secs(60),
            retry: Duration::from_millis(100),
        };
        let config = self.config.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = async move {
            godwit_manager::serve(listener, &config, limits, async { drop(stopped.await) }).await
        };
        self.manager = Some((stop, tokio::spawn(serving)));
    }

    async fn stop_manager(&mut self) {
        if let Some((stop, serving)) = self.manager.take() {
            stop.send(()).unwrap();
            timeout(PATIENCE, serving).await.expect("the manager ends when told").unwrap().unwrap();
        }
    }

    /// Another manager on the same state and address.
    async fn start_manager(&mut self) {
        self.run(TcpListener::bind(self.config.listen).await.unwrap());
    }

    async fn end(mut self) {
        self.stop_manager().await;
        self.a.die();
        self.b.die();
        self.dir.close().unwrap();
    }

    async fn get<R: DeserializeOwned>(&self, path: &str) -> R {
        self.client.get(path).await.unwrap()
    }

    async fn host_state(&self, name: &str) -> Option<HostState> {
        self.client.get::<Host>(&format!("/v1/hosts/{name}")).await.ok().map(|host| host.state)
    }

    async fn vm(&self, name: &str) -> Vm {
        self.get(&format!("/v1/vms/{name}")).await
    }

    async fn vm_is(&self, name: &str, state: VmState) {
        self.until(&format!("{name} is {state:?}"), async |c| c.vm(name).await.state == state).await;
    }

    async fn create(&self, name: &str) -> Vm {
        self.client.post("/v1/vms", &CreateVm { name: name.parse().unwrap(), spec: spec() }).await.unwrap()
    }

    async fn try_start(&self, name: &str, host: Option<&str>) -> Result<Task, ApiError> {
        let asked = StartRequest { host: host.map(|host| host.parse().unwrap()) };
        self.client.post(&format!("/v1/vms/{name}/start"), &asked).await
    }

    /// A VM that runs on `a`.
    async fn running(&self, name: &str) -> Vm {
        self.create(name).await;
        let task = self.try_start(name, Some("a")).await.unwrap();
        assert_eq!(self.ended(task.id).await.state, TaskState::Succeeded);
        self.vm(name).await
    }

    /// Whether the VM can move, to one host or to which of all.
    async fn check(&self, name: &str, to: Option<&str>) -> MigrationCheck {
        let query = to.map(|to| format!("?to={to}")).unwrap_or_default();
        self.get(&format!("/v1/vms/{name}/migration-check{query}")).await
    }

    async fn try_migrate(&self, name: &str, to: &str) -> Result<Task, ApiError> {
        let asked = MigrateVm { to: to.parse().unwrap(), budget: Budget::default(), move_disks: None };
        self.client.post(&format!("/v1/vms/{name}/migrate"), &asked).await
    }

    async fn migrate_with_disks(&self, name: &str, to: &str) -> Task {
        let move_disks = Some(MoveDisks::default());
        let asked = MigrateVm { to: to.parse().unwrap(), budget: Budget::default(), move_disks };
        self.client.post(&format!("/v1/vms/{name}/migrate"), &asked).await.unwrap()
    }

    async fn migrate(&self, name: &str, to: &str) -> Task {
        self.try_migrate(name, to).await.unwrap()
    }

    async fn cancel(&self, task: TaskId) -> Result<Task, ApiError> {
        self.client.post(&format!("/v1/tasks/{task}/cancel"), &()).await
    }

    async fn task(&self, id: TaskId) -> Task {
        self.get(&format!("/v1/tasks/{id}")).await
    }

    /// The task, once it has ended.
    async fn ended(&self, id: TaskId) -> Task {
        self.until("the task ends", async |c| c.task(id).await.state.is_final()).await;
        self.task(id).await
    }

    async fn events(&self) -> Vec<Event> {
        self.get("/v1/events").await
    }

    async fn event_kinds(&self) -> Vec<String> {
        self.events().await.into_iter().map(|event| event.kind).collect()
    }

    /// Asks the arbiter as the agents do.
    async fn arbiter<Q: serde::Serialize>(&self, what: &str, question: &Q) -> Verdict {
        self.client.post(&format!("/v1/arbiter/{what}"), question).await.unwrap()
    }

    async fn until(&self, what: &str, happens: impl AsyncFn(&Self) -> bool) {
        let looking = async {
            while !happens(self).await {
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("it never came to this: {what}"));
    }
}

fn spec() -> VmSpec {
    VmSpec {
        vcpus: 1,
        memory: Bytes::mib(128),
        boot: BootSpec { kernel: "shared/vmlinuz".parse().unwrap(), initrd: None, cmdline: String::new() },
        disks: vec![DiskSpec {
            image: "shared/web1.raw".parse().unwrap(),
            format: Default::default(),
            read_only: false,
        }],
        nics: vec![NicSpec { network: "lan".parse().unwrap(), mac: None }],
        machine: Default::default(),
        cpu: Default::default(),
    }
}
