//! Disks that move to other places on their host: while the guest runs, or of a VM that does not run (see [`crate::copier`]).
//!
//! ```text
//!  start: mirrors of all --> a thread copies them, one after the other --all in sync--> hold --> switch: of all
//!                                       |                                                 |
//!                                       '--------------- failure, cancel -----------------'---> no mirrors
//! ```
//!
//! What happens to a disk's requests meanwhile is the disk's own business; see [`crate::devices::disk`].

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use godwit_types::control::{DiskBacking, DiskDescriptors};
use godwit_types::storage::{StoragePhase, StorageProgress, StorageStatus};
use godwit_types::vm::{DatastorePath, VmSpec};
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, MigrationId};

use super::{Life, Machine};
use crate::devices::disk::{Copied, Disk, MirrorError};

/// Bytes that are copied at a time, while the guest's writes wait.
const CHUNK_BYTES: usize = 256 << 10;
/// What is copied before it is made durable, so that no flush takes long and nobody who writes is made to wait for it: 32 MiB.
const UNFLUSHED_MAX: u64 = 32 << 20;
/// Bytes in which it is looked at a time for what a disk holds: 1 GiB.
const LOOK_BYTES: u64 = 1 << 30;
/// Longest sleep of a copy that is held back, so that it ends soon when it is cancelled.
const NAP_MAX: Duration = Duration::from_millis(50);

/// Where a disk goes.
pub struct Target {
    /// Its number among the VM's.
    pub index: u32,
    pub image: DatastorePath,
    pub backing: DiskBacking,
    pub files: DiskDescriptors<OwnedFd>,
}

/// Disks on their way.
pub struct StorageMove {
    migration: MigrationId,
    /// Each with its number among the VM's.
    disks: Vec<(u32, Arc<Disk>)>,
    began: Instant,
    bytes_per_s_max: Option<u64>,
    /// What the disks hold, as far as it has been counted, and what of that was copied.
    held: AtomicU64,
    copied: AtomicU64,
    stop: AtomicBool,
    end: Mutex<End>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Open,
    Switched,
    Failed(ApiError),
}

impl Machine {
    /// Begins to move disks of the running machine; see [`StorageMove::begin`].
    pub fn move_storage(
        &self,
        migration: MigrationId,
        targets: Vec<Target>,
        bytes_per_s_max: Option<u64>,
    ) -> Result<Arc<StorageMove>, ApiError> {
        let condition = self.condition();
        if condition.life != Life::Running {
            return Err(ApiError::conflict(format!("the VM is {:?}, not running", condition.life)));
        }
        let with_disk = |target: Target| match self.pci.disks().get(target.index as usize) {
            Some(block) => Ok((block.device().shared_disk(), target)),
            None => Err(failed(target.index, &MirrorError::Ended("the VM has no such disk".into()))),
        };
        let moving = targets.into_iter().map(with_disk).collect::<Result<_, _>>()?;
        StorageMove::begin(migration, condition.epoch, moving, bytes_per_s_max)
    }

    /// The VM's specification, with its disks where they are now.
    pub(super) fn spec(&self) -> VmSpec {
        let mut spec = self.config.spec.clone();
        for (disk, block) in spec.disks.iter_mut().zip(self.pci.disks()) {
            if let Some(image) = block.device().disk().moved_to() {
                disk.image = image;
            }
        }
        spec
    }
}

impl StorageMove {
    /// Begins to move open disks, whose locks are held at the epoch; all of them or none. To be called on a thread whose
    /// threads may use files.
    pub fn begin(
        migration: MigrationId,
        epoch: Epoch,
        moving: Vec<(Arc<Disk>, Target)>,
        bytes_per_s_max: Option<u64>,
    ) -> Result<Arc<Self>, ApiError> {
        let mut disks: Vec<(u32, Arc<Disk>)> = Vec::new();
        for (disk, Target { index, image, backing, files }) in moving {
            if let Err(error) = disk.mirror(image, backing, files, epoch) {
                // This one may have a mirror of another's, which is not ended by this.
                disks.iter().for_each(|(_, disk)| disk.end_mirror());
                return Err(failed(index, &error));
            }
            disks.push((index, disk));
        }
        let running = Arc::new(Self {
            migration,
            disks,
            began: Instant::now(),
            bytes_per_s_max,
            held: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            end: Mutex::new(End::Open),
        });
        let copier = Arc::clone(&running);
        let spawned = thread::Builder::new().name("storage".into()).spawn(move || copier.copy());
        spawned.map_err(|error| {
            running.end_all();
            ApiError::new(ErrorCode::Internal, format!("no thread to copy disks: {error}"))
        })?;
        Ok(running)
    }

    pub fn migration(&self) -> MigrationId {
        self.migration
    }

    /// Whether its disks have two images.
    pub fn is_open(&self) -> bool {
        *self.end() == End::Open
    }

