//! Filling a new image whose contents arrive with the VM.

use std::io;

use super::{Disk, DiskError, State, closed};

impl Disk {
    /// Before the lock is taken: opens the image, which nobody else knows yet, for the contents that will arrive.
    pub fn await_contents(&self) -> Result<(), DiskError> {
        let mut inner = self.changing();
        if matches!(inner.state, State::Closed) {
            inner.state = State::Arriving(inner.place.open()?);
        }
        Ok(())
    }

    /// Fills the image with contents from `offset` on; what lies behind the disk's end is left out.
    pub fn fill(&self, offset: u64, contents: &[u8]) -> io::Result<()> {
        let State::Arriving(image) = &mut self.changing().state else { return Err(closed()) };
        let left = self.bytes().saturating_sub(offset).min(contents.len() as u64);
        image.write_bytes(&contents[..left as usize], offset)
    }

    /// Makes a range read as zeros again that was filled before; what lies behind the disk's end is left out.
    pub fn unfill(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let State::Arriving(image) = &mut self.changing().state else { return Err(closed()) };
        image.write_zeroes(offset, self.bytes().saturating_sub(offset).min(bytes), true)
    }

    /// Makes durable what was filled so far, without keeping others from going on. Nothing to do once the disk is taken.
    pub fn flush_contents(&self) -> io::Result<()> {
        let file = match &self.state().state {
            State::Arriving(image) => image.flush_tables()?,
            _ => return Ok(()),
        };
        file.sync_data()
    }
}
