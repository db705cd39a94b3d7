//! An agent that only pretends: it serves the agents' API and reports to the manager, and its VMs are entries in a
//! map. A migration between two of them is one future on the source that asks the arbiter like real ones do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use godwit_api::server::{ErrorResponse, Json, Path, require_token, serve, with_error_documents};
use godwit_api::{CONSOLE_PROTOCOL, Client, Token};
use godwit_types::agent::{
    AskAdmission, AskSurvey, Fence, Incoming, LocalState, LocalVm, MovedDisk, Outgoing, PrepareIncoming,
    RemoveLeft, Standby, StartOutgoing, StartVm, StopVm,
};
use godwit_types::api::Empty;
use godwit_types::capability::{DiskFacts, GuestFacts, ProtocolRange, VmmOffer};
use godwit_types::check::Finding;
use godwit_types::cpu::CpuFacts;
use godwit_types::forecast::{Reading, Survey};
use godwit_types::host::{
    DatastoreOffer, HostFacts, HostReport, KvmFacts, KvmFlavour, MigrationLimits, NetworkOffer,
};
use godwit_types::migration::{
    Blackout, BytesByKind, Comparison, MigrationOutcome, MigrationProgress, MigrationReport, Phase,
    Verification,
};
use godwit_types::ownership::{ClaimRequest, CommitRequest, Verdict, Witness};
use godwit_types::storage::StorageStatus;
use godwit_types::task::SetBandwidth;
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, HostName, MigrationId, VmId, VmName};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

const HEARTBEAT: Duration = Duration::from_millis(30);
const RETRY: Duration = Duration::from_millis(20);

/// What the agent does otherwise than well.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    /// What comparing memory finds.
    pub verified: Option<Comparison>,
    /// Refuses to start a VM.
    pub start_error: Option<ApiError>,
    /// Never answers a request to start a VM, which starts all the same.
    pub start_hangs: bool,
    /// How far its clock is ahead.
    pub clock_ms: i64,
    /// What it finds against a VM's arrival when it is asked.
    pub admission: Vec<Finding>,
    /// Refuses to watch a VM.
    pub survey_error: Option<ApiError>,
    /// How fast its guests go through their memory.
    pub pages_per_ms: f64,
    /// Refuses to build the destination's machine.
    pub incoming_error: Option<ApiError>,
    /// Never answers a request to build the destination's machine.
    pub incoming_hangs: bool,
    /// Ends every migration away before its commit.
    pub outgoing_error: Option<ApiError>,
    /// Holds migrations away before their commit.
    pub hold_commit: bool,
    /// Holds migrations to here before their claim.
    pub hold_claim: bool,
    /// Its process ends instead of claiming.
    pub dies_unclaimed: bool,
    /// Does not remove what a VM has left.
    pub keeps_left: bool,
    /// Never comes to an end of copying disks.
    pub hold_copy: bool,
    /// Why disks do not move any more.
    pub storage_error: Option<ApiError>,
    /// Why it does not hold disks in sync.
    pub hold_error: Option<ApiError>,
    /// Does not use new images, or give them up, when it is told.
    pub refuses_switch: bool,
    pub refuses_cancel: bool,
}

/// A running fake. Clones are the same agent.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) name: HostName,
    pub(crate) address: SocketAddr,
    manager: Client,
    pub(crate) script: watch::Sender<Script>,
    alive: watch::Sender<bool>,
    state: Arc<Mutex<Known>>,
    work: Arc<Mutex<JoinSet<()>>>,
}

pub(crate) struct Known {
    pub(crate) facts: HostFacts,
    pub(crate) vms: BTreeMap<VmId, LocalVm>,
    pub(crate) outgoing: BTreeMap<MigrationId, Outgoing>,
    /// What each migration away may send, as it was last told.
    pub(crate) bandwidths: BTreeMap<MigrationId, Option<u64>>,
    /// Requests that changed something, as `METHOD what`.
    pub(crate) requests: Vec<String>,
    /// Disks that have arrived, or were to.
    pub(crate) arriving: Vec<MovedDisk>,
    /// Moves of storage whose fate it does not know, and whether their VMs are at rest.
    pub(crate) storage: BTreeMap<MigrationId, (VmId, StorageStatus, bool)>,
    peers: BTreeMap<HostName, Agent>,
}

