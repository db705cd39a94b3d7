//! The process: builds the machine, serves the control socket, and sees to what happens until the VM ends here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use godwit_migration::MachineError;
use godwit_migration::driver::{self, Arbiter, Outgoing, SourceRun};
use godwit_types::control::{Reply, Request, Role, Status, VmmConfig, VmmState};
use godwit_types::migration::MigrationOutcome;
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId};

use crate::control::Handler;
use crate::control::hub::Hub;
use crate::control::server::Server;
use crate::machine::{BuildError, Machine, Observer};

/// How long a subscriber may take to read the last words.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);
/// How long the process stays to tell how a migration has ended, if nobody is subscribed: an agent's restart.
const LINGER_MAX: Duration = Duration::from_secs(30);
const LINGER_STEP: Duration = Duration::from_millis(50);

/// Why the process ends in failure.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("cannot listen for the migration on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error("cannot serve the control socket {0}")]
    Control(String, #[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("the machine cannot go on: {0}")]
    Broken(String),
    #[error("the VM will not arrive here: {0}")]
    NotArrived(ApiError),
}

/// Runs a VM until it ends here.
pub fn run(config: VmmConfig) -> Result<(), VmmError> {
    let hub = Arc::new(Hub::default());
    let listener = match &config.role {
        Role::Boot => None,
        Role::Incoming { listen, .. } => Some(TcpListener::bind(listen).map_err(|error| VmmError::Listen(*listen, error))?),
    };
    let machine = Machine::build(config, Arc::clone(&hub) as _)?;
    let listening = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let (state, epoch) = machine.state();
    match listener {
        None => machine.start()?,
        Some(listener) => {
            hub.state(state, epoch);
            receive(listener, &machine, &hub)?;
        }
    }
    let desk = Arc::new(Desk { machine: Arc::clone(&machine), hub: Arc::clone(&hub), listening, outgoing: Mutex::default() });
    quit_on_signals(&machine)?;
    let control = machine.config().control.clone();
    let served = Arc::clone(&desk);
    let handler: Arc<Handler> = Arc::new(move |request| served.serve(request));
    let server = Server::start(&control, hub, handler)
        .map_err(|error| VmmError::Control(control.display().to_string(), error))?;
    let ended = desk.supervise();
    machine.stop();
    machine.close_console();
    server.close(LAST_WORDS_MAX);
    ended
}

/// Receives the migration on a thread of its own.
fn receive(listener: TcpListener, machine: &Arc<Machine>, hub: &Arc<Hub>) -> Result<(), VmmError> {
    let Role::Incoming { migration, .. } = machine.config().role else { return Ok(()) };
    let epoch = machine.config().epoch;
    let (machine, arbiter) = (Arc::clone(machine), Arc::clone(hub) as Arc<dyn Arbiter>);
    let receiver = move || {
        let arrived = driver::receive(listener, migration, epoch, Arc::clone(&machine) as _, arbiter);
        machine.doorbell().ring(|pending| pending.incoming = Some(arrived));
    };
    thread::Builder::new().name("incoming".into()).spawn(receiver).map_err(VmmError::Thread)?;
    Ok(())
}

