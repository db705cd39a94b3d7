//! Connections: handshake, framed reading and writing, with bounded waiting.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use godwit_types::ApiError;

use crate::failure::{self, Link};
use crate::wire::{Control, HEADER_BYTES, Header, PREAMBLE_BYTES, Preamble, Tag, WireError};

/// How often a waiting reader looks whether it shall stop.
const STOP_CHECK: Duration = Duration::from_millis(200);
/// A long payload is read in pieces of this size, so that memory is used only for what has really arrived.
const PIECE_BYTES: usize = 1 << 20;

/// Why a connection can no longer be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the other side closed it")]
    Closed,
    #[error("it ended in the middle of a frame")]
    Truncated,
    #[error("this side closed it")]
    Stopped,
    #[error("nothing came for too long")]
    Silent,
    #[error("nothing could be sent for too long")]
    Stuck,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
}

impl LinkError {
    /// The error as the user reads it.
    pub(super) fn describe(self, peer: &str, link: Link) -> ApiError {
        match self {
            Self::Wire(error) => {
                let mut described = ApiError::from(error);
                described.message = format!("{link} to {peer}: {}", described.message);
                described
            }
            other => failure::lost(peer, link, &other.to_string()),
        }
    }
}

/// Sends one frame whose payload is made of two parts; returns its length on the wire, in bytes.
pub(super) fn send(mut stream: &TcpStream, tag: Tag, parts: [&[u8]; 2]) -> Result<u64, LinkError> {
    let header = Header::encode(tag, parts)?;
    let mut slices = [IoSlice::new(&header), IoSlice::new(parts[0]), IoSlice::new(parts[1])];
    let mut rest = &mut slices[..];
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
    }
    Ok((HEADER_BYTES + parts[0].len() + parts[1].len()) as u64)
}

/// Sends a control message; returns its length on the wire, in bytes.
pub(super) fn send_control(stream: &TcpStream, message: &Control) -> Result<u64, LinkError> {
    send(stream, Tag::Control, [&message.to_payload(), &[]])
}

/// The receiving half of a connection.
pub(super) struct Reader<S = TcpStream> {
    stream: S,
    stop: Arc<AtomicBool>,
    deadline: Option<Instant>,
    buffer: Vec<u8>,
}

impl<S> Reader<S>
where
    for<'a> &'a S: Read,
{
    /// Reads from a stream whose versions agree.
    pub(super) fn new(stream: S, stop: Arc<AtomicBool>, deadline: Option<Instant>) -> Self {
        Self { stream, stop, deadline, buffer: Vec::new() }
    }

    /// Waits for the next frame, until the deadline if there is one.
    pub(super) fn frame(&mut self) -> Result<(Tag, &[u8]), LinkError> {
        let mut header = [0; HEADER_BYTES];
        read_exact(&self.stream, &self.stop, self.deadline, &mut header, true)?;
        let header = Header::decode(&header)?;
        let mut filled = 0;
        while filled < header.length {
            let end = header.length.min(filled + PIECE_BYTES);
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            read_exact(&self.stream, &self.stop, self.deadline, &mut self.buffer[filled..end], false)?;
            filled = end;
        }
        let payload = &self.buffer[..header.length];
        header.verify(payload)?;
        Ok((header.tag, payload))
    }

    /// Waits for the next frame, which must be a control message.
    pub(super) fn control(&mut self) -> Result<Control, LinkError> {
        match self.frame()? {
            (Tag::Control, payload) => Ok(Control::from_payload(payload)?),
            (tag, _) => Err(WireError::OutOfPlace { tag, expected: "a control message" }.into()),
        }
    }
}

impl Reader {
    /// The handshake is over: from now on the engine bounds the waiting for frames, and writing may block for at most
    /// `write_timeout`.
    pub(super) fn established(mut self, write_timeout: Duration) -> Result<Self, LinkError> {
        self.stream.set_write_timeout(Some(write_timeout))?;
        self.deadline = None;
        Ok(self)
    }

    /// The connection that is read from.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Opens a connection to a listener and agrees on a version, all within `within`.
pub(super) fn connect(
    address: SocketAddr,
    within: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<Reader, LinkError> {
    let deadline = Instant::now() + within;
    let stream = TcpStream::connect_timeout(&address, within)?;
    greet(stream, deadline, within, stop)
}

/// Agrees on a version on a connection that is new, before the deadline; writing may block for `within`.
pub(super) fn greet(
    stream: TcpStream,
    deadline: Instant,
    within: Duration,
    stop: &Arc<AtomicBool>,
) -> Result<Reader, LinkError> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(within))?;
    stream.set_read_timeout(Some(STOP_CHECK))?;
    (&stream).write_all(&Preamble::OURS.encode())?;
    let mut theirs = [0; PREAMBLE_BYTES];
    read_exact(&stream, stop, Some(deadline), &mut theirs, true)?;
    Preamble::OURS.agree(Preamble::decode(&theirs)?)?;
    Ok(Reader::new(stream, Arc::clone(stop), Some(deadline)))
}

/// Fills `into`. The end of the stream before its first byte is a clean close if `may_close`.
fn read_exact(
    mut stream: impl Read,
    stop: &AtomicBool,
    deadline: Option<Instant>,
    into: &mut [u8],
    may_close: bool,
) -> Result<(), LinkError> {
    let mut filled = 0;
    while filled < into.len() {
        match stream.read(&mut into[filled..]) {
            Ok(0) if may_close && filled == 0 => return Err(LinkError::Closed),
            Ok(0) => return Err(LinkError::Truncated),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted || is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        if stop.load(Relaxed) {
            return Err(LinkError::Stopped);
        }
        if filled < into.len() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(LinkError::Silent);
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
