//! The VM's console: a log that grows, and a Unix socket for any number of clients, whatever port the guest uses.
//!
//! ```text
//!  serial port (ttyS0) ---+                      +---> log
//!                         +---> Console, thread -+---> clients
//!  virtio port (hvc0) ----+
//!          ^------- what clients type goes to the virtio port once the guest has printed there, else to the serial port
//! ```
//!
//! One thread moves the bytes. The guest only ever appends to a buffer in memory: a slow disk costs it nothing until the
//! buffer is full, a slow client loses the oldest output that it has not read, and neither stops the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use vmm_sys_util::eventfd::EventFd;

use super::legacy::serial::Serial;
use super::virtio::console::ConsolePort;
use crate::sandbox::{self, Kind};

/// Output that waits for the thread; more is dropped.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Output that waits for one client; older bytes are dropped.
const CLIENT_BYTES_MAX: usize = 64 << 10;
/// Input that waits for the guest; clients are not read while there is this much.
const INPUT_BYTES_MAX: usize = 4 << 10;
/// Clients at a time; more are turned away.
const CLIENTS_MAX: usize = 16;

/// Where the guest prints, and reads what is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Serial,
    Virtio,
}

/// The buffer between the ports and the console's thread.
pub struct Console {
    output: Mutex<Vec<u8>>,
    wake: EventFd,
    /// Whether the thread holds input that did not fit into the port.
    input_waits: AtomicBool,
    /// Whether the guest uses the virtio port.
    on_virtio: AtomicBool,
}

impl Console {
    /// A console without a thread; see [`serve`].
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (input_waits, on_virtio) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { output: Mutex::default(), wake, input_waits, on_virtio })
    }

    /// The port that gets what is typed. It does not change with every word: the kernel's messages on one port must not
    /// tear apart what is typed at the other.
    pub(super) fn port(&self) -> Port {
        if self.on_virtio.load(Ordering::Acquire) { Port::Virtio } else { Port::Serial }
    }

    pub(super) fn set_port(&self, port: Port) {
        self.on_virtio.store(port == Port::Virtio, Ordering::Release);
    }

    /// Takes output of the guest.
    pub(super) fn print(&self, port: Port, bytes: &[u8]) {
        if port == Port::Virtio {
            self.set_port(port);
        }
        let mut output = self.output.lock().expect("no user of the console panics");
        let first = output.is_empty();
        let room = OUTPUT_BYTES_MAX - output.len();
        output.extend(&bytes[..bytes.len().min(room)]);
        if first {
            self.wake();
        }
    }

    /// What the guest has printed since the last call.
    pub(super) fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut *self.output.lock().expect("no user of the console panics"))
    }

    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = self.wake.write(1);
    }

    pub(super) fn wake_for_input(&self) {
        if self.input_waits.load(Ordering::Acquire) {
            self.wake();
        }
    }
}

/// Starts the console's thread.
pub fn serve(
    console: Arc<Console>,
    serial: Arc<Serial>,
    virtio: Arc<ConsolePort>,
    listener: UnixListener,
    log: File,
) -> io::Result<Running> {
    listener.set_nonblocking(true)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (shared, stopping) = (Arc::clone(&console), Arc::clone(&stop));
    let thread = thread::Builder::new().name("console".into()).spawn(move || {
        sandbox::enter(Kind::Console);
        let mut server = Server {
            console: shared,
            serial,
            virtio,
            listener,
            log,
            clients: vec![],
            input: VecDeque::new(),
        };
        while !stopping.load(Ordering::Acquire) {
            server.wait();
            server.turn();
        }
        server.turn();
    })?;
    Ok(Running { console, stop, thread: Some(thread) })
}

/// The console's thread. Dropping it writes out what the guest has printed, then ends it.
pub struct Running {
    console: Arc<Console>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.console.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    console: Arc<Console>,
    serial: Arc<Serial>,
    virtio: Arc<ConsolePort>,
    listener: UnixListener,
    log: File,
    clients: Vec<Client>,
    input: VecDeque<u8>,
}

struct Client {
    stream: UnixStream,
    unread: VecDeque<u8>,
}

impl Server {
    /// Waits until there is something to do.
    fn wait(&self) {
        let poll = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
        let mut fds = vec![
            poll(self.console.wake.as_raw_fd(), libc::POLLIN),
            poll(self.listener.as_raw_fd(), libc::POLLIN),
        ];
        for client in &self.clients {
            let input = if self.input.len() < INPUT_BYTES_MAX { libc::POLLIN } else { 0 };
            let output = if client.unread.is_empty() { 0 } else { libc::POLLOUT };
            fds.push(poll(client.stream.as_raw_fd(), input | output));
        }
        // SAFETY: the array is valid for its length; the descriptors are open.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    }

    /// Does everything that can be done without waiting.
    fn turn(&mut self) {
        // Nothing to read is no error: somebody else woke us.
        let _ = self.console.wake.read();
        self.accept();
        self.distribute();
        let input = &mut self.input;
        self.clients.retain_mut(|client| client.read(input) && client.write());
        self.feed();
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, unread: VecDeque::new() });
            }
        }
    }

    /// Hands the guest's output to the log and to every client.
    fn distribute(&mut self) {
        let output = self.console.take_output();
        if let Err(error) = self.log.write_all(&output) {
            tracing::warn!("cannot write the console's log: {error}");
        }
        for client in &mut self.clients {
            client.unread.extend(&output);
            let excess = client.unread.len().saturating_sub(CLIENT_BYTES_MAX);
            client.unread.drain(..excess);
        }
    }

    /// Hands input to the port, as much as it takes now.
    fn feed(&mut self) {
        loop {
            // Set first: a port that becomes empty after it has refused will wake this thread again.
            self.console.input_waits.store(!self.input.is_empty(), Ordering::Release);
            let input = self.input.make_contiguous();
            let taken = match self.console.port() {
                Port::Serial => self.serial.offer(input),
                Port::Virtio => self.virtio.offer(input),
            };
            self.input.drain(..taken);
            if taken == 0 || self.input.is_empty() {
                return;
            }
        }
    }
}

