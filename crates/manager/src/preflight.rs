//! What is known before a VM moves: the records, and what the agents say when asked. Asking moves and reserves nothing.
//!
//! A migration is planned by the same list that `godwit vm check-migration` shows: [`Situation::judge`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_types::agent::AskAdmission;
use godwit_types::capability::GuestFacts;
use godwit_types::check::{Finding, HostCheck, MigrationCheck};
use godwit_types::host::HostReport;
use godwit_types::migration::MoveDisks;
use godwit_types::ownership::Ownership;
use godwit_types::task::Task;
use godwit_types::{ApiError, Epoch, HostName, VmId};
use tokio::task::JoinSet;

use crate::check::{self, Answers, Case, Skew};
use crate::clock::now_unix_ms;
use crate::manager::{Manager, unknown_host, unknown_vm};
use crate::moving::{Moving, Wish, moving};
use crate::store::{HostRow, Power, Tx, VmRow};

/// How long an agent may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(8);
/// How far a host's clock may be off what its reports say: they take their time.
const REPORT_DELAY_MS: u64 = 500;

/// `GET /v1/vms/{vm}/migration-check`: whether the VM can move to the host named, or to which of all.
pub(crate) async fn report(
    manager: &Arc<Manager>,
    vm: String,
    to: Option<HostName>,
    wish: Wish,
) -> Result<MigrationCheck, ApiError> {
    let probe = ask(manager, &vm, to.as_ref(), wish.move_disks.as_ref()).await?;
    let report = manager.store.read(move |tx| {
        let situation = Situation::of(tx, &vm)?;
        let hosts = destinations(tx, to.as_ref())?;
        let hosts = hosts.iter().map(|host| situation.judge(host, &probe, &wish)).collect();
        let from = situation.owned.map(|owned| owned.owner);
        Ok(MigrationCheck { vm: situation.vm.name, from, hosts })
    });
    report.await
}

/// The VM and whatever concerns it, as recorded.
#[derive(Debug)]
pub(crate) struct Situation {
    pub vm: VmRow,
    pub owned: Option<Ownership>,
    pub busy: Option<Task>,
    /// The host that owns the VM.
    pub source: Option<HostRow>,
}

impl Situation {
    pub(crate) fn of(tx: &Tx<'_>, vm: &str) -> Result<Self, ApiError> {
        let vm = tx.vm(vm)?.ok_or_else(|| unknown_vm(vm))?;
        let owned = tx.ownership(vm.id)?.map(|(owned, _)| owned);
        let source = owned.as_ref().map(|owned| tx.host(&owned.owner)).transpose()?.flatten();
        Ok(Self { busy: tx.open_task(vm.id)?, vm, owned, source })
    }

    /// What of the VM's disks moves along, or would have to.
    pub(crate) fn moving(&self, destination: &HostRow, wish: &Wish) -> Moving {
        moving(&self.vm.spec, self.source.as_ref(), destination, wish.move_disks.as_ref())
    }

    /// Whether the VM can move to `destination` as wished, with all reasons.
    pub(crate) fn judge(&self, destination: &HostRow, probe: &Probe, wish: &Wish) -> HostCheck {
        check::judge(&Case {
            vm: &self.vm,
            owned: self.owned.as_ref(),
            busy: self.busy.as_ref(),
            source: self.source.as_ref(),
            destination,
            wish,
            moving: &self.moving(destination, wish),
            answers: &probe.answers(self.source.as_ref(), destination),
        })
    }
}

/// What the agents said.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    guest: Option<Result<GuestFacts, ApiError>>,
    clocks: BTreeMap<HostName, Skew>,
    admissions: BTreeMap<HostName, Result<Vec<Finding>, ApiError>>,
}

impl Probe {
    fn answers(&self, source: Option<&HostRow>, destination: &HostRow) -> Answers {
        // Both against the manager's clock.
        let clock = |host: &HostRow| {
            let reported = Skew { ms: host.clock_skew_ms, error_ms: REPORT_DELAY_MS };
            self.clocks.get(&host.name).copied().unwrap_or(reported)
        };
        let skew = source.map_or_else(Skew::default, |source| {
            let (from, to) = (clock(source), clock(destination));
            Skew { ms: to.ms.saturating_sub(from.ms), error_ms: from.error_ms.saturating_add(to.error_ms) }
        });
        Answers {
            guest: self.guest.clone(),
            admission: self.admissions.get(&destination.name).cloned(),
            skew,
        }
    }
}

