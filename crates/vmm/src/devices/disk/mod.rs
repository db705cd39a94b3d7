//! Disk images, which the process is given open, and the lock that carries the epoch.
//!
//! ```text
//!   built: capacity known      take(epoch), reclaim: lock, record, open, drop caches
//!     closed -----------------------------------------------------------------> open, perhaps with a mirror: see `mirror`
//!       ^ |                                                                     ^ |
//!       | +--- take over: lock ---> locked ------- take(epoch): record, open ---+ |
//!       |                              |                                          |
//!       +------------------------------+-- release: flush, close, unlock ---------+
//!
//!   built to be filled: arriving ---- take(epoch): lock, record ---------------> open
//! ```
//!
//! `take` builds everything anew from the descriptors, so that nothing that the last owner wrote is missed. Before it,
//! another host may be writing to the image, so nothing but its size is read. Only an image that arrives with the VM is open
//! before: it has no last owner, and whoever fills it is this process. I/O goes through the page cache: a guest's flush is an
//! `fdatasync`, and `take` drops what this host may have cached from an earlier stay, so that it reads what the last owner
//! has written.

mod access;
mod arrival;
mod course;
mod image;
mod lock;
mod mirror;
mod written;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use godwit_types::control::{DiskBacking, DiskDescriptors};
use godwit_types::lock::LockRecord;
use godwit_types::vm::DatastorePath;
use godwit_types::{Epoch, HostName, MigrationId, VmId};

pub use access::Change;
pub use image::Image;
pub use lock::{DiskLock, LockError};
pub use mirror::{Copied, MirrorError};
use mirror::{Decisions, Mirroring};
pub use written::{BLOCK_BYTES, WriteLog};

/// Bytes of a sector, the unit of a disk's capacity.
pub const SECTOR_BYTES: u64 = 512;

/// One disk of the VM.
pub struct Disk {
    read_only: bool,
    vm: VmId,
    host: HostName,
    sectors: u64,
    written: WriteLog,
    operations: AtomicU64,
    /// Read by those who read the image, written by those who change it.
    inner: RwLock<Inner>,
    decisions: Decisions,
}

struct Inner {
    place: Place,
    state: State,
}

/// Where the disk lies.
struct Place {
    backing: DiskBacking,
    files: DiskDescriptors<OwnedFd>,
    /// Its name in the VM's specification, if it is another than this process was started with.
    image: Option<DatastorePath>,
}

impl Place {
    fn open(&self) -> Result<Image, DiskError> {
        Image::open(&self.backing, &self.files.images)
    }
}

