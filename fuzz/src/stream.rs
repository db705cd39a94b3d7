//! A connection whose bytes arrive in pieces of any size.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read};

/// See the module.
pub struct Pieces {
    bytes: Vec<u8>,
    at: Cell<usize>,
    /// Sizes of the pieces, over and over; 0 is an interrupted read.
    sizes: Vec<u8>,
    piece: Cell<usize>,
}

impl Pieces {
    pub fn new(bytes: Vec<u8>, sizes: Vec<u8>) -> Self {
        Self { bytes, at: Cell::new(0), sizes, piece: Cell::new(0) }
    }
}

impl Read for &Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece.replace(self.piece.get() + 1);
        let size = match self.sizes.get(piece % self.sizes.len().max(1)) {
            // Only every other one, so that the reading comes to an end.
            Some(0) if piece.is_multiple_of(2) => return Err(ErrorKind::Interrupted.into()),
            Some(size) => usize::from(*size).max(1),
            None => usize::MAX,
        };
        let rest = &self.bytes[self.at.get()..];
        let length = rest.len().min(into.len()).min(size);
        into[..length].copy_from_slice(&rest[..length]);
        self.at.set(self.at.get() + length);
        Ok(length)
    }
}
