//! The receiving half of a connection: a window onto what has arrived, opened where it arrived.
//!
//! ```text
//!   buffer   | used | plaintext  start..end | gap | not opened yet  sealed..filled | room |
//! ```
//!
//! In clear, `end` and `sealed` move together and nothing is copied. Sealed, a record's plaintext is moved only if a
//! reader needs it in one piece with what was left of the record before.

use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use godwit_types::PAGE_SIZE_BYTES;

use super::link::{LinkError, is_timeout};
use crate::secure::{Open, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, SecureError};

/// Read with one call, at most, in bytes: what stays in the processor's cache until it lies in guest memory.
const BUFFER_BYTES: usize = 256 << 10;

/// See the module.
pub(super) struct Inflow<S> {
    stream: S,
    stop: Arc<AtomicBool>,
    /// When waiting ends; none if others bound it.
    pub(super) deadline: Option<Instant>,
    open: Option<Box<dyn Open>>,
    buffer: Vec<u8>,
    plain: Range<usize>,
    sealed: Range<usize>,
}

impl<S> Inflow<S>
where
    for<'a> &'a S: Read,
{
    pub(super) fn new(
        stream: S,
        open: Option<Box<dyn Open>>,
        stop: Arc<AtomicBool>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { stream, stop, deadline, open, buffer: vec![0; BUFFER_BYTES], plain: 0..0, sealed: 0..0 }
    }

    /// The next `bytes` bytes, waiting for them. The end of the stream before the first of them is a clean close if
    /// `may_close`. Memory is used only for what has arrived, whatever is asked for.
    pub(super) fn take(&mut self, bytes: usize, may_close: bool) -> Result<&[u8], LinkError> {
        while self.plain.len() < bytes {
            let cut =
                if may_close && self.plain.is_empty() { LinkError::Closed } else { LinkError::Truncated };
            if !self.advance()? && self.receive()? == 0 {
                return Err(cut);
            }
        }
        let from = self.plain.start;
        self.plain.start += bytes;
        Ok(&self.buffer[from..from + bytes])
    }

    /// Whole pages, at least one and at most `bytes`, a multiple of the page size: as many as have arrived.
    pub(super) fn take_pages(&mut self, bytes: usize) -> Result<&[u8], LinkError> {
        const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
        while self.plain.len() < PAGE_BYTES && self.advance()? {}
        self.take((self.plain.len() / PAGE_BYTES * PAGE_BYTES).clamp(PAGE_BYTES, bytes), false)
    }

    #[allow(dead_code)]
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// Makes more plaintext of what has arrived; whether there was enough for that.
    fn advance(&mut self) -> Result<bool, LinkError> {
        let Some(open) = &mut self.open else {
            let grows = !self.sealed.is_empty();
            (self.plain.end, self.sealed.start) = (self.sealed.end, self.sealed.end);
            return Ok(grows);
        };
        let Some(header) = self.buffer[self.sealed.clone()].first_chunk::<RECORD_HEADER_BYTES>() else {
            return Ok(false);
        };
        let record = self.sealed.start..self.sealed.start + open.record_bytes(*header)?;
        if record.end > self.sealed.end {
            return Ok(false);
        }
        let opened = open.open(&mut self.buffer[record.clone()])?;
        let Some(opened) = opened else {
            return Err(LinkError::Closed);
        };
        self.sealed.start = record.end;
        let opened = record.start + opened.start..record.start + opened.end;
        if self.plain.is_empty() {
            self.plain = opened;
        } else {
            self.buffer.copy_within(opened.clone(), self.plain.end);
            self.plain.end += opened.len();
        }
        Ok(true)
    }

    /// Waits for bytes; how many have come, none at the end of the stream.
    fn receive(&mut self) -> Result<usize, LinkError> {
        self.make_room();
        loop {
            // Before each read, so that a peer that trickles does not prolong the wait.
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(LinkError::Silent);
            }
            let read = (&self.stream).read(&mut self.buffer[self.sealed.end..]);
            if self.stop.load(Relaxed) {
                return Err(LinkError::Stopped);
            }
            match read {
                Ok(count) => {
                    self.sealed.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted || is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves what is left to the front if the room behind it gets small; makes more if that is not enough.
    fn make_room(&mut self) {
        if self.plain.is_empty() && self.sealed.is_empty() {
            (self.plain, self.sealed) = (0..0, 0..0);
        }
        if self.buffer.len() - self.sealed.end >= RECORD_BYTES_MAX {
            return;
        }
        let (plain, sealed) = (self.plain.clone(), self.sealed.clone());
        self.buffer.copy_within(plain.clone(), 0);
        self.buffer.copy_within(sealed.clone(), plain.len());
        self.plain = 0..plain.len();
        self.sealed = plain.len()..plain.len() + sealed.len();
        if self.buffer.len() - self.sealed.end < RECORD_BYTES_MAX {
            let longer = self.buffer.len() * 2;
            self.buffer.resize(longer, 0);
        }
    }
}

impl From<SecureError> for LinkError {
    fn from(error: SecureError) -> Self {
        Self::Secure(error)
    }
}
