//! UDP echo.

use std::net::{Ipv4Addr, UdpSocket};

const ECHO_PORT: u16 = 7;
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// Sends every datagram back, for ever.
pub(super) fn echo() {
    let socket = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT)) {
        Ok(socket) => socket,
        Err(error) => return eprintln!("guest: echo: {error}"),
    };
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // An answer that cannot be sent is lost, as datagrams are.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}