impl Agent {
    pub(crate) async fn start(name: &str, manager: Client, token: Token) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = Self {
            name: name.parse().unwrap(),
            address: listener.local_addr().unwrap(),
            manager,
            script: watch::Sender::default(),
            alive: watch::Sender::new(true),
            state: Arc::new(Mutex::new(Known {
                facts: facts(),
                vms: BTreeMap::new(),
                outgoing: BTreeMap::new(),
                bandwidths: BTreeMap::new(),
                requests: Vec::new(),
                arriving: Vec::new(),
                storage: BTreeMap::new(),
                peers: BTreeMap::new(),
            })),
            work: Arc::default(),
        };
        let mut alive = agent.alive.subscribe();
        let router = with_error_documents(require_token(router(), token)).with_state(agent.clone());
        let dead = async move { drop(alive.wait_for(|alive| !alive).await) };
        agent.spawn(serve(listener, router, dead));
        agent.spawn(agent.clone().report_for_ever());
        agent
    }

    pub(crate) fn meet(&self, peer: &Self) {
        self.known().peers.insert(peer.name.clone(), peer.clone());
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap()
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        self.script.send_modify(change);
    }

    /// The host is gone: nothing answers, nothing reports, nothing runs.
    pub(crate) fn die(&self) {
        self.alive.send_replace(false);
        self.work.lock().unwrap().abort_all();
    }

    pub(crate) fn vm_state(&self, vm: VmId) -> Option<LocalState> {
        self.known().vms.get(&vm).map(|local| local.state)
    }

    pub(crate) fn set_vm(&self, vm: VmId, name: &VmName, epoch: u64, state: LocalState) {
        let local = LocalVm {
            id: vm,
            name: name.clone(),
            epoch: Epoch(epoch),
            state,
            detail: None,
            addresses: vec![],
            usage: None,
            disks: vec![DiskFacts { size: Bytes::mib(9), allocated: Bytes::mib(3), layered: false }],
        };
        self.known().vms.insert(vm, local);
    }

    pub(crate) fn was_asked(&self, request: &str) -> bool {
        self.known().requests.iter().any(|seen| seen == request)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.work.lock().unwrap().spawn(work);
    }

    fn report(&self) -> HostReport {
        let leftovers = self.storage_leftovers();
        let known = self.known();
        let vms = known.vms.values().cloned().collect();
        let mut facts = known.facts.clone();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        facts.clock_unix_ms = (now.as_millis() as u64).saturating_add_signed(self.script.borrow().clock_ms);
        HostReport { name: self.name.clone(), agent: self.address, facts, vms, leftovers }
    }

    async fn report_for_ever(self) {
        loop {
            let report = self.report();
            let path = format!("/v1/hosts/{}/heartbeat", self.name);
            // The manager may be down; then the next report tells it.
            let _ = self.manager.post::<_, Empty>(&path, &report).await;
            sleep(HEARTBEAT).await;
        }
    }

    /// Asks the arbiter until it answers with something final.
    async fn ask<Q: serde::Serialize>(&self, what: &str, question: &Q) -> Verdict {
        loop {
            match self.manager.post::<_, Verdict>(&format!("/v1/arbiter/{what}"), question).await {
                Ok(Verdict::Undecided) | Err(_) => sleep(RETRY).await,
                Ok(verdict) => return verdict,
            }
        }
    }

    async fn script_allows(&self, allowed: impl Fn(&Script) -> bool) {
        self.script.subscribe().wait_for(|script| allowed(script)).await.unwrap();
    }

    /// The source's side of a migration.
    async fn migrate_away(self, vm: VmId, asked: StartOutgoing) {
        let error = self.script.borrow().outgoing_error.clone();
        if let Some(error) = error {
            return self.stay(vm, asked.migration, error);
        }
        self.script_allows(|script| !script.hold_commit).await;
        let epoch = self.known().vms[&vm].epoch;
        let (source, destination) = (self.name.clone(), asked.destination.clone());
        let commit = CommitRequest { vm, migration: asked.migration, source, epoch, destination };
        match self.ask("commit", &commit).await {
            Verdict::Granted { epoch } => assert_eq!(epoch, commit.epoch.next()),
            refused => {
                return self.stay(
                    vm,
                    asked.migration,
                    ApiError::new(ErrorCode::Refused, format!("{refused:?}")),
                );
            }
        }
        self.set_state(vm, LocalState::HandedOver);
        let destination = self.known().peers[&asked.destination].clone();
        if destination.clone().arrive(vm, asked.migration).await {
            let mut report = Box::new(report(asked.migration, &self.name, &destination.name));
            report.verified = self.script.borrow().verified.map(verification);
            self.known().vms.remove(&vm);
            self.end(asked.migration, MigrationOutcome::Completed { report });
        } else {
            let error = ApiError::new(ErrorCode::Unreachable, "the destination did not resume");
            self.end(asked.migration, MigrationOutcome::HandedOver { error });
        }
    }

    /// The destination's side, once it has everything: runs on its own, whatever becomes of the source.
    async fn arrive(self, vm: VmId, migration: MigrationId) -> bool {
        let (done, mut arrived) = watch::channel(None);
        let agent = self.clone();
        self.spawn(async move {
            if agent.script.borrow().dies_unclaimed {
                agent.known().vms.remove(&vm);
                done.send_replace(Some(false));
                return;
            }
            agent.script_allows(|script| !script.hold_claim).await;
            let Some(epoch) = agent.known().vms.get(&vm).map(|local| local.epoch) else { return };
            let (host, witness) = (agent.name.clone(), Witness::None);
            let claim = ClaimRequest { vm, migration, host, epoch, witness };
            let granted = matches!(agent.ask("claim", &claim).await, Verdict::Granted { .. });
            agent.set_state(vm, if granted { LocalState::Running } else { LocalState::Crashed });
            done.send_replace(Some(granted));
        });
        let arrived = arrived.wait_for(Option::is_some).await;
        arrived.is_ok_and(|granted| *granted == Some(true))
    }

    fn stay(&self, vm: VmId, migration: MigrationId, error: ApiError) {
        self.set_state(vm, LocalState::Running);
        self.end(migration, MigrationOutcome::Failed { phase: Phase::PreCopy, error });
    }

    fn end(&self, migration: MigrationId, outcome: MigrationOutcome) {
        self.known()
            .outgoing
            .insert(migration, Outgoing { migration, progress: None, outcome: Some(outcome) });
    }

    fn set_state(&self, vm: VmId, state: LocalState) {
        if let Some(local) = self.known().vms.get_mut(&vm) {
            local.state = state;
        }
    }
}