    /// How it gets on.
    pub fn status(&self) -> StorageStatus {
        let elapsed = self.began.elapsed();
        let (held, copied) = (self.held.load(Relaxed), self.copied.load(Relaxed));
        let (phase, ended) = match self.end().clone() {
            End::Switched => (StoragePhase::Switched, None),
            End::Failed(error) => (StoragePhase::Copying, Some(error)),
            End::Open => match self.phase() {
                Ok(phase) => (phase, None),
                Err(error) => (StoragePhase::Copying, Some(error)),
            },
        };
        let progress = StorageProgress {
            phase,
            copied: Bytes(copied),
            remaining: Bytes(held.saturating_sub(copied)),
            bytes_per_s: (copied as f64 / elapsed.as_secs_f64().max(1e-3)) as u64,
            elapsed_ms: elapsed.as_millis() as u64,
        };
        StorageStatus { migration: self.migration, progress, ended }
    }

    /// See [`StorageOrder::Hold`](godwit_types::control::StorageOrder::Hold).
    pub fn hold(&self) -> Result<(), ApiError> {
        let end = self.end();
        self.require_open(&end)?;
        self.each(Disk::hold_mirror)
    }

    /// See [`StorageOrder::Switch`](godwit_types::control::StorageOrder::Switch).
    pub fn switch(&self) -> Result<(), ApiError> {
        let mut end = self.end();
        if *end == End::Switched {
            return Ok(());
        }
        self.require_open(&end)?;
        if self.phase()? != StoragePhase::Held {
            return Err(ApiError::conflict("the disks are not held in sync"));
        }
        self.each(Disk::switch)?;
        *end = End::Switched;
        Ok(())
    }

    /// See [`StorageOrder::Cancel`](godwit_types::control::StorageOrder::Cancel).
    pub fn cancel(&self) -> Result<(), ApiError> {
        let mut end = self.end();
        if *end == End::Switched {
            return Err(ApiError::conflict("the disks have moved already"));
        }
        self.stop.store(true, Relaxed);
        self.end_all();
        if *end == End::Open {
            *end = End::Failed(ApiError::new(ErrorCode::Cancelled, "the move was cancelled"));
        }
        Ok(())
    }

    /// Of the disk that is the furthest behind.
    fn phase(&self) -> Result<StoragePhase, ApiError> {
        let phases = self.disks.iter().map(|(_, disk)| {
            disk.mirror_phase().map_err(|error| ApiError::new(ErrorCode::Failed, error.to_string()))
        });
        let phases: Vec<StoragePhase> = phases.collect::<Result<_, _>>()?;
        Ok(phases.into_iter().min().unwrap_or(StoragePhase::InSync))
    }

    fn require_open(&self, end: &End) -> Result<(), ApiError> {
        match end {
            End::Open => Ok(()),
            End::Switched => Err(ApiError::conflict("the disks have moved already")),
            End::Failed(error) => Err(error.clone()),
        }
    }

    fn each(&self, order: impl Fn(&Disk) -> Result<(), MirrorError>) -> Result<(), ApiError> {
        self.disks.iter().try_for_each(|(index, disk)| order(disk).map_err(|error| failed(*index, &error)))
    }

    fn end_all(&self) {
        self.disks.iter().for_each(|(_, disk)| disk.end_mirror());
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that copies.
    fn copy(&self) {
        for (_, disk) in &self.disks {
            let copied = self.count(disk).and_then(|()| self.copy_disk(disk));
            if let Err(error) = copied {
                if !self.stop.load(Relaxed) {
                    tracing::warn!("disks do not move: {error}");
                    let mut end = self.end();
                    if *end == End::Open {
                        self.end_all();
                        *end = End::Failed(ApiError::new(ErrorCode::Failed, error.to_string()));
                    }
                }
                return;
            }
        }
    }

    /// Counts what the disk holds.
    fn count(&self, disk: &Disk) -> Result<(), MirrorError> {
        let mut from = 0;
        while from < disk.bytes() && !self.stop.load(Relaxed) {
            let end = disk.bytes().min(from + LOOK_BYTES);
            let held = disk.held(from, end).map_err(|error| MirrorError::Ended(error.to_string()))?;
            self.held.fetch_add(held, Relaxed);
            from = end;
        }
        Ok(())
    }

    fn copy_disk(&self, disk: &Disk) -> Result<(), MirrorError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut unflushed = 0;
        while let Copied::Bytes(bytes) = disk.copy_some(&mut buffer)? {
            unflushed += bytes;
            if unflushed >= UNFLUSHED_MAX {
                disk.settle_mirror()?;
                unflushed = 0;
            }
            self.copied.fetch_add(bytes, Relaxed);
            self.keep_pace();
        }
        disk.settle_mirror()
    }

    /// Waits until what was copied is no more than the rate allows.
    fn keep_pace(&self) {
        let Some(rate) = self.bytes_per_s_max else { return };
        while !self.stop.load(Relaxed) {
            let due = Duration::from_secs_f64(self.copied.load(Relaxed) as f64 / rate.max(1) as f64);
            let early = due.saturating_sub(self.began.elapsed());
            if early.is_zero() {
                return;
            }
            thread::sleep(early.min(NAP_MAX));
        }
    }
}

fn failed(index: u32, error: &MirrorError) -> ApiError {
    let code = match error {
        MirrorError::Busy | MirrorError::NotInSync | MirrorError::NotOpen => ErrorCode::Conflict,
        _ => ErrorCode::Failed,
    };
    ApiError::new(code, format!("disk {index} does not move: {error}"))
}
