//! A second image of an open disk, to which it moves while its guest uses it; [`Course`] says what goes where.
//!
//! Whoever copies has the disk's state for reading while it reads a piece of the source and writes it to the target, and
//! whoever changes the disk has it alone. So no change comes between the two halves of a copy.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_migration::is_zero;
use godwit_types::Epoch;
use godwit_types::control::{DiskBacking, DiskDescriptors};
use godwit_types::storage::StoragePhase;
use godwit_types::vm::DatastorePath;

use super::course::{Course, Failed};
use super::image::Image;
use super::{Disk, DiskError, DiskLock, Place, SECTOR_BYTES, State, closed};

/// How far to look for something to copy at a time, in bytes: the guest's writes wait meanwhile.
const LOOK_BYTES: u64 = 64 << 20;
/// Zeros are left out in pieces of so many bytes.
const PIECE_BYTES: usize = 4096;
/// How long a guest's request that has failed at the target waits for the word of who holds the mirror. Then it fails: both
/// images have all that the guest was told is there.
const DOUBT_MAX: Duration = Duration::from_secs(30);

/// The second image, if there is one.
#[derive(Default)]
pub(super) enum Mirroring {
    #[default]
    Off,
    On(Box<Mirror>),
    /// The target has failed.
    Failed(String),
}

/// See the module.
pub(super) struct Mirror {
    place: Place,
    image: Image,
    /// Dropped behind the image.
    lock: DiskLock,
    course: Mutex<Course>,
}

/// What a call of [`Disk::copy_some`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// So many bytes of what the disk holds.
    Bytes(u64),
    /// All of the disk was copied before.
    All,
}

/// Why disks do not move, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the disk is on its way to another place already")]
    Busy,
    #[error("the guest may only read the disk")]
    ReadOnly,
    #[error("the new image has {found} bytes instead of {expected}")]
    Size { expected: u64, found: u64 },
    #[error("{0}")]
    Ended(String),
    #[error("its two images do not hold the same yet")]
    NotInSync,
    #[error("the disk is not open")]
    NotOpen,
}

impl Disk {
    /// Begins to mirror the open disk into a new, empty image of the same size, which the specification will call `image`, and
    /// whose lock is taken with `epoch`.
    pub fn mirror(
        &self,
        image: DatastorePath,
        backing: DiskBacking,
        files: DiskDescriptors<OwnedFd>,
        epoch: Epoch,
    ) -> Result<(), MirrorError> {
        if self.read_only {
            return Err(MirrorError::ReadOnly);
        }
        // Opened before anybody has to wait for it.
        let place = Place { backing, files, image: Some(image) };
        let image = place.open()?;
        let (expected, found) = (self.sectors, image.bytes() / SECTOR_BYTES);
        if found != expected {
            let (expected, found) = (expected * SECTOR_BYTES, image.bytes());
            return Err(MirrorError::Size { expected, found });
        }
        let file = place.files.lock.as_ref().ok_or(MirrorError::ReadOnly)?;
        let lock =
            DiskLock::take_now(file, &place.backing.lock, &self.record(epoch)).map_err(DiskError::from)?;
        let mut inner = self.changing();
        let State::Open { mirror, .. } = &mut inner.state else { return Err(MirrorError::NotOpen) };
        if matches!(mirror, Mirroring::On(_)) {
            return Err(MirrorError::Busy);
        }
        let course = Mutex::new(Course::new(self.bytes()));
        *mirror = Mirroring::On(Box::new(Mirror { place, image, lock, course }));
        Ok(())
    }

    /// What the disk holds between `offset` and `end`, in bytes.
    pub fn held(&self, offset: u64, end: u64) -> io::Result<u64> {
        let mut held = 0;
        self.with_image(|image| image.data(offset, end - offset, |part| held += part.end - part.start))?;
        Ok(held)
    }

    /// Copies what comes next, at most as much as `buffer` takes.
    pub fn copy_some(&self, buffer: &mut [u8]) -> Result<Copied, MirrorError> {
        let inner = self.state();
        let (image, mirror) = inner.state.mirrored()?;
        let mut course = mirror.course();
        let Some(from) = course.cursor() else { return Ok(Copied::All) };
        let copied = mirror.copy(image, from..self.bytes().min(from + LOOK_BYTES), buffer);
        let (bytes, end) = copied.map_err(|error| MirrorError::Ended(error.to_string()))?;
        course.copied(end);
        Ok(Copied::Bytes(bytes))
    }

    /// Makes durable what was copied so far. Once all was, both images are in sync.
    pub fn settle_mirror(&self) -> Result<(), MirrorError> {
        let failed = |error: io::Error| MirrorError::Ended(error.to_string());
        let (file, all): (Arc<File>, bool) = {
            let inner = self.state();
            let (_, mirror) = inner.state.mirrored()?;
            let all = mirror.course().flushes();
            (mirror.image.flush_tables().map_err(failed)?, all)
        };
        // Others go on meanwhile. What they write by then is flushed by the guest's own flushes, if it is to be.
        file.sync_data().map_err(failed)?;
        if all {
            self.state().state.mirrored()?.1.course().durable();
        }
        Ok(())
    }

    /// Lets nobody but who asks for it end the mirror from now on.
    pub fn hold_mirror(&self) -> Result<(), MirrorError> {
        let inner = self.changing();
        let (_, mirror) = inner.state.mirrored()?;
        let held = mirror.course().hold();
        if held { Ok(()) } else { Err(MirrorError::NotInSync) }
    }

