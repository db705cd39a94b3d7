//! Takes in the connections of one migration at its destination.
//!
//! The source opens them all before it speaks, so which is which is told by what each says, and not by the order in which
//! they come: a page stream says nothing before the control connection was welcomed.

use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId};

use super::incoming::Event;
use super::link::{Connection, Greeting, LinkError};
use super::sink::{Seal, Sink};
use crate::destination::Input;
use crate::failure::Link;
use crate::machine::Destination;
use crate::secure::{End, Secure};
use crate::tuning::Tuning;
use crate::wire::{Control, Hello, PAGE_STREAMS_MAX, Role, Tag, Welcome, WireError};

/// Between two looks for a new connection.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);
/// Connections that have said nothing yet; of more, the oldest is closed.
const SILENT_MAX: usize = 2 * PAGE_STREAMS_MAX as usize;

/// Waits for the control connection. Whoever else connects is sent away.
pub(super) fn await_source(
    arrivals: &mut Arrivals,
    migration: MigrationId,
    tuning: &Tuning,
    greeter: &Greeter,
) -> Result<(Connection, Hello), ApiError> {
    let deadline = Instant::now() + tuning.accept;
    loop {
        let stream = arrivals.next(deadline, &greeter.stop).map_err(|error| match error {
            LinkError::Silent => ApiError::new(
                ErrorCode::Unreachable,
                format!("the source has not connected within {} s", tuning.accept.as_secs_f64()),
            )
            .remedy("check that the source host reaches this host's migration address, then migrate again"),
            error => error.describe("source", Link::Control),
        })?;
        match greeter.greet(stream) {
            Ok((connection, hello))
                if hello.migration == migration && matches!(hello.role, Role::Control { .. }) =>
            {
                let connection = connection.established(Link::Control, tuning);
                return Ok((connection.map_err(|error| error.describe("source", Link::Control))?, hello));
            }
            Ok((connection, hello)) => refuse(connection, migration, &hello),
            Err(LinkError::Wire(error @ WireError::Version { .. })) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "a connection that is not the source's was closed"),
        }
    }
}

/// Connections in the order in which they begin to speak.
pub(super) struct Arrivals {
    listener: TcpListener,
    silent: VecDeque<TcpStream>,
}