fn router() -> Router<Agent> {
    Router::new()
        .route("/v1/vms/{id}", get(show))
        .route("/v1/vms/{id}/start", post(start))
        .route("/v1/vms/{id}/stop", post(stop))
        .route("/v1/vms/{id}/fence", post(fence))
        .route("/v1/host", get(report_now))
        .route("/v1/host/standby", post(standby))
        .route("/v1/vms/{id}/guest", get(guest))
        .route("/v1/vms/{id}/survey", post(survey))
        .route("/v1/vms/{id}/admission", post(admission))
        .route("/v1/vms/{id}/console", get(console))
        .route("/v1/vms/{id}/kept", delete(forget_kept))
        .route("/v1/vms/{id}/left", post(remove_left))
        .merge(super::fake_storage::router())
        .route("/v1/vms/{id}/incoming", post(incoming))
        .route("/v1/vms/{id}/incoming/{migration}", delete(discard))
        .route("/v1/vms/{id}/outgoing", post(outgoing))
        .route("/v1/vms/{id}/outgoing/{migration}", get(progress).merge(delete(cancel)))
        .route("/v1/vms/{id}/outgoing/{migration}/bandwidth", post(set_bandwidth))
}

pub(crate) type Answer<T> = Result<Json<T>, ErrorResponse>;

pub(crate) fn unknown() -> ErrorResponse {
    ApiError::new(ErrorCode::NotFound, "no such thing here").into()
}

async fn show(State(agent): State<Agent>, Path(vm): Path<VmId>) -> Answer<LocalVm> {
    agent.known().vms.get(&vm).cloned().map(Json).ok_or_else(unknown)
}

async fn report_now(State(agent): State<Agent>) -> Json<HostReport> {
    Json(agent.report())
}

async fn remove_left(State(agent): State<Agent>, Json(asked): Json<RemoveLeft>) -> Answer<Empty> {
    if agent.script.borrow().keeps_left {
        return Err(ApiError::new(ErrorCode::Conflict, "not now").into());
    }
    agent.known().requests.push(format!("POST left {:?}", asked.images));
    Ok(Json(Empty {}))
}

async fn guest(State(agent): State<Agent>, Path(vm): Path<VmId>) -> Answer<GuestFacts> {
    agent.vm_state(vm).ok_or_else(unknown)?;
    let VmmOffer { release, protocol, sections, cpu, .. } = offer();
    Ok(Json(GuestFacts {
        release,
        protocol,
        sections,
        cpu,
        blockers: vec![],
        moves_disks: true,
        moves_storage: true,
        disks: vec![DiskFacts { size: Bytes::mib(9), allocated: Bytes::mib(3), layered: false }],
    }))
}

