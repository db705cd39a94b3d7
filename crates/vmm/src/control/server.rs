//! Clients of the control socket: a thread that reads each one's requests and a thread that writes its lines.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use godwit_types::control::{LINE_BYTES_MAX, MIGRATION_CONNECTIONS_MAX, Reply, Request};
use godwit_types::{ApiError, ErrorCode};

use super::Handler;
use super::hub::{Hub, Lines, line};
use crate::sandbox::{self, Kind};

/// Clients at a time; more are turned away.
const CLIENTS_MAX: usize = 32;
/// Lines that wait for one client.
const LINES_MAX: usize = 256;
/// How long a client may take to accept a line before it is given up.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// A control socket that is served.
pub struct Server {
    hub: Arc<Hub>,
    clients: Arc<Clients>,
}

/// The clients that are connected, or have lines that are not written yet.
#[derive(Default)]
struct Clients {
    streams: Mutex<BTreeMap<u64, UnixStream>>,
    changed: Condvar,
}

impl Server {
    /// Serves those who have connected already and those who will.
    pub fn start(listener: UnixListener, hub: Arc<Hub>, handler: Arc<Handler>) -> io::Result<Self> {
        let clients = Arc::new(Clients::default());
        let server = Self { hub: Arc::clone(&hub), clients: Arc::clone(&clients) };
        thread::Builder::new().name("control".into()).spawn(move || {
            sandbox::enter(Kind::Control);
            for (id, stream) in (0..).zip(listener.incoming()) {
                let served = stream.and_then(|stream| Client::start(id, stream, &hub, &handler, &clients));
                if let Err(error) = served {
                    tracing::warn!("a client of the control socket was turned away: {error}");
                }
            }
        })?;
        Ok(server)
    }

    /// Ends all connections, once everything that clients were sent is written, but not later than after `limit`.
    pub fn close(&self, limit: Duration) {
        self.hub.close();
        let streams = self.clients.streams();
        for stream in streams.values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        drop(self.clients.changed.wait_timeout_while(streams, limit, |streams| !streams.is_empty()));
    }
}

impl Clients {
    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, UnixStream>> {
        self.streams.lock().expect("no client's thread panics")
    }
}

/// A client's place among [`Clients`], held by its writer.
struct Client {
    id: u64,
    clients: Arc<Clients>,
}

impl Client {
    /// Starts the two threads of a client.
    fn start(
        id: u64,
        stream: UnixStream,
        hub: &Arc<Hub>,
        handler: &Arc<Handler>,
        clients: &Arc<Clients>,
    ) -> io::Result<()> {
        stream.set_write_timeout(Some(WRITE_MAX))?;
        let (input, output) = (stream.try_clone()?, stream.try_clone()?);
        let client = Self::enter(id, stream, clients)?;
        let (lines, to_write) = sync_channel(LINES_MAX);
        thread::Builder::new().name("control-write".into()).spawn(move || client.write(output, &to_write))?;
        let (hub, handler) = (Arc::clone(hub), Arc::clone(handler));
        thread::Builder::new().name("control-read".into()).spawn(move || {
            read(id, input, &lines, &hub, &*handler);
            hub.unsubscribe(id);
        })?;
        Ok(())
    }

    fn enter(id: u64, stream: UnixStream, clients: &Arc<Clients>) -> io::Result<Self> {
        let mut streams = clients.streams();
        if streams.len() >= CLIENTS_MAX {
            return Err(io::Error::other("there are too many"));
        }
        streams.insert(id, stream);
        Ok(Self { id, clients: Arc::clone(clients) })
    }

    fn write(self, mut output: UnixStream, lines: &Receiver<String>) {
        while let Ok(line) = lines.recv() {
            if output.write_all(line.as_bytes()).is_err() {
                break;
            }
        }
        let _ = output.shutdown(Shutdown::Both);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.streams().remove(&self.id);
        self.clients.changed.notify_all();
    }
}