impl Arrivals {
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, silent: VecDeque::new() })
    }

    /// The next connection that says something, or has ended.
    fn next(&mut self, deadline: Instant, stop: &AtomicBool) -> Result<TcpStream, LinkError> {
        loop {
            if stop.load(Relaxed) {
                return Err(LinkError::Stopped);
            }
            // Before each look, so that strangers who keep coming do not prolong the wait.
            if Instant::now() >= deadline {
                return Err(LinkError::Silent);
            }
            self.accept()?;
            if let Some(index) = self.silent.iter().position(speaks)
                && let Some(stream) = self.silent.remove(index)
            {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            thread::sleep(ACCEPT_INTERVAL);
        }
    }

    /// Takes in those who wait.
    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..SILENT_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    self.silent.push_back(stream);
                    if self.silent.len() > SILENT_MAX {
                        self.silent.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The connection that was about to be accepted is gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn speaks(stream: &TcpStream) -> bool {
    !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Greets those who connect.
pub(super) struct Greeter {
    pub(super) secure: Option<Arc<dyn Secure>>,
    /// How long a source waits for its greeting.
    pub(super) connect: Duration,
    pub(super) stop: Arc<AtomicBool>,
}

impl Greeter {
    fn greet(&self, stream: TcpStream) -> Result<(Connection, Hello), LinkError> {
        // A silent stranger must not use up the time in which the source expects an answer.
        let (secure, within) = (self.secure.as_deref(), self.connect / 2);
        let greeting = Greeting { end: End::Destination, secure, within, stop: &self.stop };
        let mut connection = greeting.greet(stream)?;
        let hello = match connection.reader.frame()? {
            (Tag::Hello, payload) => Hello::decode(payload)?,
            (tag, _) => return Err(WireError::OutOfPlace { tag, expected: "a hello" }.into()),
        };
        Ok((connection, hello))
    }
}

fn refuse(mut connection: Connection, migration: MigrationId, hello: &Hello) {
    let message =
        format!("this listener waits for migration {migration}, not for a stream of {}", hello.migration);
    tracing::warn!(source = hello.source, message, "a connection was refused");
    let _ = connection.writer.control(&Control::error(&ApiError::new(ErrorCode::Refused, message)));
}

/// Takes in the page streams.
pub(super) struct Acceptor {
    pub(super) arrivals: Arrivals,
    pub(super) greeter: Greeter,
    pub(super) migration: MigrationId,
    pub(super) epoch: Epoch,
    pub(super) tuning: Tuning,
    pub(super) machine: Arc<dyn Destination>,
    pub(super) sender: SyncSender<Event>,
    pub(super) peer: String,
    pub(super) seal: Arc<Seal>,
    /// The streams that are open, so that they can be ended.
    pub(super) opened: Arc<Mutex<Vec<TcpStream>>>,
}

impl Acceptor {
    /// Starts a sink for each stream until all are open; returns their threads.
    pub(super) fn run(mut self, count: u32) -> Vec<JoinHandle<()>> {
        let mut sinks: Vec<Option<JoinHandle<()>>> = (0..count).map(|_| None).collect();
        let deadline = Instant::now() + self.tuning.connect * count;
        while sinks.iter().any(Option::is_none) {
            if let Err((stream, error)) = self.next(&mut sinks, deadline) {
                let error = error.describe(&self.peer, Link::Pages(stream));
                // The engine may have gone; then there is nobody left to tell.
                let _ = self.sender.send(Event::Input(Input::Lost { link: Link::Pages(stream), error }));
                break;
            }
        }
        sinks.into_iter().flatten().collect()
    }

    fn next(
        &mut self,
        sinks: &mut [Option<JoinHandle<()>>],
        deadline: Instant,
    ) -> Result<(), (u32, LinkError)> {
        let missing = sinks.iter().position(Option::is_none).unwrap_or(0) as u32;
        let stream = self.arrivals.next(deadline, &self.greeter.stop).map_err(|error| (missing, error))?;
        let (connection, hello) = match self.greeter.greet(stream) {
            Ok(greeted) => greeted,
            Err(error) => {
                tracing::warn!(%error, "a connection that is not the source's was closed");
                return Ok(());
            }
        };
        let ours = hello.migration == self.migration && hello.epoch == self.epoch;
        match hello.role {
            Role::Pages { stream } if ours && matches!(sinks.get(stream as usize), Some(None)) => {
                sinks[stream as usize] = Some(
                    self.open((stream, sinks.len() as u32), connection).map_err(|error| (stream, error))?,
                );
            }
            _ => refuse(connection, self.migration, &hello),
        }
        Ok(())
    }

    /// Opens a stream of so many.
    fn open(&self, (stream, count): (u32, u32), connection: Connection) -> Result<JoinHandle<()>, LinkError> {
        let mut connection = connection.established(Link::Pages(stream), &self.tuning)?;
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(connection.stream()?);
        connection.writer.control(&Control::Welcome(Welcome {}))?;
        let sink = Sink::new(stream, connection.reader, Arc::clone(&self.machine), Arc::clone(&self.seal));
        let (sender, peer) = (self.sender.clone(), self.peer.clone());
        let thread = thread::Builder::new()
            .name(format!("mig-sink-{stream}"))
            .spawn(move || sink.run(count, &sender, &peer))
            .map_err(LinkError::Io)?;
        let _ = self.sender.send(Event::Input(Input::StreamOpened));
        Ok(thread)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn strangers_who_keep_coming_do_not_prolong_the_wait_for_the_source() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stranger.write_all(b"x").unwrap();
        let mut arrivals = Arrivals::new(listener).unwrap();
        let over = arrivals.next(Instant::now(), &AtomicBool::new(false));
        assert!(matches!(over, Err(LinkError::Silent)), "{over:?}");
    }
}
