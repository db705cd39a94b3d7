//! Route netlink messages: written attribute by attribute, read with every length checked.
//!
//! ```text
//! | length u32 | type u16 | flags u16 | sequence u32 | port u32 | fixed part | attribute... |
//! attribute: | length u16 (without padding) | type u16 | payload | padding to 4 |
//! ```
//! All numbers are in the machine's byte order (rtnetlink(7)).

/// Bytes of the header that every message begins with.
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes of `struct ifinfomsg`, the fixed part of messages about interfaces.
pub(crate) const LINK_BYTES: usize = 16;

/// Attributes of interfaces, from `linux/if_link.h`.
pub(crate) mod ifla {
    pub(crate) const ADDRESS: u16 = 1;
    pub(crate) const IFNAME: u16 = 3;
    pub(crate) const MTU: u16 = 4;
    pub(crate) const MASTER: u16 = 10;
    pub(crate) const LINKINFO: u16 = 18;
    pub(crate) const INFO_KIND: u16 = 1;
    pub(crate) const INFO_DATA: u16 = 2;
    pub(crate) const BR_STP_STATE: u16 = 5;
    pub(crate) const BR_MCAST_SNOOPING: u16 = 23;
}

/// A message that is being written.
#[derive(Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A message of type `kind`; acknowledged by the kernel, so that errors are seen.
    pub(crate) fn new(kind: u16, flags: i32) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    /// Appends `struct ifinfomsg`: the interface (0: named by an attribute), and the flags to change.
    pub(crate) fn link(mut self, index: u32, flags: i32, change: i32) -> Self {
        self.0.extend([0; 4]);
        for field in [index, flags as u32, change as u32] {
            self.0.extend(field.to_ne_bytes());
        }
        self
    }

    /// Appends `struct ndmsg` for an entry of a bridge's forwarding table.
    pub(crate) fn neighbour(mut self, index: u32, state: u16, flags: u8) -> Self {
        self.0.extend([libc::AF_BRIDGE as u8, 0, 0, 0]);
        self.0.extend(index.to_ne_bytes());
        self.0.extend(state.to_ne_bytes());
        self.0.extend([flags, 0]);
        self
    }

    /// Appends an attribute.
    pub(crate) fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        let start = self.begin(kind);
        self.0.extend(payload);
        self.end(start)
    }

    /// Appends an attribute that holds a text with its closing zero.
    pub(crate) fn text(self, kind: u16, text: &str) -> Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.attribute(kind, &payload)
    }

    /// Appends an attribute that holds attributes.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.begin(kind);
        fill(self).end(start)
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        start
    }

    fn end(mut self, start: usize) -> Self {
        // Every message here is far shorter than 64 KiB: its payloads are names, addresses and numbers.
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The bytes to send.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages in a datagram, up to the first that is cut off.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = read_u32(datagram, 0)? as usize;
        let message = datagram.get(..length).filter(|m| m.len() >= HEADER_BYTES)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind: read_u16(message, 4)?,
            flags: read_u16(message, 6)?,
            sequence: read_u32(message, 8)?,
            body: &message[HEADER_BYTES..],
        })
    })
}

/// The attributes in `bytes`, up to the first that is cut off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The flags "nested" and "network byte order" in an attribute's type.
    const TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & TYPE_MASK;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of type `kind`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A text without its closing zero.
pub(crate) fn read_text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload.strip_suffix(&[0]).unwrap_or(payload)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn creating_a_bridge_is_the_message_that_ip_link_sends() {
        let message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
            .link(0, libc::IFF_UP, libc::IFF_UP)
            .text(ifla::IFNAME, "br0")
            .nested(ifla::LINKINFO, |info| info.attribute(ifla::INFO_KIND, b"bridge"));
        let expected: &[u8] = &[
            60, 0, 0, 0, 16, 0, 0x05, 0x06, 7, 0, 0, 0, 0, 0, 0,
            0, // length, RTM_NEWLINK, flags, sequence
            0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // ifinfomsg: up
            8, 0, 3, 0, b'b', b'r', b'0', 0, // name
            16, 0, 18, 0, 10, 0, 1, 0, b'b', b'r', b'i', b'd', b'g', b'e', 0, 0, // linkinfo { kind }
        ];
        let mut expected = expected.to_vec();
        expected[0] = expected.len() as u8;
        assert_eq!(message.finish(7), expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = Message::new(libc::RTM_NEWLINK, 0)
            .link(9, 0, 0)
            .text(ifla::IFNAME, "gw01234567n0")
            .nested(ifla::LINKINFO, |info| {
                info.text(ifla::INFO_KIND, "bridge")
                    .nested(ifla::INFO_DATA, |data| data.attribute(ifla::BR_STP_STATE, &1u32.to_ne_bytes()))
            })
            .finish(3);
        let all: Vec<_> = messages(&bytes).collect();
        let [message] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((message.kind, message.sequence), (libc::RTM_NEWLINK, 3));
        let body = &message.body[LINK_BYTES..];
        assert_eq!(attribute(body, ifla::IFNAME).map(read_text).as_deref(), Some("gw01234567n0"));
        let data = attribute(attribute(body, ifla::LINKINFO).unwrap(), ifla::INFO_DATA).unwrap();
        assert_eq!(read_u32(attribute(data, ifla::BR_STP_STATE).unwrap(), 0), Some(1));
    }

    #[test]
    fn cut_off_answers_are_read_without_a_panic() {
        let bytes = Message::new(libc::RTM_NEWLINK, 0).link(9, 0, 0).text(ifla::IFNAME, "x").finish(3);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0, "{end}");
        }
        for length in 0..=3u16 {
            assert_eq!(attributes(&[length.to_ne_bytes(), [3, 0]].concat()).count(), 0, "{length}");
        }
        let overlong = [200u16.to_ne_bytes(), 3u16.to_ne_bytes()].concat();
        assert_eq!(attributes(&overlong).count(), 0);
    }
}
