//! Serves the requests of the control socket.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use godwit_migration::driver::{Connections, Outgoing, SourceRun};
use godwit_migration::secure::Secure;
use godwit_types::control::{Reply, Request, Status, VmmState};
use godwit_types::forecast::{SAMPLE_MS_MAX, Survey};
use godwit_types::{ApiError, Bytes, ErrorCode, MigrationId, MigrationKey};

use super::hub::Hub;
use crate::machine::{Machine, StorageMove};
use crate::sandbox::{self, Kind};

/// The machine, and the migration away if one is under way.
pub struct Desk {
    pub(super) machine: Arc<Machine>,
    hub: Arc<Hub>,
    pub(super) starter: Starter,
    listening: Option<SocketAddr>,
    /// Locked while a migration starts, so that its end is seen after its beginning.
    outgoing: Mutex<Option<(MigrationId, Arc<SourceRun>)>>,
    /// Where memory goes once the VM has left.
    keep: Mutex<Option<Keep>>,
    /// Disks that move to other places on this host, or have. Locked behind `outgoing`.
    pub(super) storage: Mutex<Option<Arc<StorageMove>>>,
}

/// A file for the memory of a VM that has left.
pub struct Keep {
    pub file: File,
    /// As many as there were page streams, which the agent has chosen for this host.
    pub threads: usize,
}

impl Desk {
    /// Serves `machine`; `listening` is where an incoming machine waits for its source.
    pub fn new(
        machine: Arc<Machine>,
        hub: Arc<Hub>,
        starter: Starter,
        listening: Option<SocketAddr>,
    ) -> Self {
        let (outgoing, keep, storage) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { machine, hub, starter, listening, outgoing, keep, storage }
    }

    /// The migration away that is under way.
    pub fn outgoing(&self) -> Option<Arc<SourceRun>> {
        self.current().as_ref().map(|(_, run)| Arc::clone(run))
    }

    /// The migration away has ended: there may be another.
    pub fn outgoing_ended(&self) {
        *self.current() = None;
    }

    /// Where the memory of the VM, which has left, shall be kept; if anywhere, and told once.
    pub fn keep(&self) -> Option<Keep> {
        self.keep.lock().expect("no request panics").take()
    }

    /// Serves a request and what came with it. Subscriptions are the server's own business.
    pub fn serve(&self, request: Request, descriptors: Vec<OwnedFd>) -> Reply {
        let done = match request {
            Request::Status => return Reply::Status(Box::new(self.status())),
            Request::Guest => return Reply::Guest(Box::new(self.machine.guest())),
            Request::Survey { sample_ms } => {
                let survey = self.survey(sample_ms);
                return survey
                    .map_or_else(|error| Reply::Error { error }, |survey| Reply::Survey(Box::new(survey)));
            }
            Request::Subscribe => Ok(()),
            Request::PowerButton => self.running().and_then(|()| {
                self.machine.press_power_button().map_err(|error| ApiError::conflict(error.to_string()))
            }),
            Request::Reset => {
                self.running().map(|()| self.machine.doorbell().ring(|pending| pending.reset = true))
            }
            Request::Quit => {
                self.machine.doorbell().ring(|pending| pending.quit = true);
                Ok(())
            }
            Request::Balloon { target } => self.set_balloon(target),
            Request::MigrateOut { migration, destination, address, key, keep, disks, budget } => {
                let mut descriptors = descriptors;
                let file = if keep { descriptors.pop().map(File::from) } else { None };
                let source = self.machine.config().host.clone();
                connections(descriptors).and_then(|(control, pages)| {
                    let secure = secure(key.as_ref())?;
                    let keep = file.map(|file| Keep { file, threads: pages.len() });
                    self.migrate(
                        (keep, &disks),
                        Outgoing { migration, source, destination, address, control, pages, secure, budget },
                    )
                })
            }
            Request::Reconnect { migration, error } => {
                let made = error.map_or_else(|| connections(descriptors), Err);
                self.hub.connected(migration, made.map(|(control, pages)| Connections { control, pages }))
            }
            Request::SetBandwidth { migration, bytes_per_s_max } => {
                self.under_way(migration).and_then(|run| run.set_bandwidth(bytes_per_s_max))
            }
            Request::CancelMigration { migration } => self.under_way(migration).and_then(|run| run.cancel()),
            Request::Storage { migration, order } => return self.storage(migration, order, descriptors),
            Request::Answer { migration, verdict } => self.hub.answer(migration, verdict),
        };
        done.map_or_else(|error| Reply::Error { error }, |()| Reply::Done)
    }

    fn status(&self) -> Status {
        let (state, migration) = self.hub.status();
        let config = self.machine.config();
        let (state, epoch) = state.unwrap_or((VmmState::Paused, config.epoch));
        let (vm, pid, listening) = (config.vm, std::process::id(), self.listening);
        let (balloon, disk_operations) = (self.machine.balloon(), self.machine.disk_operations());
        Status { vm, epoch, pid, state, listening, migration, balloon, disk_operations }
    }