async fn survey(
    State(agent): State<Agent>,
    Path(vm): Path<VmId>,
    Json(asked): Json<AskSurvey>,
) -> Answer<Survey> {
    agent.vm_state(vm).ok_or_else(unknown)?;
    let script = agent.script.borrow().clone();
    if let Some(error) = script.survey_error {
        return Err(error.into());
    }
    let reading = |at_ms: f64| {
        let pages = (script.pages_per_ms * at_ms) as u64;
        Reading { at_ms, written_pages: pages, distinct_pages: pages, took_ms: 1.0 }
    };
    let readings = vec![reading(f64::from(asked.sample_ms))];
    Ok(Json(Survey {
        memory: Bytes::mib(128),
        sampled_pages: 2048,
        zero_pages: 1024,
        readings,
        vcpu_pages: vec![],
    }))
}

async fn admission(State(agent): State<Agent>, Json(asked): Json<AskAdmission>) -> Json<Vec<Finding>> {
    let mut found = agent.script.borrow().admission.clone();
    let (name, facts) = (&agent.name, agent.known().facts.clone());
    for network in asked.spec.nics.into_iter().map(|nic| nic.network) {
        if !facts.networks.iter().any(|offer| offer.name == network) {
            found.push(Finding::no_network(name, &network));
        }
    }
    for datastore in asked.spec.disks.into_iter().map(|disk| disk.image.datastore) {
        if !facts.datastores.iter().any(|offer| offer.name == datastore) {
            found.push(Finding::no_datastore(name, &datastore));
        }
    }
    Json(found)
}

async fn start(
    State(agent): State<Agent>,
    Path(vm): Path<VmId>,
    Json(asked): Json<StartVm>,
) -> Answer<LocalVm> {
    let script = agent.script.borrow().clone();
    if let Some(error) = script.start_error {
        return Err(error.into());
    }
    agent.set_vm(vm, &asked.name, asked.epoch.0, LocalState::Running);
    agent.known().requests.push("POST start".into());
    if script.start_hangs {
        std::future::pending::<()>().await;
    }
    show(State(agent), Path(vm)).await
}

async fn fence(State(agent): State<Agent>, Path(vm): Path<VmId>, Json(asked): Json<Fence>) -> Answer<Empty> {
    let mut known = agent.known();
    known.requests.push(format!("POST fence before {} of {}", asked.epoch, asked.owner));
    known.vms.retain(|id, local| *id != vm || local.epoch >= asked.epoch);
    Ok(Json(Empty {}))
}

async fn stop(State(agent): State<Agent>, Path(vm): Path<VmId>, Json(_): Json<StopVm>) -> Answer<Empty> {
    agent.known().vms.remove(&vm).map(|_| Json(Empty {})).ok_or_else(unknown)
}

async fn standby(State(agent): State<Agent>, Json(Standby {}): Json<Standby>) -> Answer<Empty> {
    agent.known().requests.push("POST standby".into());
    Ok(Json(Empty {}))
}

