//! The thin shell around the state machines: threads, sockets, clocks.
//!
//! ```text
//!  source                                            destination
//!  engine thread --- control frames ---------------> control reader --> engine (the caller of `receive`)
//!        ^  jobs     <-------- acks, PREPARED ------      ^
//!        |   v                                            | acks
//!        +- pump i  --- page frames ------------------> sink i --> guest memory, disks that come along
//!             ^      <-- digests of kept memory ----- offer i
//! ```
//!
//! The engine thread calls the VM's methods itself, one after the other, so that they happen in the order in which
//! the state machine decided. All threads and connections exist before the guest is stopped.

mod acceptor;
mod ahead;
mod answer;
mod arriving;
mod contents;
mod durable;
mod ear;
mod flow;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod incoming;
mod inflow;
mod kept_there;
mod link;
mod notifier;
mod offer;
mod outflow;
mod outgoing;
mod pace;
mod page_sets;
mod places;
mod pump;
mod rest;
mod seal;
mod sink;
mod steps;
mod threads;
mod worker;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use godwit_types::control::Question;
use godwit_types::migration::{Budget, MigrationOutcome, MigrationProgress};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, Epoch, HostName, MigrationId};

use crate::machine::{Destination, Source};
use crate::secure::Secure;
use crate::tuning::Tuning;

/// The real time since 1970 when the engine's began: the machine's host's, or this process's if the machine knows no other. Of a
/// few readings the one that took the shortest, since a thread may be held up between two clocks.
fn real_time_at(began: Instant, of_machine: impl Fn() -> Option<Duration>) -> Duration {
    let own = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let reading = |_| {
        let before = began.elapsed();
        let now = of_machine().unwrap_or_else(own);
        let took = began.elapsed() - before;
        (took, now.saturating_sub(before + took / 2))
    };
    (0..READINGS).map(reading).min().map_or(Duration::ZERO, |(_, at)| at)
}

/// Readings of a clock, of which the best is taken.
const READINGS: u32 = 5;
/// Longest time between two ticks of a state machine.
const TICK: Duration = Duration::from_millis(20);
/// Events that may wait for an engine.
const EVENTS_MAX: usize = 256;
/// How long a side that has given up waits for its peer to read why.
const LINGER: Duration = Duration::from_secs(1);

/// The way to the ownership arbiter. `godwit-vmm` passes the question to its agent.
pub trait Arbiter: Send + Sync {
    /// Asks without blocking; `answer` is called once, from any thread, however long it takes. Dropping it uncalled
    /// counts as [`Verdict::Undecided`]: the question is asked again.
    fn ask(&self, question: Question, answer: Box<dyn FnOnce(Verdict) + Send>);
}

/// The way to new connections, of which a source's VMM can open none. `godwit-vmm` asks its agent.
pub trait Connector: Send + Sync {
    /// Asks for new connections of a migration to its destination, without blocking; `answer` is called once, from any
    /// thread, within a bounded time.
    fn connect(&self, to: Reach<'_>, answer: Box<dyn FnOnce(Result<Connections, ApiError>) + Send>);
}

/// Where a source's new connections are to lead.
#[derive(Debug, Clone, Copy)]
pub struct Reach<'a> {
    pub migration: MigrationId,
    pub destination: &'a HostName,
    pub address: SocketAddr,
    /// As many as there were at first.
    pub page_streams: u32,
}

/// New connections: nothing was sent on them yet.
#[derive(Debug)]
pub struct Connections {
    pub control: TcpStream,
    /// One for each page stream.
    pub pages: Vec<TcpStream>,
}

/// What a source is asked to do.
#[derive(Debug)]
pub struct Outgoing {
    pub migration: MigrationId,
    pub source: HostName,
    pub destination: HostName,
    /// Where the connections lead.
    pub address: SocketAddr,
    /// New connections: nothing was sent on them yet.
    pub control: TcpStream,
    /// One for each page stream, 1 to [`PAGE_STREAMS_MAX`](crate::wire::PAGE_STREAMS_MAX).
    pub pages: Vec<TcpStream>,
    /// Encrypts all connections; without it they go in clear. The destination must have been told the same.
    pub secure: Option<Arc<dyn Secure>>,
    pub budget: Budget,
}

