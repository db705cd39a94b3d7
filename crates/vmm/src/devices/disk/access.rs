//! What a guest does to its disk, once it is open; and to the image to which it moves, if it does.

use std::io;

use super::mirror::Mirroring;
use super::{Disk, DiskError, Image, State, WriteLog, closed};
use crate::devices::virtio::Buffer;

/// A change of the disk.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    Write(&'a [Buffer<'a>]),
    /// Reads as zeros afterwards; its space may be given back with `unmap`.
    Zero {
        unmap: bool,
    },
    /// May read as anything afterwards, and gives back its space if it can.
    Discard,
}

impl Change<'_> {
    fn apply(self, image: &mut Image, offset: u64, bytes: u64) -> io::Result<()> {
        match self {
            Self::Write(buffers) => image.write(buffers, offset),
            Self::Zero { unmap } => image.write_zeroes(offset, bytes, unmap),
            Self::Discard => image.discard(offset, bytes),
        }
    }
}

impl Disk {
    /// Reads the open image beside others who do; an error while it is closed.
    pub fn with_image<T>(&self, access: impl FnOnce(&Image) -> io::Result<T>) -> io::Result<T> {
        match &self.state().state {
            State::Open { image, .. } => access(image),
            _ => Err(closed()),
        }
    }

    /// Changes `bytes` at `offset`, which lie on the disk, while nobody reads it.
    pub fn change(&self, (offset, bytes): (u64, u64), change: Change<'_>) -> io::Result<()> {
        let change_both = || {
            let mut inner = self.changing();
            let State::Open { image, mirror, .. } = &mut inner.state else { return Err(closed()) };
            let changed = change.apply(image, offset, bytes);
            // Also of a change that has failed, perhaps halfway.
            self.written.note(offset, bytes);
            changed?;
            let defined = !matches!(change, Change::Discard);
            Ok(mirror.follow((offset, bytes), defined, |image| change.apply(image, offset, bytes)))
        };
        loop {
            match change_both()? {
                Ok(()) => return Ok(()),
                // Once more, to whatever is the disk then.
                Err(error) => self.target_failed(error)?,
            }
        }
    }

    /// Makes everything that was written durable, as a guest asks for; an error while the disk is closed.
    pub fn sync(&self) -> io::Result<()> {
        let flush_both = || {
            let State::Open { image, mirror, .. } = &self.state().state else { return Err(closed()) };
            image.flush()?;
            Ok(Mirroring::flush(mirror))
        };
        loop {
            match flush_both()? {
                Ok(()) => return Ok(()),
                Err(error) => self.target_failed(error)?,
            }
        }
    }

    /// The same; nothing to do while the disk is closed.
    pub fn flush(&self) -> Result<(), DiskError> {
        if !matches!(self.state().state, State::Open { .. }) {
            return Ok(());
        }
        self.sync().map_err(|cause| DiskError::Flush { path: self.state().place.backing.path.clone(), cause })
    }

    /// Which parts of the disk [`Disk::change`] has changed.
    pub fn written(&self) -> &WriteLog {
        &self.written
    }
}
