//! What a guest's own frames say about its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use godwit_types::vm::MacAddress;

/// Addresses remembered for one network card; the one unseen for longest makes room.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// The addresses seen behind one network card, the latest last.
#[derive(Debug, Default)]
pub(crate) struct Seen(Vec<IpAddr>);

impl Seen {
    /// Remembers `ip`. Says whether it is new.
    pub(crate) fn note(&mut self, ip: IpAddr) -> bool {
        let known = self.0.iter().position(|seen| *seen == ip);
        match known {
            Some(index) => drop(self.0.remove(index)),
            None if self.0.len() == ADDRESSES_MAX => drop(self.0.remove(0)),
            None => {}
        }
        self.0.push(ip);
        known.is_none()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().copied()
    }
}

/// The address that `frame`, if the guest behind `mac` sent it, shows to be the guest's.
///
/// Probes for duplicates are not evidence: the address may turn out to be somebody else's.
pub(crate) fn address_in(frame: &[u8], mac: MacAddress) -> Option<IpAddr> {
    if frame.get(6..12)? != mac.0 {
        return None;
    }
    match frame.get(12..14)? {
        [0x08, 0x06] => arp_sender(frame.get(14..)?, mac).map(IpAddr::V4),
        [0x86, 0xdd] => neighbour(frame.get(14..)?).map(IpAddr::V6),
        _ => None,
    }
}

fn arp_sender(packet: &[u8], mac: MacAddress) -> Option<Ipv4Addr> {
    let ethernet_and_ipv4 = packet.get(..6)? == [0, 1, 0x08, 0x00, 6, 4];
    let own = packet.get(8..14)? == mac.0;
    let ip: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    let ip = Ipv4Addr::from(ip);
    let plain = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() && !ip.is_loopback();
    (ethernet_and_ipv4 && own && plain).then_some(ip)
}

fn neighbour(packet: &[u8]) -> Option<Ipv6Addr> {
    let source = read_ipv6(packet, 8)?;
    let candidate = match (packet.get(6)?, packet.get(40)?) {
        (58, 135) => source,
        (58, 136) => read_ipv6(packet, 48)?,
        _ => return None,
    };
    let plain = !candidate.is_unspecified() && !candidate.is_multicast() && !candidate.is_loopback();
    // Neighbour discovery is valid only as it was sent, undecremented by any router.
    (plain && *packet.get(7)? == 255).then_some(candidate)
}

fn read_ipv6(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::super::frame::{gratuitous_arp, rarp, unsolicited_advertisement};
    use super::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 9, 9, 9]);

    #[test]
    fn a_guests_own_arp_and_advertisements_show_its_addresses() {
        let v4 = Ipv4Addr::new(10, 77, 0, 10);
        assert_eq!(address_in(&gratuitous_arp(MAC, v4), MAC), Some(v4.into()));
        let v6 = "2001:db8::7".parse().unwrap();
        assert_eq!(address_in(&unsolicited_advertisement(MAC, v6), MAC), Some(v6.into()));
    }

    #[test]
    fn frames_of_others_probes_and_rarp_show_nothing() {
        let v4 = Ipv4Addr::new(10, 77, 0, 10);
        assert_eq!(address_in(&gratuitous_arp(OTHER, v4), MAC), None);
        assert_eq!(address_in(&gratuitous_arp(MAC, Ipv4Addr::UNSPECIFIED), MAC), None);
        assert_eq!(address_in(&rarp(MAC), MAC), None);
        let mut forwarded = gratuitous_arp(OTHER, v4);
        forwarded[6..12].copy_from_slice(&MAC.0);
        assert_eq!(address_in(&forwarded, MAC), None, "the ARP packet speaks of another MAC");
        // Duplicate address detection: a solicitation from the unspecified address.
        let mut probe = unsolicited_advertisement(MAC, Ipv6Addr::UNSPECIFIED);
        probe[54] = 135;
        assert_eq!(address_in(&probe, MAC), None);
    }

    #[test]
    fn no_frame_is_too_short() {
        for frame in
            [gratuitous_arp(MAC, Ipv4Addr::LOCALHOST), unsolicited_advertisement(MAC, Ipv6Addr::LOCALHOST)]
        {
            for end in 0..frame.len() {
                assert_eq!(address_in(&frame[..end], MAC), None, "{end}");
            }
        }
    }

    #[test]
    fn the_address_unseen_for_longest_makes_room() {
        let mut seen = Seen::default();
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        for last in 0..ADDRESSES_MAX as u8 {
            assert!(seen.note(ip(last)));
        }
        assert!(!seen.note(ip(0)), "known");
        assert!(seen.note(ip(99)));
        let all: Vec<_> = seen.all().collect();
        assert_eq!(all.len(), ADDRESSES_MAX);
        assert!(all.contains(&ip(0)) && !all.contains(&ip(1)));
    }
}
