//! The frames that tell a network where a guest is now.

use std::net::{Ipv4Addr, Ipv6Addr};

use godwit_types::vm::MacAddress;

/// Shortest Ethernet frame without its checksum, in bytes.
const FRAME_BYTES_MIN: usize = 60;
const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ARP_REQUEST: u16 = 1;
const RARP_REQUEST: u16 = 3;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const FLAG_OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// A RARP request (RFC 903) for the guest's own address: needs no IP address, and every switch learns from it on which
/// port the guest's MAC is. Nobody has answered RARP for decades.
pub(crate) fn rarp(mac: MacAddress) -> Vec<u8> {
    arp_packet(ETHERTYPE_RARP, RARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, mac.0, Ipv4Addr::UNSPECIFIED)
}

/// A gratuitous ARP: the ARP announcement of RFC 5227, section 2.3.
pub(crate) fn gratuitous_arp(mac: MacAddress, ip: Ipv4Addr) -> Vec<u8> {
    arp_packet(ETHERTYPE_ARP, ARP_REQUEST, mac, ip, [0; 6], ip)
}

fn arp_packet(
    ethertype: u16,
    operation: u16,
    sender: MacAddress,
    sender_ip: Ipv4Addr,
    target: [u8; 6],
    target_ip: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, sender, ethertype);
    frame.extend([0, 1, 0x08, 0x00, 6, 4]); // Ethernet, IPv4, their address lengths
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0);
    frame.extend(sender_ip.octets());
    frame.extend(target);
    frame.extend(target_ip.octets());
    frame.resize(FRAME_BYTES_MIN, 0);
    frame
}

/// An unsolicited neighbour advertisement (RFC 4861, section 7.2.6) to all nodes, with the override flag.
pub(crate) fn unsolicited_advertisement(mac: MacAddress, ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, FLAG_OVERRIDE, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    message.extend(mac.0);
    let checksum = icmpv6_checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: [u8; 6], from: MacAddress, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES_MIN);
    frame.extend(to);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// The Internet checksum over the pseudo-header and a message of even length (RFC 8200, section 8.1).
pub(crate) fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut covered = [from.octets(), to.octets()].concat();
    covered.extend((message.len() as u32).to_be_bytes());
    covered.extend([0, 0, 0, ICMPV6]);
    covered.extend(message);
    let mut sum: u32 = covered.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn the_rarp_is_the_one_of_rfc_903() {
        let head = hex("ffffffffffff 525400123456 8035  0001 0800 06 04 0003
             525400123456 00000000 525400123456 00000000");
        assert_eq!(rarp(MAC), [head, vec![0; 18]].concat());
    }

    #[test]
    fn the_gratuitous_arp_names_the_address_twice() {
        let head = hex("ffffffffffff 525400123456 0806  0001 0800 06 04 0001
             525400123456 0a4d000a 000000000000 0a4d000a");
        assert_eq!(gratuitous_arp(MAC, Ipv4Addr::new(10, 77, 0, 10)), [head, vec![0; 18]].concat());
    }

    #[test]
    fn the_advertisement_is_the_one_of_rfc_4861_with_a_right_checksum() {
        let ip: Ipv6Addr = "fe80::5054:ff:fe12:3456".parse().unwrap();
        let expected = hex("333300000001 525400123456 86dd
             60000000 0020 3a ff fe80000000000000 505400fffe123456 ff020000000000000000000000000001
             88 00 cb68 20000000 fe80000000000000 505400fffe123456 02 01 525400123456");
        let frame = unsolicited_advertisement(MAC, ip);
        assert_eq!(frame, expected);
        // A receiver sums everything, checksum included, to zero.
        assert_eq!(icmpv6_checksum(ip, "ff02::1".parse().unwrap(), &frame[54..]), 0);
    }
}