/// Serves a client's requests until it is gone.
fn read(client: u64, input: UnixStream, lines: &Lines, hub: &Hub, handler: &Handler) {
    let mut input = BufReader::new(Input { stream: input, descriptors: Vec::new() });
    while let Ok(Some(text)) = read_line(&mut input) {
        // Those that a request does not want are closed with it.
        let descriptors = std::mem::take(&mut input.get_mut().descriptors);
        let reply = match serde_json::from_slice(&text) {
            Ok(Request::Subscribe) => {
                hub.subscribe(client, lines.clone(), &Reply::Done);
                continue;
            }
            Ok(request) => handler(request, descriptors),
            Err(error) => {
                Reply::Error { error: ApiError::new(ErrorCode::Invalid, format!("not a request: {error}")) }
            }
        };
        if lines.send(line(&reply)).is_err() {
            return;
        }
    }
}

/// A client's bytes, and the descriptors that have come with them since the last request.
struct Input {
    stream: UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (length, received) = godwit_provision::receive(&self.stream, bytes)?;
        self.descriptors.extend(received);
        if self.descriptors.len() > MIGRATION_CONNECTIONS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more descriptors than any request may bring",
            ));
        }
        Ok(length)
    }
}

/// One line without its end; `None` at the end of the stream.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line that is too long or has no end")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use godwit_types::Epoch;
    use godwit_types::control::VmmState;

    use super::*;
    use crate::machine::Observer;

    struct Fixture {
        hub: Arc<Hub>,
        server: Server,
        socket: PathBuf,
        _folder: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control");
        let hub = Arc::new(Hub::default());
        let handler: Arc<Handler> = Arc::new(|_, _| Reply::Done);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Server::start(listener, Arc::clone(&hub), handler).unwrap();
        Fixture { hub, server, socket, _folder: folder }
    }

    fn ask(client: &mut BufReader<UnixStream>, request: &str) -> String {
        client.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_line(&mut answer).unwrap();
        answer
    }

    fn connect(fixture: &Fixture) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(&fixture.socket).unwrap())
    }

    #[test]
    fn requests_are_answered_in_order_and_nonsense_is_refused_without_losing_the_client() {
        let fixture = fixture();
        let mut client = connect(&fixture);
        assert!(ask(&mut client, "{\"request\":\"make_coffee\"}").contains("\"invalid\""));
        assert_eq!(ask(&mut client, "{\"request\":\"reset\"}"), "{\"reply\":\"done\"}\n");
    }

    #[test]
    fn what_subscribers_were_told_is_written_before_the_connection_ends() {
        let fixture = fixture();
        let mut client = connect(&fixture);
        ask(&mut client, "{\"request\":\"subscribe\"}");
        for epoch in 0..100 {
            fixture.hub.state(VmmState::Running, Epoch(epoch));
        }
        fixture.server.close(Duration::from_secs(10));
        assert_eq!(client.lines().count(), 100);
    }

    #[test]
    fn clients_that_have_gone_make_room_for_others() {
        let fixture = fixture();
        for _ in 0..3 * CLIENTS_MAX {
            let mut client = connect(&fixture);
            while !ask(&mut client, "{\"request\":\"subscribe\"}").contains("done") {
                // Turned away while the ones before are still leaving.
                thread::yield_now();
                client = connect(&fixture);
            }
        }
    }

    #[test]
    fn descriptors_that_no_request_wants_are_closed_and_a_flood_of_them_ends_the_client() {
        let fixture = fixture();
        let mut client = connect(&fixture);
        let (mut kept, passed) = UnixStream::pair().unwrap();
        godwit_provision::send(client.get_ref(), b"{\"request\":\"reset\"}\n", &[passed]).unwrap();
        client.read_line(&mut String::new()).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody holds the other end any more");
        let many = vec![&kept; MIGRATION_CONNECTIONS_MAX];
        for _ in 0..2 {
            let _ = godwit_provision::send(client.get_ref(), b" ", &many);
        }
        assert_eq!(client.read_line(&mut String::new()).unwrap_or(0), 0);
    }
}
