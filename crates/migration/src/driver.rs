//! The thin shell around the state machines: threads, sockets, clocks.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use godwit_types::control::Question;
use godwit_types::migration::{Budget, MigrationOutcome, MigrationProgress};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, Epoch, HostName, MigrationId};

use crate::machine::{Destination, Source};

/// The way to the ownership arbiter. `godwit-vmm` passes the question to its agent.
pub trait Arbiter: Send + Sync {
    /// Asks without blocking; `answer` is called once, from any thread, however long it takes.
    fn ask(&self, question: Question, answer: Box<dyn FnOnce(Verdict) + Send>);
}

/// What a source is asked to do.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub migration: MigrationId,
    pub source: HostName,
    pub destination: HostName,
    pub address: SocketAddr,
    pub budget: Budget,
}

/// A migration away that is under way.
pub struct SourceRun {}

impl SourceRun {
    /// Starts the engine on threads of its own. `progress` is called a few times a second, `ended` once, both from the
    /// engine's threads.
    pub fn start(
        _request: Outgoing,
        _machine: Arc<dyn Source>,
        _arbiter: Arc<dyn Arbiter>,
        _progress: Box<dyn Fn(MigrationProgress) + Send>,
        _ended: Box<dyn FnOnce(MigrationOutcome) + Send>,
    ) -> Self {
        unimplemented!()
    }

    /// Asks it to stop. An error if the commit has already been asked for.
    pub fn cancel(&self) -> Result<(), ApiError> {
        unimplemented!()
    }
}

/// Receives one migration, blocking until the VM runs here (`Ok`, with its epoch) or never will.
///
/// Dropping the listener's process ends it; `epoch` is the one at which this host will run the VM.
pub fn receive(
    _listener: TcpListener,
    _migration: MigrationId,
    _epoch: Epoch,
    _machine: Arc<dyn Destination>,
    _arbiter: Arc<dyn Arbiter>,
) -> Result<Epoch, ApiError> {
    unimplemented!()
}
