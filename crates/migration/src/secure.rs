//! What the data path needs of an encrypted connection. `godwit-tls` implements it; without it everything goes in clear.
//!
//! The two directions of a connection are independent halves, so that a thread that sends and one that receives share
//! nothing, and so that pages are copied from guest memory straight into the record that leaves, and opened where they
//! arrived.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;

/// Most plaintext in one record, in bytes (RFC 8446, section 5.1): four pages.
pub const RECORD_PLAIN_BYTES_MAX: usize = 16 << 10;
/// A record's header: its type, its version, the length of what follows.
pub const RECORD_HEADER_BYTES: usize = 5;
/// Longest record, header included, in bytes (RFC 8446, section 5.2).
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + RECORD_PLAIN_BYTES_MAX + 256;

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Opened the connection.
    Source,
    /// Accepted it.
    Destination,
}

/// Why a connection is not, or no longer, secure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecureError(pub String);

/// A byte stream that waits for a bounded time.
pub trait Duplex: Read + Write {}

impl<T: Read + Write> Duplex for T {}

/// Makes connections of one migration secure, with a key that only its two sides have.
pub trait Secure: Send + Sync + fmt::Debug {
    /// Shakes hands on a new connection, without reading anything beyond the handshake.
    ///
    /// The outer error is the connection's, the inner the peer's: it has not the key, or does not encrypt.
    fn shake_hands(&self, end: End, connection: &mut dyn Duplex) -> io::Result<Result<Halves, SecureError>>;
}

/// The two directions of a secure connection.
pub struct Halves {
    pub seal: Box<dyn Seal>,
    pub open: Box<dyn Open>,
}

/// The sending direction.
pub trait Seal: Send {
    /// Appends a record that holds `parts`, together at most [`RECORD_PLAIN_BYTES_MAX`], to `out`.
    fn seal(&mut self, parts: &mut dyn Iterator<Item = &[u8]>, out: &mut Vec<u8>) -> Result<(), SecureError>;
}

/// The receiving direction.
pub trait Open: Send {
    /// The length of a record, header included, from its header; at most [`RECORD_BYTES_MAX`].
    fn record_bytes(&self, header: [u8; RECORD_HEADER_BYTES]) -> Result<usize, SecureError>;

    /// Opens a whole record where it is; returns where in it the plaintext lies: empty for a record that carries none,
    /// nothing if it says that the peer has ended.
    fn open(&mut self, record: &mut [u8]) -> Result<Option<Range<usize>>, SecureError>;
}
