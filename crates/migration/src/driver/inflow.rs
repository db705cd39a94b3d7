//! The receiving half of a connection: a window onto what has arrived, opened where it arrived.
//!
//! ```text
//!   buffer   | used | plaintext  start..end | gap | not opened yet  sealed..filled | room |
//! ```
//!
//! In clear, `end` and `sealed` move together and nothing is copied; long contents need not come by here at all, but can be
//! read from the connection straight to their places. Sealed, a record's plaintext is moved only if a reader needs it in
//! one piece with what was left of the record before.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use godwit_types::PAGE_SIZE_BYTES;

use super::link::{LinkError, is_timeout};
use crate::secure::{Open, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, SecureError};

/// Read with one call, at most, in bytes: what stays in the processor's cache until it lies in guest memory.
const BUFFER_BYTES: usize = 256 << 10;
/// Contents of at least so many bytes are read straight to their places where that can be: what is shorter is not worth a
/// call of its own.
const STRAIGHT_BYTES: usize = 64 << 10;
/// Where contents may go straight to their places, frames are read by at most so many bytes: few contents come with them.
const FRAME_BYTES: usize = 16 << 10;

/// See the module.
pub(super) struct Inflow<S> {
    stream: S,
    stop: Arc<AtomicBool>,
    /// When waiting ends; none if others bound it.
    pub(super) deadline: Option<Instant>,
    open: Option<Box<dyn Open>>,
    /// The connection in clear, of which contents may be read past this.
    straight: Option<TcpStream>,
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
        let buffer = vec![0; BUFFER_BYTES];
        Self { stream, stop, deadline, open, straight: None, buffer, plain: 0..0, sealed: 0..0 }
    }

    /// The same, whose contents may be read past it from this same connection, which goes in clear.
    pub(super) fn with_straight(self, connection: TcpStream) -> Self {
        Self { straight: Some(connection), ..self }
    }

    /// The next `bytes` bytes, waiting for them. The end of the stream before the first of them is a clean close if
    /// `may_close`. Memory is used only for what has arrived, whatever is asked for.
    pub(super) fn take(&mut self, bytes: usize, may_close: bool) -> Result<&[u8], LinkError> {
        while self.plain.len() < bytes {
            let cut =
                if may_close && self.plain.is_empty() { LinkError::Closed } else { LinkError::Truncated };
            let missing = bytes - self.plain.len();
            let most = if self.straight.is_some() { missing.max(FRAME_BYTES) } else { usize::MAX };
            if !self.advance()? && self.receive(most)? == 0 {
                return Err(cut);
            }
        }
        Ok(self.used(bytes))
    }

    /// The next `bytes` bytes, which are there.
    fn used(&mut self, bytes: usize) -> &[u8] {
        let from = self.plain.start;
        self.plain.start += bytes;
        &self.buffer[from..from + bytes]
    }

    /// Whole pages, at least one and at most `bytes`, a multiple of the page size: as many as have arrived. What may go
    /// [straight](Self::straight) to its place is left where it is.
    pub(super) fn take_pages(&mut self, bytes: usize) -> Result<&[u8], LinkError> {
        const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
        while self.plain.len() < PAGE_BYTES {
            let leave = self.straight.is_some() && bytes >= STRAIGHT_BYTES;
            let most = if leave { PAGE_BYTES - self.plain.len() } else { usize::MAX };
            if !self.advance()? && self.receive(most)? == 0 {
                return Err(LinkError::Truncated);
            }
        }
        Ok(self.used((self.plain.len() / PAGE_BYTES * PAGE_BYTES).min(bytes)))
    }

    /// Whether the next `bytes` bytes can be read straight to their places: none of them is here yet.
    pub(super) fn is_straight(&self, bytes: usize) -> bool {
        bytes >= STRAIGHT_BYTES && self.straight.is_some() && self.plain.is_empty() && self.sealed.is_empty()
    }

    /// Waits for bytes that `read` takes from the connection; how many it has taken, at least one.
    pub(super) fn straight(
        &self,
        mut read: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Result<usize, LinkError> {
        let Some(connection) = &self.straight else { return Err(LinkError::Stopped) };
        match self.wait_for(|| read(connection))? {
            0 => Err(LinkError::Truncated),
            count => Ok(count),
        }
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

    /// Waits for bytes, of which at most so many are taken; how many have come, none at the end of the stream.
    fn receive(&mut self, most: usize) -> Result<usize, LinkError> {
        self.make_room();
        let mut buffer = std::mem::take(&mut self.buffer);
        let room = &mut buffer[self.sealed.end..];
        let most = most.min(room.len());
        let count = self.wait_for(|| (&self.stream).read(&mut room[..most]));
        self.buffer = buffer;
        let count = count?;
        self.sealed.end += count;
        Ok(count)
    }

    fn wait_for(&self, mut read: impl FnMut() -> io::Result<usize>) -> Result<usize, LinkError> {
        loop {
            // Before each read, so that a peer that trickles does not prolong the wait.
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(LinkError::Silent);
            }
            let read = read();
            if self.stop.load(Relaxed) {
                return Err(LinkError::Stopped);
            }
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted || is_timeout(&error) => {}
                read => return Ok(read?),
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = PAGE_SIZE_BYTES as usize;

    /// Records that hide nothing: a header with the length, then the plaintext, then padding.
    struct Bare;

    const PADDING: usize = 17;

    impl Open for Bare {
        fn record_bytes(&self, header: [u8; RECORD_HEADER_BYTES]) -> Result<usize, SecureError> {
            Ok(RECORD_HEADER_BYTES + PADDING + usize::from(u16::from_be_bytes([header[3], header[4]])))
        }

        fn open(&mut self, record: &mut [u8]) -> Result<Option<Range<usize>>, SecureError> {
            Ok(Some(RECORD_HEADER_BYTES..record.len() - PADDING))
        }
    }

    fn records(plain: &[u8], lengths: &[u16]) -> Vec<u8> {
        let (mut records, mut rest) = (Vec::new(), plain);
        for length in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, after) = rest.split_at(usize::from(*length).min(rest.len()));
            records.extend([23, 3, 3]);
            records.extend((part.len() as u16).to_be_bytes());
            records.extend(part);
            records.extend([0xee; PADDING]);
            rest = after;
        }
        records
    }

    /// Gives a few bytes at a time.
    struct Trickle(RefCell<(Vec<u8>, Vec<usize>)>);

    impl Read for &Trickle {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let mut state = self.0.borrow_mut();
            let (bytes, sizes) = &mut *state;
            let count = sizes.first().copied().unwrap_or(usize::MAX).min(bytes.len()).min(into.len());
            sizes.rotate_left(1);
            into[..count].copy_from_slice(&bytes[..count]);
            bytes.drain(..count);
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_was_sent_however_it_is_cut_into_records_and_reads(
            takes in prop::collection::vec(prop_oneof![0usize..40, 0usize..60_000], 1..20),
            lengths in prop::collection::vec(1u16..16_384, 1..5),
            reads in prop::collection::vec(prop_oneof![1usize..30, 1usize..100_000], 1..5),
            sealed: bool,
        ) {
            let plain: Vec<u8> = (0..takes.iter().sum::<usize>() + 3 * PAGE).map(|at| (at % 249) as u8).collect();
            let sent = if sealed { records(&plain, &lengths) } else { plain.clone() };
            let open = sealed.then(|| Box::new(Bare) as _);
            let mut inflow = Inflow::new(Trickle(RefCell::new((sent, reads))), open, Arc::default(), None);
            let mut at = 0;
            for take in takes {
                prop_assert_eq!(inflow.take(take, false).unwrap(), &plain[at..at + take]);
                at += take;
            }
            while at < plain.len() {
                let pages = inflow.take_pages(plain.len() - at).unwrap();
                prop_assert!(!pages.is_empty() && pages.len() % PAGE == 0);
                prop_assert_eq!(pages, &plain[at..at + pages.len()]);
                at += pages.len();
            }
            prop_assert!(matches!(inflow.take(1, true), Err(LinkError::Closed)));
        }
    }

    #[test]
    fn a_claimed_length_costs_no_memory_before_it_has_arrived() {
        let sent = vec![1; 1000];
        let mut inflow = Inflow::new(Trickle(RefCell::new((sent, vec![100]))), None, Arc::default(), None);
        assert!(matches!(inflow.take(1 << 30, false), Err(LinkError::Truncated)));
        assert_eq!(inflow.buffer.len(), BUFFER_BYTES);
    }
}