/// SIGTERM and SIGINT end the VM as [`Request::Quit`] does. They are blocked in all threads, which `main` sees to.
fn quit_on_signals(machine: &Arc<Machine>) -> Result<(), VmmError> {
    let doorbell = Arc::clone(machine.doorbell());
    let waiter = move || {
        let Ok(signals) = vmm_sys_util::signal::create_sigset(&QUIT_SIGNALS) else { return };
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right types.
        while unsafe { libc::sigwait(&signals, &mut signal) } == 0 {
            doorbell.ring(|pending| pending.quit = true);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(waiter).map_err(VmmError::Thread)?;
    Ok(())
}

/// The signals that end the VM. To be blocked before the first thread starts.
pub const QUIT_SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// Serves requests and events.
struct Desk {
    machine: Arc<Machine>,
    hub: Arc<Hub>,
    listening: Option<SocketAddr>,
    /// The migration away that is under way. Locked while one starts, so that its end comes after its beginning.
    outgoing: Mutex<Option<(MigrationId, Arc<SourceRun>)>>,
}

impl Desk {
    /// Sees to events until the VM ends here.
    fn supervise(&self) -> Result<(), VmmError> {
        loop {
            let mut pending = self.machine.doorbell().wait();
            if let Some(reason) = pending.failed {
                return Err(VmmError::Broken(reason));
            }
            if let Some(outcome) = pending.outgoing.take()
                && self.outgoing_ended(outcome)
            {
                return Ok(());
            }
            if let Some(arrived) = pending.incoming.take() {
                self.incoming_ended(arrived)?;
            }
            if pending.quit || pending.power_off {
                return Ok(());
            }
            // Refused while the VM is paused for a switchover, which sees to it itself.
            if pending.reset && self.hub.status().0.is_some_and(|(state, _)| state == VmmState::Running) {
                self.machine.reset()?;
            }
        }
    }

    /// Tells how the migration away has ended; true if the VM has left.
    fn outgoing_ended(&self, outcome: MigrationOutcome) -> bool {
        *self.outgoing.lock().expect("no request panics") = None;
        let left = !matches!(outcome, MigrationOutcome::Failed { .. });
        self.hub.migration_ended(outcome);
        if left {
            self.linger();
        }
        left
    }

    fn incoming_ended(&self, arrived: Result<Epoch, ApiError>) -> Result<(), VmmError> {
        let Role::Incoming { migration, .. } = self.machine.config().role else { return Ok(()) };
        match arrived {
            Ok(_) => self.hub.arrived(migration),
            Err(error) => {
                self.hub.incoming_failed(migration, error.clone());
                self.linger();
                return Err(VmmError::NotArrived(error));
            }
        }
        Ok(())
    }

    /// Waits until somebody has been told the last word. [`Request::Quit`] and signals end the wait.
    fn linger(&self) {
        let end = Instant::now() + LINGER_MAX;
        while !self.hub.told() && !self.machine.doorbell().quitting() && Instant::now() < end {
            thread::sleep(LINGER_STEP);
        }
    }

    fn serve(&self, request: Request) -> Reply {
        let done = match request {
            Request::Status => return Reply::Status(Box::new(self.status())),
            Request::Subscribe => Ok(()),
            Request::PowerButton => {
                self.running().and_then(|()| self.machine.press_power_button().map_err(|error| conflict(error.to_string())))
            }
            Request::Reset => self.running().map(|()| self.machine.doorbell().ring(|pending| pending.reset = true)),
            Request::Quit => {
                self.machine.doorbell().ring(|pending| pending.quit = true);
                Ok(())
            }
            Request::Balloon { target } => self.set_balloon(target),
            Request::MigrateOut { migration, destination, address, budget } => {
                let source = self.machine.config().host.clone();
                self.migrate(Outgoing { migration, source, destination, address, budget })
            }
            Request::CancelMigration { migration } => self.cancel(migration),
            Request::Answer { migration, verdict } => self.hub.answer(migration, verdict),
        };
        done.map_or_else(|error| Reply::Error { error }, |()| Reply::Done)
    }

    fn status(&self) -> Status {
        let (state, migration) = self.hub.status();
        let config = self.machine.config();
        let (state, epoch) = state.unwrap_or((VmmState::Paused, config.epoch));
        let (vm, pid, listening) = (config.vm, std::process::id(), self.listening);
        Status { vm, epoch, pid, state, listening, migration, balloon: self.machine.balloon() }
    }

    fn set_balloon(&self, target: godwit_types::Bytes) -> Result<(), ApiError> {
        let memory = self.machine.config().spec.memory;
        if target >= memory {
            let message = format!("the balloon cannot hold {target} of the VM's {memory}");
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        self.machine.set_balloon(target);
        Ok(())
    }

    fn migrate(&self, request: Outgoing) -> Result<(), ApiError> {
        self.running()?;
        let mut outgoing = self.outgoing.lock().expect("no request panics");
        if let Some((migration, _)) = &*outgoing {
            return Err(conflict(format!("the VM is already being migrated away, by migration {migration}")));
        }
        let migration = request.migration;
        self.hub.migration_begins(migration);
        let (hub, doorbell) = (Arc::clone(&self.hub), Arc::clone(self.machine.doorbell()));
        let run = SourceRun::start(
            request,
            Arc::clone(&self.machine) as _,
            Arc::clone(&self.hub) as _,
            Box::new(move |progress| hub.progress(migration, progress)),
            Box::new(move |outcome| doorbell.ring(|pending| pending.outgoing = Some(outcome))),
        );
        *outgoing = Some((migration, Arc::new(run)));
        Ok(())
    }

    fn cancel(&self, migration: MigrationId) -> Result<(), ApiError> {
        let run = match &*self.outgoing.lock().expect("no request panics") {
            Some((current, run)) if *current == migration => Arc::clone(run),
            _ => {
                let message = format!("migration {migration} is not under way here");
                return Err(ApiError::new(ErrorCode::NotFound, message));
            }
        };
        run.cancel()
    }

    /// Only a running VM can be reset, powered off or migrated.
    fn running(&self) -> Result<(), ApiError> {
        match self.hub.status().0 {
            Some((VmmState::Running, _)) => Ok(()),
            Some((state, _)) => Err(conflict(format!("the VM is {state:?} here, not running"))),
            None => Err(conflict("the VM is not running yet".into())),
        }
    }
}

fn conflict(message: String) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message)
}