    fn set_balloon(&self, target: Bytes) -> Result<(), ApiError> {
        let memory = self.machine.config().spec.memory;
        if target >= memory {
            let message = format!("the balloon cannot hold {target} of the VM's {memory}");
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        self.machine.set_balloon(target);
        Ok(())
    }

    /// Waits for the survey, on the client's own thread; the work is done by one that may.
    fn survey(&self, sample_ms: u32) -> Result<Survey, ApiError> {
        self.running()?;
        if let Some((migration, _)) = &*self.current() {
            let message =
                format!("the VM is being migrated away, by migration {migration}: it cannot be surveyed");
            return Err(ApiError::conflict(message));
        }
        if !(1..=SAMPLE_MS_MAX).contains(&sample_ms) {
            let message = format!("a survey takes 1 to {SAMPLE_MS_MAX} ms, not {sample_ms}");
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        let machine = Arc::clone(&self.machine);
        let time = Duration::from_millis(sample_ms.into());
        let spawned = self
            .starter
            .run(move || thread::Builder::new().name("survey".into()).spawn(move || machine.survey(time)))?;
        let internal = |message: String| ApiError::new(ErrorCode::Internal, message);
        let survey = spawned.map_err(|error| internal(format!("no thread for the survey: {error}")))?.join();
        let survey = survey.map_err(|_| internal("the survey has panicked".to_owned()))?;
        survey.map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))
    }

    fn migrate(
        &self,
        (keep, disks): (Option<Keep>, &BTreeSet<u32>),
        request: Outgoing,
    ) -> Result<(), ApiError> {
        self.running()?;
        let mut outgoing = self.current();
        if let Some((migration, _)) = &*outgoing {
            return Err(ApiError::conflict(format!(
                "the VM is already being migrated away, by migration {migration}"
            )));
        }
        self.require_storage_still()?;
        let moved = self.machine.move_disks(disks);
        moved.map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
        let migration = request.migration;
        self.hub.migration_begins(migration);
        let (hub, doorbell) = (Arc::clone(&self.hub), Arc::clone(self.machine.doorbell()));
        let (machine, arbiter) = (Arc::clone(&self.machine), Arc::clone(&self.hub));
        let connector = Arc::clone(&self.hub);
        let run = self.starter.run(move || {
            SourceRun::start(
                request,
                machine as _,
                (arbiter as _, connector as _),
                Box::new(move |progress| hub.progress(migration, progress)),
                Box::new(move |outcome| doorbell.ring(|pending| pending.outgoing = Some(outcome))),
            )
        })?;
        *outgoing = Some((migration, Arc::new(run)));
        *self.keep.lock().expect("no request panics") = keep;
        Ok(())
    }

    fn under_way(&self, migration: MigrationId) -> Result<Arc<SourceRun>, ApiError> {
        match &*self.current() {
            Some((current, run)) if *current == migration => Ok(Arc::clone(run)),
            _ => {
                let message = format!("migration {migration} is not under way here");
                Err(ApiError::new(ErrorCode::NotFound, message))
            }
        }
    }

    pub(super) fn current(&self) -> MutexGuard<'_, Option<(MigrationId, Arc<SourceRun>)>> {
        self.outgoing.lock().expect("no request panics")
    }

    /// Only a running VM can be reset, powered off or migrated.
    pub(super) fn running(&self) -> Result<(), ApiError> {
        match self.hub.status().0 {
            Some((VmmState::Running, _)) => Ok(()),
            Some((state, _)) => Err(ApiError::conflict(format!("the VM is {state:?} here, not running"))),
            None => Err(ApiError::conflict("the VM is not running yet")),
        }
    }
}

/// What encrypts a migration's connections, if they are to be encrypted.
pub(crate) fn secure(key: Option<&MigrationKey>) -> Result<Option<Arc<dyn Secure>>, ApiError> {
    let session = key.map(godwit_tls::Session::new).transpose();
    let session = session.map_err(|error| ApiError::new(ErrorCode::Internal, format!("TLS: {error}")))?;
    Ok(session.map(|session| Arc::new(session) as _))
}

/// The control connection, then those of the page streams.
fn connections(descriptors: Vec<OwnedFd>) -> Result<(TcpStream, Vec<TcpStream>), ApiError> {
    let mut streams = descriptors.into_iter().map(TcpStream::from);
    let missing = || ApiError::new(ErrorCode::Invalid, "the request has not brought its connections");
    let control = streams.next().ok_or_else(missing)?;
    Ok((control, streams.collect()))
}

/// A thread that starts the engine of a migration away, whose threads inherit what it may do: those of the control socket
/// may do less.
pub struct Starter(SyncSender<Box<dyn FnOnce() + Send>>);

impl Starter {
    pub fn start() -> io::Result<Self> {
        let (work, orders) = sync_channel::<Box<dyn FnOnce() + Send>>(1);
        thread::Builder::new().name("mig-start".into()).spawn(move || {
            sandbox::enter(Kind::Migration);
            orders.iter().for_each(|order| order());
        })?;
        Ok(Self(work))
    }

    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (done, answer) = sync_channel(1);
        // What it does is quick, and nobody waits who is gone.
        let order = Box::new(move || drop(done.send(work())));
        let sent = self.0.send(order).ok().and_then(|()| answer.recv().ok());
        sent.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the thread that starts migrations has ended"))
    }
}
