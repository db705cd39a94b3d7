//! The guest on the network: HTTP on TCP port 80, echo on UDP port 7, and answers to ping.

use core::net::Ipv4Addr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::clock::{self, Micros};
use crate::http::{Connection, HEAD_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response};
use crate::memory::Memory;
use crate::net::Card;

const HTTP_PORT: u16 = 80;
const ECHO_PORT: u16 = 7;
/// HTTP connections at a time.
const CONNECTIONS_MAX: usize = 32;
const ECHO_PACKETS: usize = 32;
const ECHO_BYTES: usize = 32 << 10;
/// A connection is probed after this long without a sign of its peer, and given up after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time between two polls of the stack.
const POLL_INTERVAL: Micros = 50_000;

/// The network stack with its services.
pub struct Network {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    http: [(SocketHandle, Connection); CONNECTIONS_MAX],
    echo: SocketHandle,
    next_poll: Micros,
}

impl Network {
    /// Takes the card into use; `None` if there is not enough memory.
    pub fn new(mut card: Card, address: (Ipv4Addr, u8), memory: &mut Memory) -> Option<Self> {
        let mut config = Config::new(HardwareAddress::Ethernet(card.mac));
        config.random_seed = clock::timestamp();
        let mut interface = Interface::new(config, &mut card, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list has room for two.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address.0), address.1));
        });
        let mut sockets = SocketSet::new(memory.filled(CONNECTIONS_MAX + 1, || SocketStorage::EMPTY)?);
        let echo = sockets.add(echo_socket(memory)?);
        let mut http = core::array::from_fn(|_| (echo, Connection::default()));
        for (handle, _) in &mut http {
            *handle = sockets.add(http_socket(memory)?);
        }
        Some(Self { card, interface, sockets, http, echo, next_poll: 0 })
    }

    /// Handles what has arrived and what is due. False if there was nothing.
    pub fn step(&mut self, now: Micros, answer: &mut dyn FnMut(Request<'_>) -> Response) -> bool {
        if now < self.next_poll && !self.card.has_received() {
            return false;
        }
        let instant = Instant::from_micros(now as i64);
        self.interface.poll(instant, &mut self.card, &mut self.sockets);
        for (handle, connection) in &mut self.http {
            serve(self.sockets.get_mut(*handle), connection, answer);
        }
        echo(self.sockets.get_mut(self.echo));
        self.interface.poll(instant, &mut self.card, &mut self.sockets);
        let delay = self.interface.poll_delay(instant, &self.sockets);
        self.next_poll = now + delay.map_or(POLL_INTERVAL, |delay| delay.total_micros().min(POLL_INTERVAL));
        true
    }
}

fn serve(
    socket: &mut tcp::Socket<'_>,
    connection: &mut Connection,
    answer: &mut dyn FnMut(Request<'_>) -> Response,
) {
    if socket.state() == tcp::State::TimeWait {
        // There are few sockets, and this network does not delay segments for minutes.
        socket.abort();
    }
    if !socket.is_open() {
        *connection = Connection::default();
        socket.listen(HTTP_PORT).expect("a closed socket can listen");
    } else if socket.is_active() {
        connection.serve(socket, answer);
    }
}

fn echo(socket: &mut udp::Socket<'_>) {
    let mut buffer = [0; 2048];
    while socket.can_send()
        && let Ok((length, from)) = socket.recv_slice(&mut buffer)
    {
        // A full queue drops the answer, as UDP may.
        let _ = socket.send_slice(&buffer[..length], from);
    }
}

fn http_socket(memory: &mut Memory) -> Option<tcp::Socket<'static>> {
    let receive = tcp::SocketBuffer::new(bytes(memory, 4 * HEAD_BYTES_MAX)?);
    let send = tcp::SocketBuffer::new(bytes(memory, 2 * RESPONSE_BYTES_MAX)?);
    let mut socket = tcp::Socket::new(receive, send);
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(TIMEOUT));
    Some(socket)
}

fn echo_socket(memory: &mut Memory) -> Option<udp::Socket<'static>> {
    let mut packets = || {
        let metadata = memory.filled(ECHO_PACKETS, || udp::PacketMetadata::EMPTY)?;
        Some(udp::PacketBuffer::new(metadata, bytes(memory, ECHO_BYTES)?))
    };
    let mut socket = udp::Socket::new(packets()?, packets()?);
    socket.bind(ECHO_PORT).expect("a new socket can be bound");
    Some(socket)
}

fn bytes(memory: &mut Memory, count: usize) -> Option<&'static mut [u8]> {
    memory.filled(count, || 0)
}