/// What a destination is asked to wait for.
#[derive(Debug)]
pub struct Incoming {
    pub listener: TcpListener,
    pub migration: MigrationId,
    /// At which this host will run the VM.
    pub epoch: Epoch,
    /// Encrypts all connections; with it, none goes in clear.
    pub secure: Option<Arc<dyn Secure>>,
}

/// A migration away that is under way.
pub struct SourceRun {
    gate: Arc<gate::Gate>,
    pace: Arc<pace::Pace>,
}

impl SourceRun {
    /// Starts the engine on threads of its own. `progress` is called a few times a second, `ended` once, both from the
    /// engine's threads. When `ended` is called, all other threads of the engine are gone.
    pub fn start(
        request: Outgoing,
        machine: Arc<dyn Source>,
        (arbiter, connector): (Arc<dyn Arbiter>, Arc<dyn Connector>),
        progress: Box<dyn Fn(MigrationProgress) + Send>,
        ended: Box<dyn FnOnce(MigrationOutcome) + Send>,
    ) -> Self {
        Self::start_tuned(request, machine, (arbiter, connector), progress, ended, Tuning::default())
    }

    /// [`SourceRun::start`] with other than the default bounds. There are as many page streams as connections for them.
    pub fn start_tuned(
        request: Outgoing,
        machine: Arc<dyn Source>,
        (arbiter, connector): (Arc<dyn Arbiter>, Arc<dyn Connector>),
        progress: Box<dyn Fn(MigrationProgress) + Send>,
        ended: Box<dyn FnOnce(MigrationOutcome) + Send>,
        mut tuning: Tuning,
    ) -> Self {
        tuning.page_streams = request.pages.len() as u32;
        let gate = Arc::new(gate::Gate::default());
        let pace = Arc::new(pace::Pace::new(request.budget.bandwidth_bytes_per_s_max));
        let agent = outgoing::Agent { arbiter, connector };
        let held = (Arc::clone(&gate), Arc::clone(&pace));
        outgoing::start(request, machine, agent, progress, ended, tuning, held);
        Self { gate, pace }
    }

    /// Changes what it may send while its guest runs, in bytes per second; none is no cap. It holds at once, also for a
    /// stream that waits because of the cap before. An error if it lets nothing through.
    pub fn set_bandwidth(&self, bytes_per_s_max: Option<u64>) -> Result<(), ApiError> {
        outgoing::check_cap(bytes_per_s_max)?;
        self.pace.set(bytes_per_s_max);
        Ok(())
    }

    /// Asks it to stop: it ends as failed, with [`ErrorCode::Cancelled`](godwit_types::ErrorCode::Cancelled) unless
    /// something else had failed before, and the VM runs on here. An error if the commit has already been asked for,
    /// or the migration has ended.
    pub fn cancel(&self) -> Result<(), ApiError> {
        self.gate.cancel()
    }
}

/// Receives one migration, blocking until the VM runs here (`Ok`, with its epoch) or never will.
///
/// Dropping the listener's process ends it.
pub fn receive(
    request: Incoming,
    machine: Arc<dyn Destination>,
    arbiter: Arc<dyn Arbiter>,
) -> Result<Epoch, ApiError> {
    receive_tuned(request, machine, arbiter, Tuning::default())
}

/// [`receive`] with other than the default bounds.
pub fn receive_tuned(
    request: Incoming,
    machine: Arc<dyn Destination>,
    arbiter: Arc<dyn Arbiter>,
    tuning: Tuning,
) -> Result<Epoch, ApiError> {
    incoming::receive(request, machine, arbiter, tuning)
}
