//! A VM that stands still, so that a migration is nothing but the moving of its memory.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::driver::{
    Arbiter, Connections, Connector, Incoming, Outgoing, Reach, SourceRun, receive,
};
use godwit_migration::secure::Secure;
use godwit_migration::{
    Absent, Destination, GuestMemory, Loaded, MachineError, Manifest, PageRange, Reclaimed, Section, Source,
};
use godwit_tls::Session;
use godwit_types::control::Question;
use godwit_types::migration::{Budget, MigrationOutcome};
use godwit_types::ownership::{Verdict, Witness};
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, HostName, MigrationId, VmId};
use godwit_vmm::memory::Ram;
use uuid::Uuid;

use crate::error::{BenchError, Result};

const LIMIT: Duration = Duration::from_secs(120);
const PAGE_WORDS: usize = 512;

/// Writes every page, none like another, and none that any codec could shorten.
pub(super) fn fill(ram: &Ram) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut page = [0u8; PAGE_WORDS * 8];
    for range in ram.ranges() {
        for gfn in range.start.0..range.start.0 + range.pages {
            for word in page.chunks_exact_mut(8) {
                // xorshift64 (Marsaglia, 2003)
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            // The page is one of the range's own.
            ram.write(godwit_types::Gfn(gfn), &page).expect("the page is RAM");
        }
    }
}

/// Migrates `from` into memory that nobody has touched.
pub(super) fn migrate(
    from: &Arc<Ram>,
    memory: Bytes,
    streams: u32,
    session: Option<Arc<Session>>,
) -> Result<()> {
    let failed = || BenchError::io("connect to ourselves over TCP");
    let to = Arc::new(Ram::new(memory).map_err(|error| BenchError::Memory(error.to_string()))?);
    let plain = session.is_none();
    let secure = session.map(|session| session as Arc<dyn Secure>);
    let migration = MigrationId(Uuid::from_u128(1));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    let incoming = Incoming { listener, migration, epoch: EPOCH.next(), secure: secure.clone() };
    let arrival = std::thread::spawn(move || receive(incoming, Arc::new(Still(to)), Arc::new(Grants)));
    let connect = || {
        let stream = TcpStream::connect(address).map_err(failed())?;
        // As the agent does.
        godwit_provision::unpace(&stream).map_err(failed()).map(|()| stream)
    };
    let outgoing = Outgoing {
        migration,
        source: host("source"),
        destination: host("destination"),
        address,
        control: connect()?,
        pages: (0..streams).map(|_| connect()).collect::<Result<_>>()?,
        secure,
        budget: Budget { plain, ..Budget::default() },
    };
    let (ended, outcome) = channel();
    let ended = Box::new(move |outcome| drop(ended.send(outcome)));
    let machine = Arc::new(Still(Arc::clone(from)));
    let run =
        SourceRun::start(outgoing, machine, (Arc::new(Grants), Arc::new(Grants)), Box::new(|_| ()), ended);
    let outcome = outcome.recv_timeout(LIMIT);
    drop(run);
    match outcome {
        Ok(MigrationOutcome::Completed { .. }) => {
            let arrived = arrival.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            arrived.map(drop).map_err(|error| BenchError::MigrationFailed(error.message))
        }
        Ok(other) => Err(BenchError::MigrationFailed(format!("{other:?}"))),
        Err(_) => Err(BenchError::Timeout { what: "the end of the migration".into(), limit: LIMIT }),
    }
}

fn host(name: &str) -> HostName {
    // A plain word is a host's name.
    name.parse().expect("a host's name")
}

const EPOCH: Epoch = Epoch(1);

struct Grants;

impl Arbiter for Grants {
    fn ask(&self, _: Question, answer: Box<dyn FnOnce(Verdict) + Send>) {
        answer(Verdict::Granted { epoch: EPOCH.next() });
    }
}

impl Connector for Grants {
    fn connect(&self, _: Reach<'_>, answer: Box<dyn FnOnce(Result<Connections, ApiError>) + Send>) {
        answer(Err(ApiError::new(ErrorCode::Unreachable, "these connections are made once")));
    }
}

struct Still(Arc<Ram>);

impl Source for Still {
    fn manifest(&self) -> Manifest {
        let ranges: Vec<PageRange> = self.0.ranges().to_vec();
        Manifest {
            vm: VmId(Uuid::from_u128(2)),
            epoch: EPOCH,
            spec_json: b"{}".to_vec(),
            ranges,
            disks: Vec::new(),
            cpu: Vec::new(),
        }
    }

    fn blockers(&self) -> Vec<String> {
        Vec::new()
    }

    fn memory(&self) -> &dyn GuestMemory {
        &*self.0
    }

    fn start_dirty_log(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn harvest_dirty(&self, _: &mut PageBitmap) -> Result<(), MachineError> {
        Ok(())
    }

    fn stop_dirty_log(&self) {}

    fn pause(&self) -> Result<Duration, MachineError> {
        Ok(Duration::ZERO)
    }

    fn resume(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn save(&self, _: i64) -> Result<Vec<Section>, MachineError> {
        Ok(Vec::new())
    }

    fn let_go(&self) {}

    fn reclaim(&self, _: MigrationId) -> Result<Reclaimed, MachineError> {
        Ok(Reclaimed::Ours)
    }

    fn hand_over(&self) {}
}

impl Destination for Still {
    fn admit(&self, _: &Manifest) -> Result<(), Vec<String>> {
        Ok(())
    }

    fn memory(&self) -> &dyn GuestMemory {
        &*self.0
    }

    fn can_follow(&self) -> Result<(), String> {
        Err("memory stays with its guest here".into())
    }

    fn await_pages(&self, _: &PageBitmap) -> Result<Arc<dyn Absent>, MachineError> {
        Err(MachineError { step: "waiting for pages".into(), reason: "they never follow here".into() })
    }

    fn load(&self, _: Vec<Section>) -> Result<Loaded, MachineError> {
        Ok(Loaded::default())
    }

    fn take_over(&self, _: MigrationId) -> Witness {
        Witness::None
    }

    fn run(&self, _: Epoch) -> Result<Duration, MachineError> {
        Ok(Duration::ZERO)
    }
}
