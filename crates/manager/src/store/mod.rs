//! The store: one SQLite file, used by one thread, one transaction for each job.
//!
//! Everything the manager knows lies here; what is held elsewhere (who listens, which task is being driven) follows
//! from it. A job is a closure that runs inside a transaction, which is rolled back when the closure fails.

mod codec;
mod decisions;
mod demand;
mod events;
mod hosts;
mod migrations;
mod moved_disks;
mod ownership;
mod rulebook;
mod schema;
mod storage_moves;
mod tasks;
mod vms;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use godwit_types::{ApiError, ErrorCode};
use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use decisions::StepChange;
pub(crate) use events::NewEvent;
pub(crate) use hosts::{HostRow, InMaintenance};
pub(crate) use moved_disks::Left;
pub(crate) use storage_moves::{StorageMove, StorageState};
pub use vms::Power;
pub(crate) use vms::VmRow;

/// Jobs that wait for the store's thread.
const JOBS_MAX: usize = 256;
/// Length of the write-ahead log at which it is copied into the file, in pages.
const LOG_PAGES: u32 = 1_000;
/// Prepared statements that the connection keeps.
const STATEMENTS_MAX: usize = 64;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create the state directory {path}; check that its parent exists and is writable")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot open the store {path}; check that no other manager uses it and that it is writable")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the store has version {found}, and this version of Godwit knows up to {known}; run the version that wrote it, or a newer one"
    )]
    Newer { found: usize, known: usize },
    #[error("cannot start the store's thread")]
    Thread { source: std::io::Error },
    #[error("the store's thread has ended; restart the manager and read its log for the reason")]
    Stopped,
    #[error("a decision in the store cannot be packed or unpacked: {source}")]
    Packing { source: std::io::Error },
    #[error("the store cannot be read or written; check the disk under the state directory")]
    Sql(#[from] rusqlite::Error),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = match &error {
            StoreError::Sql(source) => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        tracing::error!("{message}");
        Self::new(ErrorCode::Internal, message)
    }
}

/// Whether a transaction must survive a power cut, or only a crash of the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// On the disk before the caller goes on.
    Durable,
    /// In the file, and on the disk with the next durable one.
    Relaxed,
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// A handle to the store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    jobs: mpsc::Sender<Option<Job>>,
    events: watch::Receiver<u64>,
}

impl Store {
    /// Opens the store in the directory `dir`, or makes it. The handle to join is returned beside it.
    pub(crate) fn open(dir: &Path) -> Result<(Self, JoinHandle<()>), StoreError> {
        std::fs::create_dir_all(dir)
            .map_err(|source| StoreError::Directory { path: dir.to_owned(), source })?;
        let path = dir.join("store.sqlite");
        let mut sql = schema::open(&path)?;
        let last_event = events::last_sequence(&mut sql)?;
        let (jobs, mut queue) = mpsc::channel::<Option<Job>>(JOBS_MAX);
        let (news, events) = watch::channel(last_event);
        let mut worker = Worker { sql, durability: Durability::Durable, news };
        let work = move || {
            while let Some(Some(job)) = queue.blocking_recv() {
                job(&mut worker);
            }
        };
        let thread = std::thread::Builder::new().name("store".into()).spawn(work);
        let thread = thread.map_err(|source| StoreError::Thread { source })?;
        Ok((Self { jobs, events }, thread))
    }

    /// Runs `job` in a transaction that is on the disk when this returns.
    pub(crate) async fn write<T, F>(&self, job: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Tx) -> Result<T, ApiError> + Send + 'static,
        T: Send + 'static,
    {
        self.run(Durability::Durable, job).await
    }

    /// Runs `job` in a transaction whose writes a power cut may undo, such as a heartbeat.
    pub(crate) async fn note<T, F>(&self, job: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Tx) -> Result<T, ApiError> + Send + 'static,
        T: Send + 'static,
    {
        self.run(Durability::Relaxed, job).await
    }

    /// Runs `job`, which only reads.
    pub(crate) async fn read<T, F>(&self, job: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Tx) -> Result<T, ApiError> + Send + 'static,
        T: Send + 'static,
    {
        self.run(Durability::Relaxed, job).await
    }

    /// The sequence number of the last event, and word of new ones.
    pub(crate) fn last_event(&self) -> watch::Receiver<u64> {
        self.events.clone()
    }

    /// Ends the thread after the jobs that wait. Later jobs fail.
    pub(crate) async fn close(&self) {
        // Fails only when the thread has ended already.
        let _ = self.jobs.send(None).await;
    }

    async fn run<T, F>(&self, durability: Durability, job: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Tx) -> Result<T, ApiError> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            // The asker may be gone; the job is done all the same.
            let _ = reply.send(worker.transact(durability, job));
        });
        self.jobs.send(Some(job)).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

/// What the store's thread holds.
struct Worker {
    sql: Connection,
    durability: Durability,
    news: watch::Sender<u64>,
}

impl Worker {
    fn transact<T>(
        &mut self,
        durability: Durability,
        job: impl FnOnce(&Tx) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.require(durability)?;
        let tx = Tx { sql: self.sql.transaction().map_err(StoreError::Sql)?, last_event: Cell::new(None) };
        let done = job(&tx)?;
        let last_event = tx.last_event.get();
        tx.sql.commit().map_err(StoreError::Sql)?;
        if let Some(sequence) = last_event {
            self.news.send_replace(sequence);
        }
        Ok(done)
    }

    fn require(&mut self, durability: Durability) -> Result<(), StoreError> {
        if self.durability != durability {
            // Somebody waits for a durable one, perhaps with a guest stopped: others tidy up the log.
            let (synchronous, tidy_after_pages) = match durability {
                Durability::Durable => ("FULL", 0),
                Durability::Relaxed => ("NORMAL", LOG_PAGES),
            };
            self.sql.pragma_update(None, "synchronous", synchronous)?;
            self.sql.pragma_update(None, "wal_autocheckpoint", tidy_after_pages)?;
            self.durability = durability;
        }
        Ok(())
    }
}

/// A transaction. The tables' own files add their functions.
pub(crate) struct Tx<'a> {
    sql: Transaction<'a>,
    last_event: Cell<Option<u64>>,
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