#[derive(Default)]
enum State {
    #[default]
    Closed,
    /// Being filled with what arrives.
    Arriving(Image),
    /// The lock of a dead source, taken over from it.
    Locked(DiskLock),
    Open {
        image: Image,
        /// `None` for a read-only disk. Dropped behind the image.
        lock: Option<DiskLock>,
        /// The image to which the disk moves.
        mirror: Mirroring,
    },
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot open the disk image {path}: {cause}; check that the datastore is mounted and readable")]
    Open { path: PathBuf, cause: io::Error },
    #[error("the disk image {path} is not a qcow2 image; correct the disk's format")]
    NotQcow2 { path: PathBuf },
    #[error(
        "the disk image {path} now has {found} bytes instead of {expected}; disks of a running VM cannot be resized"
    )]
    Resized { path: PathBuf, expected: u64, found: u64 },
    #[error("cannot write to the disk image {path}: {cause}")]
    Flush { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Disk {
    /// Reads the capacity; begins no I/O.
    pub fn new(
        backing: DiskBacking,
        files: DiskDescriptors<OwnedFd>,
        vm: VmId,
        host: HostName,
    ) -> Result<Self, DiskError> {
        let sectors = image::capacity_bytes(&backing, &files.images)? / SECTOR_BYTES;
        let (read_only, written, decisions) = (backing.read_only, WriteLog::default(), Decisions::default());
        let inner = RwLock::new(Inner { place: Place { backing, files, image: None }, state: State::Closed });
        let operations = AtomicU64::new(0);
        Ok(Self { read_only, vm, host, sectors, written, operations, inner, decisions })
    }

    /// The capacity that the guest sees, in [`SECTOR_BYTES`].
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The same in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES
    }

    /// Whether the guest may only read.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// One more request of the guest.
    pub fn count_operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests of the guest so far.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Where the specification has the disk, if it has moved since this process was started.
    pub fn moved_to(&self) -> Option<DatastorePath> {
        self.state().place.image.clone()
    }

    /// Takes the lock with `epoch`, unless it is taken over already, then opens the image for I/O.
    pub fn take(&self, epoch: Epoch) -> Result<(), DiskError> {
        self.open(&self.record(epoch), DiskLock::take)
    }

    /// Takes the lock that a dead source of `migration` has left; `false` if it is held. `None`: a read-only disk has no
    /// lock to tell by, and one that arrives has none that the source has held.
    pub fn take_over(&self, source: Epoch, migration: MigrationId) -> Result<Option<bool>, DiskError> {
        let Inner { place, state } = &mut *self.changing();
        let Some(file) = &place.files.lock else { return Ok(None) };
        if matches!(state, State::Arriving(_)) {
            return Ok(None);
        }
        if matches!(state, State::Closed) {
            let lock = DiskLock::take_over(file, &place.backing.lock, self.vm, source, migration)?;
            let Some(lock) = lock else { return Ok(Some(false)) };
            *state = State::Locked(lock);
        }
        Ok(Some(true))
    }

    /// Takes the lock again if it was let go, without waiting, and records that the guest runs on after `migration`.
    pub fn reclaim(&self, epoch: Epoch, migration: MigrationId) -> Result<(), DiskError> {
        let record = LockRecord { ran_on_after: Some(migration), ..self.record(epoch) };
        self.open(&record, DiskLock::take_now)
    }

    /// Whether the lock that a source on another host is known to hold can be seen from here. `None`: a read-only disk
    /// has none, and that of one that arrives is not its source's.
    pub fn sees_lock(&self) -> Option<bool> {
        let Inner { place, state } = &*self.state();
        if matches!(state, State::Arriving(_)) {
            return None;
        }
        // A lock that cannot be asked for is not seen.
        place.files.lock.as_ref().map(|file| DiskLock::is_seen(file).unwrap_or(false))
    }

    fn record(&self, epoch: Epoch) -> LockRecord {
        LockRecord { vm: self.vm, host: self.host.clone(), epoch, ran_on_after: None }
    }

    /// With `record` in the lock file. An image that is open stays so.
    fn open(
        &self,
        record: &LockRecord,
        take: impl FnOnce(&OwnedFd, &Path, &LockRecord) -> Result<DiskLock, LockError>,
    ) -> Result<(), DiskError> {
        let Inner { place, state } = &mut *self.changing();
        let lock = match (&*state, &place.files.lock) {
            (State::Open { lock, .. }, _) => {
                return match lock {
                    Some(lock) if record.ran_on_after.is_some() => Ok(lock.renew(record)?),
                    _ => Ok(()),
                };
            }
            (State::Locked(lock), _) => {
                lock.renew(record)?;
                None
            }
            (State::Closed | State::Arriving(_), file) => {
                file.as_ref().map(|file| take(file, &place.backing.lock, record)).transpose()?
            }
        };
        if let State::Arriving(_) = state
            && let State::Arriving(image) = std::mem::take(state)
        {
            *state = State::Open { image, lock, mirror: Mirroring::Off };
            return Ok(());
        }
        let image = place.open()?;
        let found = image.bytes();
        if found / SECTOR_BYTES != self.sectors {
            let (path, expected) = (place.backing.path.clone(), self.sectors * SECTOR_BYTES);
            return Err(DiskError::Resized { path, expected, found });
        }
        let lock = match std::mem::take(state) {
            State::Locked(lock) => Some(lock),
            _ => lock,
        };
        *state = State::Open { image, lock, mirror: Mirroring::Off };
        Ok(())
    }

    /// Closes the image, then lets go of the lock; its record stays. A flush that fails is logged, since nobody who
    /// lets go can wait for it; [`Disk::flush`] before is where it counts.
    pub fn release(&self) {
        let Inner { place, state } = &mut *self.changing();
        // Whichever of two images is the disk when it is opened again has everything.
        if let State::Open { image, mirror, .. } = std::mem::take(state)
            && let Err(cause) = image.flush().and(mirror.flush())
        {
            let error = DiskError::Flush { path: place.backing.path.clone(), cause };
            tracing::error!(%error, "closing a disk");
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().expect(NO_PANIC)
    }

    fn changing(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "no user of the disk panics";

fn closed() -> io::Error {
    io::Error::other("the disk is not open, since this host does not hold its lock")
}
