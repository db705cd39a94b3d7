//! The sending half of a connection: frames, in clear or sealed into records.

use std::io::{ErrorKind, IoSlice, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::link::{LinkError, is_timeout};
use crate::secure::{RECORD_PLAIN_BYTES_MAX, Seal};
use crate::wire::{Control, HEADER_BYTES, Header, Tag};

/// Sealed records are handed to the kernel when there are so many bytes of them: larger writes were not faster, smaller
/// ones were slower.
const SEALED_BYTES: usize = 256 << 10;

/// See the module.
pub(super) struct Outflow {
    stream: TcpStream,
    seal: Option<Box<dyn Seal>>,
    /// Sealed records that have not left.
    sealed: Vec<u8>,
}

/// What a frame took, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Took {
    /// As both sides count it: header, payload and contents.
    pub(super) frame: u64,
    /// What encryption added.
    pub(super) sealing: u64,
}

impl Outflow {
    pub(super) fn new(stream: TcpStream, seal: Option<Box<dyn Seal>>) -> Self {
        let sealed =
            Vec::with_capacity(if seal.is_some() { SEALED_BYTES + 2 * RECORD_PLAIN_BYTES_MAX } else { 0 });
        Self { stream, seal, sealed }
    }

    /// Sends a control message.
    pub(super) fn control(&mut self, message: &Control) -> Result<Took, LinkError> {
        self.frame(Tag::Control, &message.to_payload(), &[])
    }

    /// Sends one frame and the contents that follow it, within the connection's write timeout.
    pub(super) fn frame(&mut self, tag: Tag, payload: &[u8], contents: &[&[u8]]) -> Result<Took, LinkError> {
        let header = Header::encode(tag, payload)?;
        let frame =
            (HEADER_BYTES + payload.len() + contents.iter().map(|part| part.len()).sum::<usize>()) as u64;
        // The kernel bounds each write, and so not a frame of which a peer takes a few bytes at a time.
        let deadline = self.stream.write_timeout()?.map(|within| Instant::now() + within);
        let wire = if self.seal.is_some() {
            self.sealed(&[&header, payload], deadline)?
                + self.sealed(contents, deadline)?
                + self.flush(deadline)?
        } else {
            let parts = [&header[..], payload];
            let mut slices: Vec<_> = parts.iter().chain(contents).map(|part| IoSlice::new(part)).collect();
            write_all(&self.stream, &mut slices, deadline)?;
            frame
        };
        Ok(Took { frame, sealing: wire - frame })
    }

    /// The connection that is written to.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Seals `parts` into records that are as full as can be; returns how many bytes have left.
    fn sealed(&mut self, parts: &[&[u8]], deadline: Option<Instant>) -> Result<u64, LinkError> {
        let mut left = 0;
        let mut rest = Pieces { parts, at: 0 };
        while !rest.is_empty() {
            if self.sealed.len() >= SEALED_BYTES {
                left += self.flush(deadline)?;
            }
            let Some(seal) = &mut self.seal else { break };
            seal.seal(&mut rest.record(), &mut self.sealed)?;
        }
        Ok(left)
    }

    fn flush(&mut self, deadline: Option<Instant>) -> Result<u64, LinkError> {
        write_all(&self.stream, &mut [IoSlice::new(&self.sealed)], deadline)?;
        let left = self.sealed.len() as u64;
        self.sealed.clear();
        Ok(left)
    }
}

/// Byte strings, one after the other, from `at` of the first on.
struct Pieces<'a> {
    parts: &'a [&'a [u8]],
    at: usize,
}

impl<'a> Pieces<'a> {
    fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }

    /// Takes what fills a record.
    fn record(&mut self) -> impl Iterator<Item = &'a [u8]> {
        let mut room = RECORD_PLAIN_BYTES_MAX;
        std::iter::from_fn(move || {
            let (first, rest) = self.parts.split_first()?;
            let piece = &first[self.at..first.len().min(self.at + room)];
            (room, self.at) = (room - piece.len(), self.at + piece.len());
            if self.at == first.len() {
                (self.parts, self.at) = (rest, 0);
            }
            (!piece.is_empty() || (room > 0 && !self.parts.is_empty())).then_some(piece)
        })
    }
}

fn write_all(
    mut stream: &TcpStream,
    mut rest: &mut [IoSlice<'_>],
    deadline: Option<Instant>,
) -> Result<(), LinkError> {
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) if rest.iter().any(|slice| !slice.is_empty()) => return Err(LinkError::Closed),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return Err(LinkError::Stuck),
            Err(error) => return Err(error.into()),
        }
        while rest.first().is_some_and(|slice| slice.is_empty()) {
            rest = &mut rest[1..];
        }
        if !rest.is_empty() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(LinkError::Stuck);
        }
    }
    Ok(())
}
