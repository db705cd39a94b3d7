//! Raw frames: sending announcements, and looking at what a guest says about its addresses.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, recv, sendto, socket,
};
use tokio::io::unix::AsyncFd;

use super::{Links, NetError};

/// Room for the frames that [`Capture`] lets through, in bytes: ARP and neighbour discovery are short.
const CAPTURE_BYTES_MAX: usize = 256;

/// Sends raw frames out of one interface.
#[derive(Debug)]
pub(crate) struct Sender {
    socket: OwnedFd,
    to: LinkAddr,
    interface: String,
}

impl Sender {
    pub(crate) fn open(interface: &str) -> Result<Self, NetError> {
        // A packet socket of protocol 0 receives nothing.
        let (socket, to) = packet_socket(interface, 0)?;
        Ok(Self { socket, to, interface: interface.to_owned() })
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), NetError> {
        sendto(self.socket.as_raw_fd(), frame, &self.to, MsgFlags::empty()).map(drop).map_err(|errno| {
            NetError::Packet {
                action: "send a frame",
                interface: self.interface.clone(),
                source: errno.into(),
            }
        })
    }
}

/// Receives the ARP and IPv6 neighbour discovery frames that pass an interface, in either direction.
///
/// The filter runs in the kernel, so other frames cost a few instructions and are not copied.
#[derive(Debug)]
pub(crate) struct Capture {
    socket: AsyncFd<OwnedFd>,
}

impl Capture {
    pub(crate) fn open(interface: &str) -> Result<Self, NetError> {
        let failed = |source| NetError::Packet {
            action: "look at addresses",
            interface: interface.to_owned(),
            source,
        };
        let (socket, _) = packet_socket(interface, 0)?;
        // Before the socket is bound, so that nothing unfiltered gets in.
        attach_filter(&socket).map_err(failed)?;
        // A bridge takes its ports' frames before sockets of one protocol see them; those of all protocols come first.
        let everything = link_address(interface, libc::ETH_P_ALL as u16)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &everything).map_err(|errno| failed(errno.into()))?;
        // SAFETY: an OwnedFd names the same open descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self { socket: socket.map_err(|error| failed(error.into()))? })
    }

    /// The next frame, cut to its first bytes.
    pub(crate) async fn next(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = vec![0; CAPTURE_BYTES_MAX];
            let read = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?));
            match read {
                Ok(Ok(length)) => {
                    buffer.truncate(length);
                    return Ok(buffer);
                }
                // The interface was set down; it may come up again.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

fn packet_socket(interface: &str, protocol: u16) -> Result<(OwnedFd, LinkAddr), NetError> {
    let address = link_address(interface, protocol)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let none: Option<SockProtocol> = None;
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, flags, none).map_err(|errno| NetError::Packet {
            action: "open a packet socket",
            interface: interface.to_owned(),
            source: errno.into(),
        })?;
    Ok((socket, address))
}

fn link_address(interface: &str, protocol: u16) -> Result<LinkAddr, NetError> {
    let index = Links::open()?.get(interface)?.index;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length describe a complete sockaddr_ll of the family AF_PACKET.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    Ok(address.expect("the family and the length are those of a LinkAddr"))
}

/// Accepts ARP, and ICMPv6 neighbour solicitations and advertisements directly after the IPv6 header.
fn attach_filter(socket: &OwnedFd) -> io::Result<()> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD_HALF, 0, 0, 12),
        step(JUMP_EQUAL, 6, 0, 0x0806), // ARP: accept
        step(JUMP_EQUAL, 0, 6, 0x86dd), // not IPv6: drop
        step(LOAD_BYTE, 0, 0, 20),
        step(JUMP_EQUAL, 0, 4, 58), // not ICMPv6: drop
        step(LOAD_BYTE, 0, 0, 54),
        step(JUMP_EQUAL, 1, 0, 135), // neighbour solicitation: accept
        step(JUMP_EQUAL, 0, 1, 136), // neighbour advertisement: accept
        step(RETURN, 0, 0, CAPTURE_BYTES_MAX as u32),
        step(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the pointers and lengths describe `program` and the array behind it, which outlive the call; the kernel copies both.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