    /// How far the mirror is.
    pub fn mirror_phase(&self) -> Result<StoragePhase, MirrorError> {
        Ok(self.state().state.mirrored()?.1.course().phase())
    }

    /// Makes the target of a held mirror the disk, and lets go of the source.
    pub fn switch(&self) -> Result<(), MirrorError> {
        let mut inner = self.changing();
        if inner.state.mirrored()?.1.course().failed() != Failed::Ask {
            return Err(MirrorError::NotInSync);
        }
        let State::Open { image, lock, mirror } = &mut inner.state else { return Err(MirrorError::NotOpen) };
        let Mirroring::On(target) = std::mem::take(mirror) else { return Err(MirrorError::NotOpen) };
        let Mirror { place, image: new, lock: its_lock, .. } = *target;
        let (old, old_lock) = (std::mem::replace(image, new), lock.replace(its_lock));
        let left = std::mem::replace(&mut inner.place, place);
        self.decisions.made();
        drop(inner);
        // Nobody waits for it any more: whatever becomes of it, it is not the disk.
        if let Err(error) = old.flush() {
            tracing::warn!(%error, image = %left.backing.path.display(), "closing the image that a disk has left");
        }
        drop((old, old_lock));
        Ok(())
    }

    /// Ends the mirror, if there is one: the source is the disk.
    pub fn end_mirror(&self) {
        let mut inner = self.changing();
        if let State::Open { mirror, .. } = &mut inner.state {
            let ended = std::mem::take(mirror);
            self.decisions.made();
            drop(inner);
            drop(ended);
        }
    }

    /// Sees to a failure of the target: ends the mirror, or waits for who holds it. An error is for the guest.
    pub(super) fn target_failed(&self, error: io::Error) -> io::Result<()> {
        let mut inner = self.changing();
        let State::Open { mirror: slot, .. } = &mut inner.state else { return Err(closed()) };
        let Mirroring::On(mirror) = &*slot else { return Ok(()) };
        let follows = mirror.course().failed();
        match follows {
            Failed::End => {
                tracing::warn!(%error, target = %mirror.place.backing.path.display(), "a disk does not move");
                *slot = Mirroring::Failed(error.to_string());
                Ok(())
            }
            Failed::Ask => {
                let known = self.decisions.count();
                drop(inner);
                if self.decisions.await_next(known) { Ok(()) } else { Err(error) }
            }
        }
    }
}

impl Mirroring {
    /// Changes the target too, where it has come so far. With `defined`, the change leaves the same in both images.
    pub(super) fn follow(
        &mut self,
        (offset, bytes): (u64, u64),
        defined: bool,
        change: impl FnOnce(&mut Image) -> io::Result<()>,
    ) -> io::Result<()> {
        let Self::On(mirror) = self else { return Ok(()) };
        let Mirror { image, course, .. } = &mut **mirror;
        let course = course.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !course.reaches(offset) {
            return Ok(());
        }
        change(image)?;
        if defined {
            course.written(offset + bytes);
        }
        Ok(())
    }

    /// Makes the target durable with the source, once it has all of it.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::On(mirror) if mirror.course().flushes() => mirror.image.flush(),
            _ => Ok(()),
        }
    }
}

impl State {
    fn mirrored(&self) -> Result<(&Image, &Mirror), MirrorError> {
        match self {
            Self::Open { image, mirror: Mirroring::On(mirror), .. } => Ok((image, mirror)),
            Self::Open { mirror: Mirroring::Failed(why), .. } => Err(MirrorError::Ended(why.clone())),
            _ => Err(MirrorError::NotOpen),
        }
    }
}

impl Mirror {
    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the first thing that lies `within` the source; how many bytes that were, and up to where all is copied.
    fn copy(&self, source: &Image, within: Range<u64>, buffer: &mut [u8]) -> io::Result<(u64, u64)> {
        let Some(data) = source.next_data(within.start, within.end)? else { return Ok((0, within.end)) };
        let length = (data.end - data.start).min(buffer.len() as u64);
        let contents = &mut buffer[..length as usize];
        source.read_bytes(contents, data.start)?;
        // Whole sectors, as all that is copied.
        let pieces: Vec<&[u8]> = contents.chunks(PIECE_BYTES).collect();
        let mut at = data.start;
        for run in pieces.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
            let bytes: usize = run.iter().map(|piece| piece.len()).sum();
            // The target holds nothing there yet.
            if !is_zero(run[0]) {
                let start = (at - data.start) as usize;
                self.image.write_bytes(&contents[start..start + bytes], at)?;
            }
            at += bytes as u64;
        }
        Ok((length, data.start + length))
    }
}

/// Decisions about held mirrors, for those who wait for one.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    made: Mutex<u64>,
    more: Condvar,
}

impl Decisions {
    fn made(&self) {
        *self.lock() += 1;
        self.more.notify_all();
    }

    fn count(&self) -> u64 {
        *self.lock()
    }

    /// Whether there was another since `known`, or is one in time.
    fn await_next(&self, known: u64) -> bool {
        let waited = self.more.wait_timeout_while(self.lock(), DOUBT_MAX, |made| *made == known);
        let (made, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *made != known
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