impl Client {
    /// Reads what there is; false if the client is gone.
    fn read(&mut self, input: &mut VecDeque<u8>) -> bool {
        let mut bytes = [0; 512];
        while input.len() < INPUT_BYTES_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => input.extend(&bytes[..count]),
                Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            }
        }
        true
    }

    /// Writes what the client takes now; false if it is gone.
    fn write(&mut self) -> bool {
        while !self.unread.is_empty() {
            match self.stream.write(self.unread.as_slices().0) {
                Ok(count) => drop(self.unread.drain(..count)),
                Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::bus::BusDevice;

    struct Fixture {
        console: Arc<Console>,
        serial: Arc<Serial>,
        virtio: Arc<ConsolePort>,
        running: Option<Running>,
        socket: PathBuf,
        log: PathBuf,
        _folder: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let (socket, log) = (folder.path().join("console"), folder.path().join("log"));
        let console = Arc::new(Console::new().unwrap());
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Arc::new(Serial::new(interrupt, Arc::clone(&console)).unwrap());
        let virtio = ConsolePort::new(Arc::clone(&console)).unwrap();
        let ports = (Arc::clone(&serial), Arc::clone(&virtio));
        let listener = UnixListener::bind(&socket).unwrap();
        let file = File::create(&log).unwrap();
        let running = serve(Arc::clone(&console), ports.0, ports.1, listener, file).unwrap();
        Fixture { console, serial, virtio, running: Some(running), socket, log, _folder: folder }
    }

    fn guest_prints(serial: &Serial, text: &[u8]) {
        text.iter().for_each(|byte| serial.write(0, &[*byte]));
    }

    #[test]
    fn everything_printed_is_in_the_log_when_the_console_ends() {
        let mut fixture = fixture();
        guest_prints(&fixture.serial, b"hello from the guest\n");
        drop(fixture.running.take());
        assert_eq!(std::fs::read(&fixture.log).unwrap(), b"hello from the guest\n");
    }

    #[test]
    fn clients_come_and_go_and_type_to_the_guest() {
        let fixture = fixture();
        for round in 0..3u8 {
            let mut client = UnixStream::connect(&fixture.socket).unwrap();
            client.write_all(&[b'a' + round]).unwrap();
            let mut typed = [0];
            while typed[0] != b'a' + round {
                fixture.serial.read(0, &mut typed);
                thread::yield_now();
            }
            guest_prints(&fixture.serial, &[b'A' + round]);
            let mut printed = [0];
            client.read_exact(&mut printed).unwrap();
            assert_eq!(printed[0], b'A' + round);
        }
    }

    #[test]
    fn both_ports_print_and_a_virtio_port_in_use_is_typed_at() {
        let mut fixture = fixture();
        guest_prints(&fixture.serial, b"kernel\n");
        fixture.console.print(Port::Virtio, b"login: ");
        guest_prints(&fixture.serial, b"eth0 is up\n");
        let mut client = UnixStream::connect(&fixture.socket).unwrap();
        client.write_all(b"root").unwrap();
        while fixture.virtio.waiting() < 4 {
            thread::yield_now();
        }
        let mut status = [0];
        fixture.serial.read(5, &mut status);
        assert_eq!(status[0] & 1, 0, "nothing is typed at the serial port");
        drop(fixture.running.take());
        assert_eq!(std::fs::read(&fixture.log).unwrap(), b"kernel\nlogin: eth0 is up\n");
    }

    #[test]
    fn a_client_that_never_reads_stops_neither_the_guest_nor_the_log() {
        let mut fixture = fixture();
        let stuck = UnixStream::connect(&fixture.socket).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..1024 {
            guest_prints(&fixture.serial, &line);
        }
        drop(fixture.running.take());
        assert_eq!(std::fs::metadata(&fixture.log).unwrap().len(), 1 << 20);
        drop(stuck);
    }

    #[test]
    fn more_input_than_the_port_holds_arrives_whole_and_in_order() {
        let fixture = fixture();
        let mut client = UnixStream::connect(&fixture.socket).unwrap();
        let typed: Vec<u8> = (0..1000u32).map(|n| (n % 250) as u8 + 1).collect();
        client.write_all(&typed).unwrap();
        let mut read = Vec::new();
        while read.len() < typed.len() {
            let (mut status, mut byte) = ([0], [0]);
            fixture.serial.read(5, &mut status);
            if status[0] & 1 == 1 {
                fixture.serial.read(0, &mut byte);
                read.push(byte[0]);
            } else {
                thread::yield_now();
            }
        }
        assert_eq!(read, typed);
    }
}
