//! Interfaces and bridges, through a route netlink socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use godwit_types::vm::MacAddress;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nix::sys::time::TimeVal;

use super::NetError;
use super::message::{
    HEADER_BYTES, LINK_BYTES, Message, Received, attribute, ifla, messages, read_text, read_u32,
};

/// How long the kernel may take to answer. It answers while it handles the request, so only a defect takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for one answer, in bytes: an interface with all its statistics is a few KiB.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The extended error text in an acknowledgement (`linux/netlink.h`).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A connection to the kernel's network configuration, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Links {
    socket: OwnedFd,
    sequence: u32,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// The index of the bridge that it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) is_bridge: bool,
    /// A bridge's spanning tree: its ports wait before they forward.
    pub(crate) spanning_tree: bool,
}

impl Links {
    pub(crate) fn open() -> Result<Self, NetError> {
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(|errno| NetError::Socket { source: errno.into() })?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs() as i64, 0);
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| NetError::Socket { source: errno.into() })?;
        explain_errors(&socket);
        Ok(Self { socket, sequence: 0 })
    }

    /// The interface of that name, or none.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>, NetError> {
        let request = Message::new(libc::RTM_GETLINK, 0).link(0, 0, 0).text(ifla::IFNAME, name);
        match self.exchange(request, || format!("find the interface {name}")) {
            Ok(answer) => answer.as_deref().and_then(read_link).map(Some).ok_or(NetError::Malformed),
            Err(NetError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface of that name, which must exist.
    pub(crate) fn get(&mut self, name: &str) -> Result<Link, NetError> {
        self.find(name)?.ok_or_else(|| NetError::NoInterface { name: name.to_owned() })
    }

    /// Creates a bridge that forwards at once and learns quickly: no spanning tree, and no multicast snooping, which
    /// would keep a guest that has just arrived from multicast (and so from IPv6) until its next membership report.
    pub(crate) fn create_bridge(&mut self, name: &str) -> Result<(), NetError> {
        let request = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .link(0, libc::IFF_UP, libc::IFF_UP)
            .text(ifla::IFNAME, name)
            .nested(ifla::LINKINFO, |info| {
                info.text(ifla::INFO_KIND, "bridge").nested(ifla::INFO_DATA, |data| {
                    data.attribute(ifla::BR_STP_STATE, &0u32.to_ne_bytes())
                        .attribute(ifla::BR_MCAST_SNOOPING, &[0])
                })
            });
        self.exchange(request, || format!("create the bridge {name}")).map(drop)
    }

    /// Makes an interface a port of the bridge `master`.
    pub(crate) fn enslave(&mut self, link: u32, master: u32) -> Result<(), NetError> {
        let request = Message::new(libc::RTM_NEWLINK, 0)
            .link(link, 0, 0)
            .attribute(ifla::MASTER, &master.to_ne_bytes());
        self.exchange(request, || "plug an interface into its bridge".to_owned()).map(drop)
    }

    /// Gives an interface its own address and MTU.
    pub(crate) fn configure(&mut self, link: u32, address: [u8; 6], mtu: u32) -> Result<(), NetError> {
        let request = Message::new(libc::RTM_NEWLINK, 0)
            .link(link, 0, 0)
            .attribute(ifla::ADDRESS, &address)
            .attribute(ifla::MTU, &mtu.to_ne_bytes());
        self.exchange(request, || "set an interface's address and MTU".to_owned()).map(drop)
    }

    /// Sets an interface administratively up or down.
    pub(crate) fn set_up(&mut self, link: u32, up: bool) -> Result<(), NetError> {
        let flags = if up { libc::IFF_UP } else { 0 };
        let request = Message::new(libc::RTM_NEWLINK, 0).link(link, flags, libc::IFF_UP);
        self.exchange(request, || format!("set an interface {}", if up { "up" } else { "down" })).map(drop)
    }

    /// Makes the bridge forward frames for `mac` to its port `port` from now on, as if it had learned it.
    pub(crate) fn learn(&mut self, port: u32, mac: MacAddress) -> Result<(), NetError> {
        let request = Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
            .neighbour(port, libc::NUD_REACHABLE, libc::NTF_MASTER)
            .attribute(libc::NDA_LLADDR, &mac.0);
        self.exchange(request, || format!("tell the bridge where {mac} is")).map(drop)
    }

    /// Removes an interface.
    pub(crate) fn delete(&mut self, link: u32) -> Result<(), NetError> {
        let request = Message::new(libc::RTM_DELLINK, 0).link(link, 0, 0);
        self.exchange(request, || "remove an interface".to_owned()).map(drop)
    }

    /// Sends a request; returns the body of the answer, if there is one before the acknowledgement.
    fn exchange(
        &mut self,
        request: Message,
        action: impl Fn() -> String,
    ) -> Result<Option<Vec<u8>>, NetError> {
        let failed = |source: io::Error| NetError::Refused { action: action(), said: String::new(), source };
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let mut answer = None;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|errno| failed(errno.into()))?;
            for message in messages(&buffer[..length]).filter(|m| m.sequence == self.sequence) {
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    let (code, said) = read_error(&message).ok_or(NetError::Malformed)?;
                    let source = io::Error::from_raw_os_error(code);
                    return if code == 0 {
                        Ok(answer)
                    } else {
                        Err(NetError::Refused { action: action(), said, source })
                    };
                }
                answer = Some(message.body.to_vec());
            }
        }
    }
}

/// Asks for a text with every error, and for errors without an echo of the request. Kernels before 4.12 have neither;
/// [`read_error`] then finds no text.
fn explain_errors(socket: &OwnedFd) {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let one: libc::c_int = 1;
        // SAFETY: the pointer and the length describe `one`, which outlives the call.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const one).cast(),
                size_of_val(&one) as libc::socklen_t,
            );
        }
    }
}

/// The error number of an acknowledgement, 0 for success, and what the kernel says about it.
fn read_error(message: &Received<'_>) -> Option<(i32, String)> {
    const FLAG_CAPPED: u16 = 0x100;
    let code = -(read_u32(message.body, 0)? as i32);
    let echo =
        if message.flags & FLAG_CAPPED == 0 { read_u32(message.body, 4)? as usize } else { HEADER_BYTES };
    let texts = message.body.get(4 + echo.next_multiple_of(4)..).unwrap_or_default();
    let said = attribute(texts, NLMSGERR_ATTR_MSG).map(read_text);
    Some((code, said.map(|text| format!(" ({text})")).unwrap_or_default()))
}

fn read_link(body: &[u8]) -> Option<Link> {
    let attributes = body.get(LINK_BYTES..)?;
    let number = |kind| attribute(attributes, kind).and_then(|payload| read_u32(payload, 0));
    let info = attribute(attributes, ifla::LINKINFO).unwrap_or_default();
    let is_bridge = attribute(info, ifla::INFO_KIND).map(read_text).as_deref() == Some("bridge");
    let bridge = attribute(info, ifla::INFO_DATA).filter(|_| is_bridge).unwrap_or_default();
    let spanning_tree = attribute(bridge, ifla::BR_STP_STATE).and_then(|payload| read_u32(payload, 0));
    Some(Link {
        index: read_u32(body, 4)?,
        up: read_u32(body, 8)? & libc::IFF_UP as u32 != 0,
        mtu: number(ifla::MTU)?,
        master: number(ifla::MASTER),
        is_bridge,
        spanning_tree: spanning_tree.unwrap_or(0) != 0,
    })
}
