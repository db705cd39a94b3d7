//! The process: confines itself, builds the machine, serves the control socket, and sees to what happens until the VM ends here.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use godwit_migration::MachineError;
use godwit_migration::driver::{self, Arbiter, Incoming};
use godwit_provision::listen;
use godwit_types::control::{Descriptors, Role, VmmConfig, VmmState};
use godwit_types::migration::MigrationOutcome;
use godwit_types::{ApiError, Epoch};

use crate::control::Handler;
use crate::control::desk::{Desk, Keep, Starter, secure};
use crate::control::hub::Hub;
use crate::control::server::Server;
use crate::machine::{BuildError, Machine, Observer as _, Parts};
use crate::memory::Userfault;
use crate::sandbox::{self, Kind, SandboxError};

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
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("cannot serve the {0}")]
    Serve(&'static str, #[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("the machine cannot go on: {0}")]
    Broken(String),
    #[error("the VM will not arrive here: {0}")]
    NotArrived(ApiError),
}

/// Runs a VM until it ends here, with what the process was given.
pub fn run(config: VmmConfig, given: Descriptors<OwnedFd>) -> Result<(), VmmError> {
    let Descriptors {
        kvm,
        kernel,
        initrd,
        disks,
        taps,
        control,
        console,
        console_log,
        migration,
        userfault,
        kept,
        cgroup,
    } = given;
    // Served only once the machine stands: who connects before waits, and learns at once if it never will.
    let control = listen(control).map_err(|error| VmmError::Serve("control socket", error))?;
    let console = listen(console).map_err(|error| VmmError::Serve("console", error))?;
    let listener = migration.map(TcpListener::from);
    let userfault = match (&listener, userfault) {
        (None, _) => Err("the VM does not arrive here".to_owned()),
        (Some(_), device) => Userfault::open(device).map_err(|error| no_userfault(&error)),
    };
    let not_arrived = kept.as_ref().map(OwnedFd::try_clone).transpose();
    let not_arrived = not_arrived.map_err(|error| VmmError::Serve("kept memory", error))?;
    sandbox::confine(config.user, cgroup)?;
    let hub = Arc::new(Hub::default());
    let parts = Parts { kvm, kernel, initrd, disks, taps, console, console_log, userfault, kept };
    let machine = Machine::build(config, parts, Arc::clone(&hub) as _)?;
    let listening = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let (state, epoch) = machine.state();
    match listener {
        None => machine.start()?,
        Some(listener) => {
            hub.state(state, epoch);
            receive(listener, &machine, &hub)?;
        }
    }
    let starter = Starter::start().map_err(VmmError::Thread)?;
    let desk = Arc::new(Desk::new(Arc::clone(&machine), Arc::clone(&hub), starter, listening));
    quit_on_signals(&machine)?;
    let served = Arc::clone(&desk);
    let handler: Arc<Handler> = Arc::new(move |request, descriptors| served.serve(request, descriptors));
    let server = Server::start(control, Arc::clone(&hub), handler).map_err(VmmError::Thread)?;
    sandbox::enter(Kind::Supervisor);
    let not_arrived = not_arrived.map(|file| Keep { file: file.into(), threads: 1 });
    let supervisor = Supervisor { machine, hub, desk, not_arrived };
    let ended = supervisor.supervise();
    supervisor.abandon_outgoing();
    let machine = &supervisor.machine;
    supervisor.release_source();
    machine.stop();
    machine.close_console();
    server.close(LAST_WORDS_MAX);
    ended
}

/// Why memory cannot follow a guest to this host.
pub(crate) fn no_userfault(error: &io::Error) -> String {
    format!(
        "this host gives no userfaultfd that sees the kernel's faults ({error}); make /dev/userfaultfd available to its agent"
    )
}

/// Receives the migration on a thread of its own.
fn receive(listener: TcpListener, machine: &Arc<Machine>, hub: &Arc<Hub>) -> Result<(), VmmError> {
    let Role::Incoming { migration, key, .. } = &machine.config().role else { return Ok(()) };
    let (migration, key, epoch) = (*migration, key.clone(), machine.config().epoch);
    let (machine, arbiter) = (Arc::clone(machine), Arc::clone(hub) as Arc<dyn Arbiter>);
    let receiver = move || {
        sandbox::enter(Kind::Migration);
        let arrived = secure(key.as_ref()).and_then(|secure| {
            let request = Incoming { listener, migration, epoch, secure };
            driver::receive(request, Arc::clone(&machine) as _, arbiter)
        });
        machine.doorbell().ring(|pending| pending.incoming = Some(arrived));
    };
    thread::Builder::new().name("incoming".into()).spawn(receiver).map_err(VmmError::Thread)?;
    Ok(())
}

/// SIGTERM and SIGINT end the VM as [`Request::Quit`] does. They are blocked in all threads, which `main` sees to.
fn quit_on_signals(machine: &Arc<Machine>) -> Result<(), VmmError> {
    let doorbell = Arc::clone(machine.doorbell());
    let waiter = move || {
        sandbox::enter(Kind::Supervisor);
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

/// Sees to what happens to the machine.
struct Supervisor {
    machine: Arc<Machine>,
    hub: Arc<Hub>,
    desk: Arc<Desk>,
    /// Where memory goes if the VM does not arrive.
    not_arrived: Option<Keep>,
}

impl Supervisor {
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
        self.desk.outgoing_ended();
        let left = outcome.has_left();
        self.hub.migration_ended(outcome);
        if left {
            self.keep(self.desk.keep().as_ref());
            self.linger();
        }
        left
    }

    /// Before the VM ends here for another reason: lets a migration away end and tells how.
    fn abandon_outgoing(&self) {
        let Some(run) = self.desk.outgoing() else { return };
        // Refused once the commit was asked for: then the answer, and not this process, decides where the VM runs.
        if run.cancel().is_ok()
            && let Some(outcome) = self.machine.doorbell().wait_outgoing(LAST_WORDS_MAX)
        {
            self.hub.migration_ended(outcome);
        }
    }

    /// Before the VM ends here: its source, which may still have part of its memory, is told that nobody needs it.
    fn release_source(&self) {
        if self.machine.forget_absent() {
            self.machine.doorbell().wait_incoming(LAST_WORDS_MAX);
        }
    }

    fn incoming_ended(&self, arrived: Result<Epoch, ApiError>) -> Result<(), VmmError> {
        let Role::Incoming { migration, .. } = self.machine.config().role else { return Ok(()) };
        match arrived {
            Ok(_) => {
                self.hub.arrived(migration);
                self.machine.forget_kept();
            }
            Err(error) => {
                self.hub.incoming_failed(migration, error.clone());
                self.keep(self.not_arrived.as_ref());
                self.linger();
                return Err(VmmError::NotArrived(error));
            }
        }
        Ok(())
    }

    /// Moves memory to where the agent keeps it for the VM's return, unless it wants the end of this process sooner.
    fn keep(&self, keep: Option<&Keep>) {
        let Some(Keep { file, threads }) = keep else { return };
        let stop = || self.machine.doorbell().quitting();
        if let Err(error) = self.machine.keep_memory(file, *threads, stop) {
            tracing::warn!("not all of memory is kept: {error}");
        }
    }

    /// Waits until somebody has been told the last word. [`Request::Quit`] and signals end the wait.
    fn linger(&self) {
        let end = Instant::now() + LINGER_MAX;
        while !self.hub.told() && !self.machine.doorbell().quitting() && Instant::now() < end {
            thread::sleep(LINGER_STEP);
        }
    }
}