enum Answer {
    Guest(Result<GuestFacts, ApiError>),
    Clock(HostName, Skew),
    Admission(HostName, Result<Vec<Finding>, ApiError>),
}

/// Asks whoever can say something about a move, all at once. Who is down is not asked.
pub(crate) async fn ask(
    manager: &Arc<Manager>,
    vm: &str,
    to: Option<&HostName>,
    move_disks: Option<&MoveDisks>,
) -> Result<Probe, ApiError> {
    let (vm, to) = (vm.to_owned(), to.cloned());
    let rows = manager.store.read(move |tx| Ok((Situation::of(tx, &vm)?, destinations(tx, to.as_ref())?)));
    let (Situation { vm, owned, source, .. }, destinations) = rows.await?;
    let mut asked = JoinSet::new();
    let runs_on = source.filter(|_| vm.power == Power::Running);
    if let Some(source) = runs_on.as_ref().filter(|source| source.up) {
        asked.spawn(clock(Arc::clone(manager), source.name.clone()));
        asked.spawn(guest(Arc::clone(manager), source.name.clone(), vm.id));
    }
    let here = runs_on.as_ref().map(|source| source.name.clone());
    let epoch = owned.map_or(Epoch(0), |owned| owned.epoch).next();
    for host in destinations.into_iter().filter(|host| host.up && Some(&host.name) != here.as_ref()) {
        let Moving { disks, spec, .. } = moving(&vm.spec, runs_on.as_ref(), &host, move_disks);
        let question = AskAdmission { spec, epoch, disks };
        asked.spawn(clock(Arc::clone(manager), host.name.clone()));
        asked.spawn(admission(Arc::clone(manager), host.name, vm.id, question));
    }
    let mut probe = Probe::default();
    for answer in asked.join_all().await.into_iter().flatten() {
        match answer {
            Answer::Guest(guest) => probe.guest = Some(guest),
            Answer::Clock(host, skew) => drop(probe.clocks.insert(host, skew)),
            Answer::Admission(host, found) => drop(probe.admissions.insert(host, found)),
        }
    }
    Ok(probe)
}

fn destinations(tx: &Tx<'_>, to: Option<&HostName>) -> Result<Vec<HostRow>, ApiError> {
    match to {
        Some(name) => Ok(vec![tx.host(name)?.ok_or_else(|| unknown_host(name.as_str()))?]),
        None => Ok(tx.hosts()?),
    }
}

async fn guest(manager: Arc<Manager>, host: HostName, vm: VmId) -> Option<Answer> {
    let asked = async || {
        let agent = manager.agent(&host).await?.with_timeout(ASK_TIMEOUT);
        agent.get(&format!("/v1/vms/{vm}/guest")).await
    };
    Some(Answer::Guest(asked().await))
}

async fn admission(
    manager: Arc<Manager>,
    host: HostName,
    vm: VmId,
    question: AskAdmission,
) -> Option<Answer> {
    let asked = async || {
        let agent = manager.agent(&host).await?.with_timeout(ASK_TIMEOUT);
        agent.post(&format!("/v1/vms/{vm}/admission"), &question).await
    };
    let answer = asked().await;
    Some(Answer::Admission(host, answer))
}

/// The host's clock against the manager's: it was read at some moment between the question and the answer.
async fn clock(manager: Arc<Manager>, host: HostName) -> Option<Answer> {
    let agent = manager.agent(&host).await.ok()?.with_timeout(ASK_TIMEOUT);
    let (asked_unix_ms, asked) = (now_unix_ms(), Instant::now());
    // What its reports say is taken instead of an answer that does not come.
    let report: HostReport = agent.get("/v1/host").await.ok()?;
    let half_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX) / 2;
    let middle = asked_unix_ms.saturating_add(half_ms);
    let ms = report.facts.clock_unix_ms.cast_signed().wrapping_sub(middle.cast_signed());
    Some(Answer::Clock(host, Skew { ms, error_ms: half_ms + 1 }))
}
