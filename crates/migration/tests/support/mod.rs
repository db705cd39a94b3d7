//! A VM without KVM, an arbiter without a manager, and a network that breaks on request.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod absent;
pub mod arbiter;
pub mod disk;
pub mod kept;
pub mod model;
pub mod proxy;
pub mod relay;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use godwit_migration::Tuning;
use godwit_migration::driver::{Connections, Connector, Incoming, Outgoing, Reach, SourceRun, receive_tuned};
use godwit_migration::secure::Secure;
use godwit_types::migration::{Budget, Comparison, MigrationOutcome, MigrationProgress, MigrationReport};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId, MigrationKey};

use arbiter::ModelArbiter;
use model::ModelVm;

/// Longest time that any one attempt may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bounds short enough for tests, long enough for a busy machine.
pub fn tuning() -> Tuning {
    Tuning {
        connect: Duration::from_secs(2),
        accept: Duration::from_millis(1500),
        heartbeat: Duration::from_millis(50),
        peer_silent: Duration::from_millis(800),
        last_words: Duration::from_millis(300),
        switchover: Duration::from_secs(5),
        resumed: Duration::from_millis(800),
        ask_again: Duration::from_millis(20),
        run: Duration::from_millis(500),
        ..Tuning::default()
    }
}

pub fn budget() -> Budget {
    Budget { blackout_ms_max: 60, deadline_ms: 20_000, verify: true, ..Budget::default() }
}

/// Expects that both sides have compared memory, and found it the same.
pub fn expect_verified(report: &MigrationReport) {
    let verified = report.verified.as_ref().expect("memory was compared");
    assert_eq!(verified.memory, Comparison::Same, "{verified:?}");
}

/// Connects again, at once.
struct Redial(u32);

impl Connector for Redial {
    fn connect(
        &self,
        Reach { address, .. }: Reach<'_>,
        answer: Box<dyn FnOnce(Result<Connections, ApiError>) + Send>,
    ) {
        let connect = || TcpStream::connect(address);
        let pages: std::io::Result<Vec<_>> = (0..self.0).map(|_| connect()).collect();
        let connections = pages.and_then(|pages| Ok(Connections { control: connect()?, pages }));
        answer(connections.map_err(|error| ApiError::new(ErrorCode::Unreachable, error.to_string())));
    }
}

/// One attempt to move a VM.
pub struct Attempt {
    pub run: SourceRun,
    pub progress: Receiver<MigrationProgress>,
    outcome: Receiver<MigrationOutcome>,
    arrival: Receiver<Result<Epoch, ApiError>>,
}

impl Attempt {
    /// Starts both sides; `route` is given the destination's address and returns the one that the source connects to.
    pub fn start(
        number: u128,
        vm: &Arc<ModelVm>,
        target: &Arc<ModelVm>,
        arbiter: &Arc<ModelArbiter>,
        (budget, tuning): (Budget, Tuning),
        route: impl FnOnce(SocketAddr) -> SocketAddr,
    ) -> Self {
        let migration = MigrationId(uuid::Uuid::from_u128(number));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = route(listener.local_addr().unwrap());
        let epoch = vm.epoch().next();
        let (arrived, arrival) = channel();
        let key = MigrationKey::from_bytes([number as u8; 32]);
        let session = (!budget.plain).then(|| Arc::new(godwit_tls::Session::new(&key).unwrap()) as _);
        let secure: Option<Arc<dyn Secure>> = session;
        {
            let incoming = Incoming { listener, migration, epoch, secure: secure.clone() };
            let (target, arbiter, tuning) = (Arc::clone(target), Arc::clone(arbiter), tuning.clone());
            thread::spawn(move || {
                let _ = arrived.send(receive_tuned(incoming, target, arbiter, tuning));
            });
        }
        let connect = || TcpStream::connect(address).unwrap();
        let request = Outgoing {
            // In the order that is the harder one for the destination.
            pages: (0..tuning.page_streams).map(|_| connect()).collect(),
            control: connect(),
            migration,
            source: "host-a".parse().unwrap(),
            destination: "host-b".parse().unwrap(),
            address,
            secure,
            budget,
        };
        let (reported, progress) = channel();
        let (ended, outcome) = channel();
        let run = SourceRun::start_tuned(
            request,
            Arc::clone(vm) as _,
            (Arc::clone(arbiter) as _, Arc::new(Redial(tuning.page_streams))),
            Box::new(move |progress| drop(reported.send(progress))),
            Box::new(move |outcome| drop(ended.send(outcome))),
            tuning,
        );
        Self { run, progress, outcome, arrival }
    }

    /// Waits for the end of both sides.
    pub fn end(self) -> (MigrationOutcome, Result<Epoch, ApiError>) {
        let outcome = self.outcome.recv_timeout(PATIENCE).expect("the source ends in bounded time");
        let arrival = self.arrival.recv_timeout(PATIENCE).expect("the destination ends in bounded time");
        (outcome, arrival)
    }

    /// Waits for the end of the source alone.
    pub fn outcome(self) -> MigrationOutcome {
        self.outcome.recv_timeout(PATIENCE).expect("the source ends in bounded time")
    }
}

/// The error of an attempt that failed before the commit.
pub fn failure(outcome: MigrationOutcome) -> ApiError {
    match outcome {
        MigrationOutcome::Failed { error, .. } => error,
        other => panic!("expected a failure, got {other:?}"),
    }
}

impl Attempt {
    /// Waits for the source's end, then, as the manager would, lets the arbiter refuse an attempt that failed.
    pub fn run_to_source_end(
        self,
        arbiter: &ModelArbiter,
        number: u128,
    ) -> (MigrationOutcome, Result<Epoch, ApiError>) {
        let outcome = self.outcome.recv_timeout(PATIENCE).expect("the source ends in bounded time");
        if matches!(outcome, MigrationOutcome::Failed { .. }) {
            arbiter.close(number);
        }
        let arrival = self.arrival.recv_timeout(PATIENCE).expect("the destination ends in bounded time");
        (outcome, arrival)
    }
}
