//! Connections: handshake, framed reading and writing, with bounded waiting.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use godwit_types::ApiError;

use super::inflow::Inflow;
use super::outflow::Outflow;
use crate::failure::{self, Link};
use crate::secure::{End, Secure, SecureError};
use crate::tuning::Tuning;
use crate::wire::{Control, HEADER_BYTES, Header, PREAMBLE_BYTES, Preamble, Tag, WireError};

/// How often a waiting reader looks whether it shall stop.
const STOP_CHECK: Duration = Duration::from_millis(200);

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
    #[error("it is not secure: {0}")]
    Secure(SecureError),
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

/// The receiving half of a connection, by frames.
pub(super) struct Reader<S = TcpStream> {
    inflow: Inflow<S>,
    /// The longest payload that may come on this connection; a longer one is refused before any of it is read.
    payload_bytes_max: usize,
}

impl<S> Reader<S>
where
    for<'a> &'a S: Read,
{
    /// Reads from a stream whose versions agree, and that carries nothing longer than a HELLO yet.
    pub(super) fn new(inflow: Inflow<S>) -> Self {
        Self { inflow, payload_bytes_max: Tag::Hello.payload_bytes_max() }
    }

    /// From now on frames may be as long as one with this tag.
    pub(super) fn carrying(self, longest: Tag) -> Self {
        Self { payload_bytes_max: longest.payload_bytes_max(), ..self }
    }

    /// Waits for the next frame, until the deadline if there is one.
    pub(super) fn frame(&mut self) -> Result<(Tag, &[u8]), LinkError> {
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(self.inflow.take(HEADER_BYTES, true)?);
        let header = Header::decode(&header)?;
        if header.length > self.payload_bytes_max {
            let (tag, length, max) = (header.tag, header.length, self.payload_bytes_max);
            return Err(WireError::TooLong { tag, length, max }.into());
        }
        let payload = self.inflow.take(header.length, false)?;
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

    /// Packed page contents that follow a frame, all of them.
    pub(super) fn contents(&mut self, bytes: usize) -> Result<&[u8], LinkError> {
        self.inflow.take(bytes, false)
    }

    /// Page contents that follow a frame: whole pages, at least one and at most `bytes`.
    pub(super) fn pages(&mut self, bytes: usize) -> Result<&[u8], LinkError> {
        self.inflow.take_pages(bytes)
    }

    /// Where page contents of so many bytes can be read past this: see [`Inflow::straight`].
    pub(super) fn straight(&self, bytes: usize) -> Option<&Inflow<S>> {
        self.inflow.is_straight(bytes).then_some(&self.inflow)
    }
}

/// A connection whose handshake is over, in its two halves.
pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) writer: Outflow,
}

impl Connection {
    /// From now on the engine bounds the waiting for frames. Writing may block for as long as a standing guest waits for a
    /// silent peer if this is the control connection, and else for as long as a running one.
    pub(super) fn established(mut self, link: Link, tuning: &Tuning) -> Result<Self, LinkError> {
        let may_block = if link == Link::Control { tuning.peer_silent_stopped } else { tuning.peer_silent };
        self.writer.stream().set_write_timeout(Some(may_block))?;
        self.reader.inflow.deadline = None;
        let longest = if link == Link::Control { Tag::State } else { Tag::Pages };
        Ok(Self { reader: self.reader.carrying(longest), writer: self.writer })
    }

    /// The connection itself, to be shut down.
    pub(super) fn stream(&self) -> Result<TcpStream, LinkError> {
        Ok(self.writer.stream().try_clone()?)
    }
}

/// How a new connection is greeted.
pub(super) struct Greeting<'a> {
    pub(super) end: End,
    /// None if the migration goes in clear.
    pub(super) secure: Option<&'a dyn Secure>,
    /// How long it may take, and how long writing may block.
    pub(super) within: Duration,
    pub(super) stop: &'a Arc<AtomicBool>,
}

impl Greeting<'_> {
    /// Agrees on a version, then on keys.
    pub(super) fn greet(&self, stream: TcpStream) -> Result<Connection, LinkError> {
        let deadline = Instant::now() + self.within;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.within))?;
        stream.set_read_timeout(Some(STOP_CHECK))?;
        let mut bounded = Bounded { stream: &stream, stop: self.stop, deadline };
        bounded.write_all(&Preamble::OURS.encode())?;
        let mut theirs = [0; PREAMBLE_BYTES];
        bounded.read_exact(&mut theirs).map_err(why)?;
        Preamble::OURS.agree(Preamble::decode(&theirs)?)?;
        let inflow = |stream, open| Inflow::new(stream, open, Arc::clone(self.stop), Some(deadline));
        let (inflow, seal) = match self.secure {
            Some(secure) => {
                let halves = secure.shake_hands(self.end, &mut bounded).map_err(why)??;
                (inflow(stream.try_clone()?, Some(halves.open)), Some(halves.seal))
            }
            None => (inflow(stream.try_clone()?, None).with_straight(stream.try_clone()?), None),
        };
        Ok(Connection { reader: Reader::new(inflow), writer: Outflow::new(stream, seal) })
    }
}

/// A connection on which waiting ends at a deadline, or when the engine is told to stop.
struct Bounded<'a> {
    stream: &'a TcpStream,
    stop: &'a AtomicBool,
    deadline: Instant,
}

impl Read for Bounded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Relaxed) {
                return Err(io::Error::other(LinkError::Stopped));
            }
            if Instant::now() >= self.deadline {
                return Err(io::Error::other(LinkError::Silent));
            }
            match self.stream.read(into) {
                Err(error) if error.kind() == ErrorKind::Interrupted || is_timeout(&error) => {}
                read => return read,
            }
        }
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What ended a handshake.
fn why(error: io::Error) -> LinkError {
    match error.downcast::<LinkError>() {
        Ok(error) => error,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => LinkError::Closed,
        Err(error) if is_timeout(&error) => LinkError::Stuck,
        Err(error) => LinkError::Io(error),
    }
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
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
        let mut connection = greet(here, tuning.connect).unwrap();
        if let Some(link) = link {
            connection = connection.established(link, &tuning).unwrap();
        }
        let mut reader = connection.reader;
        there.shutdown(std::net::Shutdown::Write).unwrap();
        reader.frame().unwrap_err()
    }

    fn greet(stream: TcpStream, within: Duration) -> Result<Connection, LinkError> {
        Greeting { end: End::Source, secure: None, within, stop: &Arc::default() }.greet(stream)
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
        let sent = Outflow::new(here.try_clone().unwrap(), None).frame(Tag::State, &payload, &[]);
        assert!(matches!(sent, Err(LinkError::Stuck)), "{sent:?}");
        here.shutdown(std::net::Shutdown::Both).unwrap();
        drop(here);
        trickle.join().unwrap();
    }
}
