//! Disk images, which the process is given open, and the lock that carries the epoch.
//!
//! ```text
//!   built: capacity known      take(epoch): lock, record, open, drop caches
//!     closed -----------------------------------------------------------------> open
//!       ^                                                                         |
//!       +------------------- release: flush, close, unlock -----------------------+
//! ```
//!
//! `take` builds everything anew from the descriptors, so that nothing that the last owner wrote is missed. Before it, another host may be writing to the image, so nothing but its size is read. I/O goes through the page
//! cache: a guest's flush is an `fdatasync`, and `take` drops what this host may have cached from an earlier stay, so
//! that it reads what the last owner has written.

mod image;
mod lock;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use godwit_types::Epoch;
use godwit_types::control::{DiskBacking, DiskDescriptors};
use godwit_types::ids::{HostName, VmId};
use godwit_types::lock::LockRecord;

pub use image::Image;
pub use lock::{DiskLock, LockError};

/// Bytes of a sector, the unit of a disk's capacity.
pub const SECTOR_BYTES: u64 = 512;

/// One disk of the VM.
pub struct Disk {
    backing: DiskBacking,
    files: DiskDescriptors<OwnedFd>,
    vm: VmId,
    host: HostName,
    sectors: u64,
    open: Mutex<Option<Open>>,
}

struct Open {
    image: Image,
    /// `None` for a read-only disk. Dropped behind the image.
    _lock: Option<DiskLock>,
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
        Ok(Self { backing, files, vm, host, sectors, open: Mutex::new(None) })
    }

    /// The capacity that the guest sees, in [`SECTOR_BYTES`].
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may only read.
    pub fn read_only(&self) -> bool {
        self.backing.read_only
    }

    /// Takes the lock with `epoch`, then opens the image for I/O.
    pub fn take(&self, epoch: Epoch) -> Result<(), DiskError> {
        let mut open = self.open();
        if open.is_some() {
            return Ok(());
        }
        let record = LockRecord { vm: self.vm, host: self.host.clone(), epoch };
        let take = |file| DiskLock::take(file, &self.backing.lock, &record);
        let lock = self.files.lock.as_ref().map(take).transpose()?;
        let image = Image::open(&self.backing, &self.files.images)?;
        let found = image.bytes();
        if found / SECTOR_BYTES != self.sectors {
            let (path, expected) = (self.backing.path.clone(), self.sectors * SECTOR_BYTES);
            return Err(DiskError::Resized { path, expected, found });
        }
        *open = Some(Open { image, _lock: lock });
        Ok(())
    }

    /// Closes the image, then lets go of the lock; its record stays. A flush that fails is logged, since nobody who
    /// lets go can wait for it; [`Disk::flush`] before is where it counts.
    pub fn release(&self) {
        if let Some(mut open) = self.open().take()
            && let Err(cause) = open.image.flush()
        {
            let error = DiskError::Flush { path: self.backing.path.clone(), cause };
            tracing::error!(%error, "closing a disk");
        }
    }

    /// Makes everything written durable. Nothing to do while the disk is closed.
    pub fn flush(&self) -> Result<(), DiskError> {
        let path = || self.backing.path.clone();
        match self.open().as_mut() {
            Some(open) => open.image.flush().map_err(|cause| DiskError::Flush { path: path(), cause }),
            None => Ok(()),
        }
    }

    /// Does I/O on the open image; an error while it is closed.
    pub fn with_image<T>(&self, access: impl FnOnce(&mut Image) -> io::Result<T>) -> io::Result<T> {
        match self.open().as_mut() {
            Some(open) => access(&mut open.image),
            None => Err(io::Error::other("the disk is not open, since this host does not hold its lock")),
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().expect("no user of the disk panics")
    }
}
