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
use super::offer::Offer;
use super::seal::Seal;
use super::sink::Sink;
use crate::destination::Input;
use crate::failure::Link;
use crate::machine::Destination;
use crate::secure::{End, Secure};
use crate::tuning::Tuning;
use crate::wire::{Control, Hello, PAGE_STREAMS_MAX, Role, Tag, Welcome, WireError};

/// Between two looks for a new connection.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);
/// The same while it is not known that any will come.
const REJOIN_INTERVAL: Duration = Duration::from_millis(20);
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
    /// Between two looks.
    interval: Duration,
}

impl Arrivals {
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, silent: VecDeque::new(), interval: ACCEPT_INTERVAL })
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
            thread::sleep(self.interval);
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

/// Takes in the page streams, and then whatever connections the source makes anew.
pub(super) struct Acceptor {
    pub(super) arrivals: Arrivals,
    pub(super) greeter: Greeter,
    pub(super) migration: MigrationId,
    pub(super) epoch: Epoch,
    pub(super) tuning: Tuning,
    pub(super) machine: Arc<dyn Destination>,
    pub(super) sender: SyncSender<Event>,
    pub(super) peer: String,
    pub(super) seal: Seal,
    /// The streams that are open, so that they can be ended.
    pub(super) opened: Arc<Mutex<Vec<TcpStream>>>,
    pub(super) post_copy: bool,
    /// The source understands what kept memory is offered by.
    pub(super) reuse: bool,
    /// The source's newest connections: older ones are refused.
    pub(super) session: u32,
}

impl Acceptor {
    /// Starts a sink for each stream until all are open; if memory may follow, then takes the source in again as often as
    /// it comes. Returns the sinks' threads.
    pub(super) fn run(mut self, count: u32) -> Vec<JoinHandle<()>> {
        let mut sinks = Vec::new();
        let mut newer = self.take_streams(count, &mut sinks);
        while self.post_copy && !self.greeter.stop.load(Relaxed) {
            self.arrivals.interval = REJOIN_INTERVAL;
            let next = match newer.take() {
                Some(newer) => Ok(Some(newer)),
                None => self.arrive(Instant::now() + self.tuning.accept),
            };
            match next {
                Ok(Some((connection, hello))) if self.rejoins(&hello) => {
                    self.rejoin(connection, &hello);
                    newer = self.take_streams(count, &mut sinks);
                }
                Ok(Some((connection, hello))) => refuse(connection, self.migration, &hello),
                Ok(None) | Err(LinkError::Silent | LinkError::Stopped) => {}
                Err(error) => {
                    tracing::warn!(%error, "the source can no longer connect");
                    break;
                }
            }
            sinks.retain(|sink| !sink.is_finished());
        }
        sinks
    }

    /// Opens the streams of this session. Ends early if the source begins a newer one, whose connection it returns.
    fn take_streams(&mut self, count: u32, sinks: &mut Vec<JoinHandle<()>>) -> Option<(Connection, Hello)> {
        self.arrivals.interval = ACCEPT_INTERVAL;
        let deadline = Instant::now() + self.tuning.connect * count;
        let mut open = vec![false; count as usize];
        while let Some(missing) = open.iter().position(|open| !open) {
            match self.next(&mut open, deadline, sinks) {
                Ok(None) => {}
                Ok(newer) => return newer,
                Err(error) => {
                    let link = Link::Pages(missing as u32);
                    let input = Input::Lost { link, error: error.describe(&self.peer, link) };
                    // The engine may have gone; then there is nobody left to tell.
                    let _ = self.sender.send(Event::Of(self.session, input));
                    return None;
                }
            }
        }
        None
    }

    fn next(
        &mut self,
        open: &mut [bool],
        deadline: Instant,
        sinks: &mut Vec<JoinHandle<()>>,
    ) -> Result<Option<(Connection, Hello)>, LinkError> {
        let Some((connection, hello)) = self.arrive(deadline)? else { return Ok(None) };
        match hello.role {
            Role::Pages { stream } if self.is_now(&hello) && open.get(stream as usize) == Some(&false) => {
                self.open((stream, open.len() as u32), connection, sinks)?;
                open[stream as usize] = true;
            }
            _ if self.rejoins(&hello) => return Ok(Some((connection, hello))),
            _ => refuse(connection, self.migration, &hello),
        }
        Ok(None)
    }

    /// A connection and its first words; none if it was not the source's.
    fn arrive(&mut self, deadline: Instant) -> Result<Option<(Connection, Hello)>, LinkError> {
        let stream = self.arrivals.next(deadline, &self.greeter.stop)?;
        let greeted = self.greeter.greet(stream);
        let unknown =
            |error: &LinkError| tracing::warn!(%error, "a connection that is not the source's was closed");
        Ok(greeted.inspect_err(unknown).ok())
    }

    fn is_now(&self, hello: &Hello) -> bool {
        self.is_ours(hello) && hello.session == self.session
    }

    fn is_ours(&self, hello: &Hello) -> bool {
        hello.migration == self.migration && hello.epoch == self.epoch
    }

    /// The newest connections win: that the ones before are broken may not be known here yet.
    fn rejoins(&self, hello: &Hello) -> bool {
        let newer = self.is_ours(hello) && hello.session > self.session;
        newer && matches!(hello.role, Role::Control { .. }) && self.seal.arriving().is_some()
    }

    fn rejoin(&mut self, connection: Connection, hello: &Hello) {
        match connection.established(Link::Control, &self.tuning) {
            Ok(connection) => {
                self.session = hello.session;
                let _ = self.sender.send(Event::Rejoined { session: self.session, connection });
            }
            Err(error) => tracing::warn!(%error, "the source's new connection broke at once"),
        }
    }

    /// Opens a stream of so many.
    fn open(
        &self,
        (stream, count): (u32, u32),
        connection: Connection,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Result<(), LinkError> {
        let mut connection = connection.established(Link::Pages(stream), &self.tuning)?;
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(connection.stream()?);
        // On later connections guest memory is not what it was.
        let offer =
            if self.reuse && self.session == 0 { Offer::of(&self.machine).map(Arc::new) } else { None };
        let key = offer.as_ref().and_then(|offer| offer.key());
        let digest_key = key.map_or_else(Vec::new, Vec::from);
        connection.writer.control(&Control::Welcome(Welcome { digest_key, ..Welcome::default() }))?;
        let Connection { reader, writer } = connection;
        let sink = Sink::new(stream, reader, Arc::clone(&self.machine), self.seal.clone(), offer.clone());
        let (sender, session, peer) = (self.sender.clone(), self.session, self.peer.clone());
        let named = |what: &str| thread::Builder::new().name(format!("mig-{what}-{stream}"));
        threads.push(named("sink").spawn(move || sink.run(count, &sender, session, &peer))?);
        if let Some(offer) = offer {
            threads.push(named("offer").spawn(move || offer.send((stream, count), writer))?);
        }
        let _ = self.sender.send(Event::Of(self.session, Input::StreamOpened));
        Ok(())
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