async fn console(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut line = [0; 5];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(b"login: ").await.unwrap();
    });
    let headers = [("connection", "upgrade"), ("upgrade", CONSOLE_PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn incoming(
    State(agent): State<Agent>,
    Path(vm): Path<VmId>,
    Json(asked): Json<PrepareIncoming>,
) -> Answer<Incoming> {
    agent.known().requests.push("POST incoming".into());
    let script = agent.script.borrow().clone();
    if let Some(error) = script.incoming_error {
        return Err(error.into());
    }
    if script.incoming_hangs {
        std::future::pending::<()>().await;
    }
    agent.known().arriving.extend(asked.disks);
    agent.set_vm(vm, &asked.name, asked.epoch.0, LocalState::Incoming);
    Ok(Json(Incoming { address: agent.address }))
}

async fn forget_kept(State(agent): State<Agent>, Path(vm): Path<VmId>) -> Answer<Empty> {
    agent.known().facts.kept.retain(|kept| kept.vm != vm);
    Ok(Json(Empty {}))
}

async fn discard(State(agent): State<Agent>, Path((vm, _)): Path<(VmId, MigrationId)>) -> Answer<Empty> {
    let mut known = agent.known();
    known.requests.push("DELETE incoming".into());
    if known.vms.get(&vm).is_some_and(|local| local.state == LocalState::Incoming) {
        known.vms.remove(&vm);
    }
    Ok(Json(Empty {}))
}

async fn outgoing(
    State(agent): State<Agent>,
    Path(vm): Path<VmId>,
    Json(asked): Json<StartOutgoing>,
) -> Answer<Empty> {
    agent.known().requests.push("POST outgoing".into());
    agent.set_state(vm, LocalState::Outgoing);
    let migration = asked.migration;
    let progress = MigrationProgress {
        phase: Phase::PreCopy,
        round: 3,
        bytes_sent: 1 << 20,
        remaining: Bytes::mib(2),
        goodput_bytes_per_s: 100,
        dirty_bytes_per_s: 10,
        predicted_blackout_ms: None,
        predicted_finish_ms: None,
        slowdown_percent: 0.0,
        elapsed_ms: 5,
    };
    let begun = Outgoing { migration, progress: Some(progress), outcome: None };
    agent.known().outgoing.insert(migration, begun);
    agent.spawn(agent.clone().migrate_away(vm, asked));
    Ok(Json(Empty {}))
}

async fn progress(State(agent): State<Agent>, Path((_, id)): Path<(VmId, MigrationId)>) -> Answer<Outgoing> {
    agent.known().outgoing.get(&id).cloned().map(Json).ok_or_else(unknown)
}

async fn set_bandwidth(
    State(agent): State<Agent>,
    Path((_, id)): Path<(VmId, MigrationId)>,
    Json(asked): Json<SetBandwidth>,
) -> Json<Empty> {
    agent.known().bandwidths.insert(id, asked.bytes_per_s_max);
    Json(Empty {})
}

async fn cancel(State(agent): State<Agent>, Path((vm, id)): Path<(VmId, MigrationId)>) -> Answer<Empty> {
    if !agent.known().outgoing.contains_key(&id) {
        return Err(unknown());
    }
    agent.known().requests.push("DELETE outgoing".into());
    agent.stay(vm, id, ApiError::new(ErrorCode::Cancelled, "cancelled"));
    Ok(Json(Empty {}))
}

fn report(migration: MigrationId, from: &HostName, to: &HostName) -> MigrationReport {
    MigrationReport {
        migration,
        from: from.clone(),
        to: to.clone(),
        total_ms: 1234.0,
        blackout: Blackout { total_ms: 12.5, ..Blackout::default() },
        predicted_blackout_ms: 11.0,
        rounds: 3,
        bytes: BytesByKind { raw: 64 << 20, ..BytesByKind::default() },
        goodput_bytes_per_s: 100,
        busy_ms: 1000.0,
        later_bytes_per_s: None,
        capped: false,
        predicted: None,
        post_copy: None,
        verified: None,
        guest_clock: None,
        slowed: Vec::new(),
    }
}

fn verification(memory: Comparison) -> Box<Verification> {
    Box::new(Verification { memory, size: Bytes::mib(64), here: None, there: None, took_ms: 1.0 })
}

fn offer() -> VmmOffer {
    VmmOffer {
        release: "0.1.0".into(),
        protocol: ProtocolRange { min: 1, max: 1 },
        machines: vec!["godwit-1".into()],
        sections: BTreeMap::new(),
        vcpus_max: 64,
        cpu: CpuFacts { features: ["sse2".to_owned()].into(), ..CpuFacts::default() },
        no_post_copy: None,
    }
}

fn facts() -> HostFacts {
    HostFacts {
        kept: Vec::new(),
        version: "0.1.0".into(),
        kernel: "6.1".into(),
        cpu_model: "a CPU".into(),
        cpus: 2,
        memory: Bytes::mib(4096),
        memory_available: Bytes::mib(2048),
        kvm: KvmFacts { flavour: KvmFlavour::Svm, limits: None },
        vmm: Some(offer()),
        networks: vec![NetworkOffer { name: "lan".parse().unwrap(), bridge: "br0".into(), uplink: None }],
        datastores: vec![DatastoreOffer {
            name: "shared".parse().unwrap(),
            path: "/srv".into(),
            size: Bytes::mib(1000),
            free: Bytes::mib(500),
            id: None,
        }],
        // Most tests have several moves under way and none that waits.
        migration: MigrationLimits { moves_max: 8, bandwidth_bytes_per_s_max: None, link_bits_per_s: None },
        usage: None,
        clock_unix_ms: 0,
    }
}
