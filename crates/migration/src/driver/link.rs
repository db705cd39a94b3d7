//! Connections: handshake, framed reading and writing, with bounded waiting.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use godwit_types::ApiError;

use crate::failure::{self, Link};
use crate::tuning::Tuning;
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

/// Sends one frame whose payload is made of two parts, within the connection's write timeout; returns its length on the
/// wire, in bytes.
pub(super) fn send(mut stream: &TcpStream, tag: Tag, parts: [&[u8]; 2]) -> Result<u64, LinkError> {
    let header = Header::encode(tag, parts)?;
    // The kernel bounds each write, and so not a frame of which a peer takes a few bytes at a time.
    let deadline = stream.write_timeout()?.map(|within| Instant::now() + within);
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
        if !rest.is_empty() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(LinkError::Stuck);
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
    /// The longest payload that may come on this connection; a longer one is refused before any of it is read.
    payload_bytes_max: usize,
    buffer: Vec<u8>,
}

impl<S> Reader<S>
where
    for<'a> &'a S: Read,
{
    /// Reads from a stream whose versions agree, and that carries nothing longer than a HELLO yet.
    pub(super) fn new(stream: S, stop: Arc<AtomicBool>, deadline: Option<Instant>) -> Self {
        Self { stream, stop, deadline, payload_bytes_max: Tag::Hello.payload_bytes_max(), buffer: Vec::new() }
    }

    /// From now on frames may be as long as one with this tag.
    pub(super) fn carrying(self, longest: Tag) -> Self {
        Self { payload_bytes_max: longest.payload_bytes_max(), ..self }
    }

    /// Waits for the next frame, until the deadline if there is one.
    pub(super) fn frame(&mut self) -> Result<(Tag, &[u8]), LinkError> {
        let mut header = [0; HEADER_BYTES];
        read_exact(&self.stream, &self.stop, self.deadline, &mut header, true)?;
        let header = Header::decode(&header)?;
        if header.length > self.payload_bytes_max {
            let (tag, length, max) = (header.tag, header.length, self.payload_bytes_max);
            return Err(WireError::TooLong { tag, length, max }.into());
        }
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
    /// The handshake is over: from now on the engine bounds the waiting for frames. Writing may block for as long as a
    /// standing guest waits for a silent peer if this is the control connection, and else for as long as a running one.
    pub(super) fn established(mut self, link: Link, tuning: &Tuning) -> Result<Self, LinkError> {
        let may_block = if link == Link::Control { tuning.peer_silent_stopped } else { tuning.peer_silent };
        self.stream.set_write_timeout(Some(may_block))?;
        self.deadline = None;
        Ok(self.carrying(if link == Link::Control { Tag::State } else { Tag::Pages }))
    }

    /// The connection that is read from.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (here, listener.accept().unwrap().0)
    }

    /// What a reader says of a frame that claims `length` bytes and brings none of them.
    fn claimed(tag: Tag, length: u32, link: Option<Link>) -> LinkError {
        let (here, there) = pair();
        let tuning = Tuning { connect: Duration::from_millis(300), ..Tuning::default() };
        let mut bytes = Preamble::OURS.encode().to_vec();
        bytes.extend([tag as u8, 0, 0, 0]);
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 8]);
        (&there).write_all(&bytes).unwrap();
        let deadline = Instant::now() + tuning.connect;
        let mut reader = greet(here, deadline, tuning.connect, &Arc::default()).unwrap();
        if let Some(link) = link {
            reader = reader.established(link, &tuning).unwrap();
        }
        there.shutdown(std::net::Shutdown::Write).unwrap();
        let error = reader.frame().unwrap_err();
        assert!(reader.buffer.len() <= PIECE_BYTES, "{} bytes", reader.buffer.len());
        error
    }

    #[test]
    fn a_frame_longer_than_its_connection_may_carry_is_refused_by_its_header() {
        let state = Tag::State.payload_bytes_max() as u32;
        for link in [None, Some(Link::Pages(3))] {
            let error = claimed(Tag::State, state, link);
            assert!(matches!(error, LinkError::Wire(WireError::TooLong { .. })), "{link:?}: {error}");
        }
        for (tag, link) in
            [(Tag::State, Some(Link::Control)), (Tag::Pages, Some(Link::Pages(3))), (Tag::Hello, None)]
        {
            let error = claimed(tag, tag.payload_bytes_max() as u32, link);
            assert!(matches!(error, LinkError::Truncated), "{tag:?} on {link:?}: {error}");
        }
    }

    #[test]
    fn a_peer_that_takes_a_frame_byte_by_byte_cannot_hold_its_sender_for_ever() {
        let (here, mut there) = pair();
        here.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        // Ends with an error once the sender has given up and closed.
        let trickle = thread::spawn(move || {
            let mut some = [0; 4096];
            for _ in 0..2000 {
                if !matches!(there.read(&mut some), Ok(1..)) {
                    return true;
                }
                thread::sleep(Duration::from_millis(10));
            }
            false
        });
        let payload = vec![0; Tag::State.payload_bytes_max()];
        let sent = send(&here, Tag::State, [&payload, &[]]);
        assert!(matches!(sent, Err(LinkError::Stuck)), "{sent:?}");
        here.shutdown(std::net::Shutdown::Both).unwrap();
        drop(here);
        trickle.join().unwrap();
    }
}
