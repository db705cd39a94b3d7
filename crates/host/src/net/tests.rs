//! In network namespaces of their own, which end with the test's thread.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use godwit_types::Name;
use godwit_types::agent::GuestAddress;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::announce::{Addresses, announce, frame};

/// Bytes of the virtio header before each frame.
const VNET_HEADER_BYTES: usize = 10;
/// How long a frame that must come may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for frames that must not come.
const SILENCE: Duration = Duration::from_millis(100);

const GUEST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const PEER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

nix::ioctl_write_ptr_bad!(tun_attach, libc::TUNSETIFF, libc::ifreq);

fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(error) => {
            eprintln!("SKIPPED: needs root, because it makes a network namespace of its own: {error}");
        }
    });
    thread.join().unwrap();
}

fn network(uplink: Option<&str>) -> NetworkConfig {
    let name: Name = "guests".parse().unwrap();
    NetworkConfig { name, bridge: "gwtbr".to_owned(), uplink: uplink.map(str::to_owned) }
}

fn port(tap: &str, mac: MacAddress) -> Port {
    Port { tap: tap.to_owned(), mac, bridge: "gwtbr".to_owned(), uplink: None }
}

/// The end of a tap that `godwit-vmm` holds.
struct Guest(File);

impl Guest {
    fn attach(tap: &str) -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let request = tap::interface_request(tap, flags).unwrap();
        // SAFETY: `request` is a complete ifreq that outlives the call.
        unsafe { tun_attach(device.as_raw_fd(), &request) }.unwrap();
        Self(device)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.write_all(&[&[0; VNET_HEADER_BYTES], frame].concat())
    }

    /// Whether `frame` arrives within `wait`; others are skipped.
    fn receives(&mut self, frame: &[u8], wait: Duration) -> bool {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap();
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.0), PollFlags::POLLIN)];
            if poll(&mut fds, timeout).unwrap() == 0 {
                return false;
            }
            let mut buffer = [0; 2048];
            let length = self.0.read(&mut buffer).unwrap();
            if &buffer[VNET_HEADER_BYTES..length] == frame {
                return true;
            }
        }
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn unicast(from: MacAddress, to: MacAddress) -> Vec<u8> {
    let mut frame = frame::rarp(from);
    frame[..6].copy_from_slice(&to.0);
    frame
}

#[test]
fn a_blocked_tap_passes_nothing_although_the_vmm_has_opened_it() {
    in_namespace(|| {
        prepare(&network(None)).unwrap();
        plug(&port("gwt0", GUEST)).unwrap();
        plug(&port("gwt1", PEER)).unwrap();
        let (mut guest, mut peer) = (Guest::attach("gwt0"), Guest::attach("gwt1"));
        open(&port("gwt1", PEER)).unwrap();
        peer.send(&frame::rarp(PEER)).unwrap();
        assert!(!guest.receives(&frame::rarp(PEER), SILENCE), "a frame came in");
        assert!(guest.send(&frame::rarp(GUEST)).is_err(), "a frame was taken");
        assert!(!peer.receives(&frame::rarp(GUEST), SILENCE), "a frame went out");
    });
}

#[test]
fn an_opened_tap_passes_the_very_next_frame_in_both_directions() {
    in_namespace(|| {
        prepare(&network(None)).unwrap();
        plug(&port("gwt1", PEER)).unwrap();
        let mut peer = Guest::attach("gwt1");
        open(&port("gwt1", PEER)).unwrap();
        for round in 0..10 {
            plug(&port("gwt0", GUEST)).unwrap();
            let mut guest = Guest::attach("gwt0");
            for _ in 0..3 {
                open(&port("gwt0", GUEST)).unwrap();
                peer.send(&unicast(PEER, GUEST)).unwrap();
                guest.send(&unicast(GUEST, PEER)).unwrap();
                assert!(guest.receives(&unicast(PEER, GUEST), PATIENCE), "in, round {round}");
                assert!(peer.receives(&unicast(GUEST, PEER), PATIENCE), "out, round {round}");
                block(&port("gwt0", GUEST)).unwrap();
            }
            drop(guest);
            unplug("gwt0").unwrap();
        }
    });
}

#[test]
fn frames_find_a_guest_that_has_arrived_although_the_bridge_saw_it_behind_the_uplink() {
    in_namespace(|| {
        prepare(&network(None)).unwrap();
        for (tap, mac) in [("gwt0", GUEST), ("gwt1", PEER), ("gwt2", PEER)] {
            plug(&port(tap, mac)).unwrap();
        }
        let (mut guest, mut peer, mut uplink) =
            (Guest::attach("gwt0"), Guest::attach("gwt1"), Guest::attach("gwt2"));
        open(&port("gwt2", MacAddress([0x52, 0x54, 0, 0, 0, 9]))).unwrap();
        open(&port("gwt1", PEER)).unwrap();
        uplink.send(&frame::rarp(GUEST)).unwrap();
        assert!(peer.receives(&frame::rarp(GUEST), PATIENCE));
        open(&port("gwt0", GUEST)).unwrap();
        peer.send(&unicast(PEER, GUEST)).unwrap();
        assert!(guest.receives(&unicast(PEER, GUEST), PATIENCE));
        assert!(!uplink.receives(&unicast(PEER, GUEST), SILENCE), "it still went to the uplink");
    });
}

#[test]
fn preparing_a_network_twice_changes_nothing_and_an_uplink_in_use_is_refused() {
    in_namespace(|| {
        ip("link add gwtup type veth peer name gwtfar");
        prepare(&network(Some("gwtup"))).unwrap();
        let mut links = Links::open().unwrap();
        let before = [links.get("gwtbr").unwrap(), links.get("gwtup").unwrap()];
        assert_eq!(before[1].master, Some(before[0].index));
        prepare(&network(Some("gwtup"))).unwrap();
        assert_eq!([links.get("gwtbr").unwrap(), links.get("gwtup").unwrap()], before);

        ip("link set gwtup nomaster");
        ip("address add 192.0.2.7/24 dev gwtup");
        let refused = prepare(&network(Some("gwtup"))).unwrap_err();
        assert!(matches!(refused, NetError::UplinkInUse { .. }), "{refused}");
        assert!(refused.to_string().contains("192.0.2.7"), "{refused}");
        assert!(!ip("link show master gwtbr").contains("gwtup"));

        let missing = prepare(&network(Some("gwtnone"))).unwrap_err();
        assert!(matches!(missing, NetError::NoInterface { .. }), "{missing}");
        let mut wrong = network(None);
        "gwtfar".clone_into(&mut wrong.bridge);
        assert!(matches!(prepare(&wrong).unwrap_err(), NetError::NotABridge { .. }));
    });
}

#[test]
fn unplugging_leaves_nothing_and_the_bridge_keeps_its_address_while_taps_come_and_go() {
    in_namespace(|| {
        ip("link add gwtup type veth peer name gwtfar");
        prepare(&network(Some("gwtup"))).unwrap();
        let address =
            |of: &str| ip(&format!("-o link show {of}")).split("link/ether ").nth(1).map(str::to_owned);
        let (before, bridge) = (ip("-o link show").lines().count(), address("gwtbr"));
        plug(&port("gwt0", MacAddress([0, 0, 0, 0, 0, 1]))).unwrap();
        assert_eq!(address("gwtbr"), bridge);
        open(&port("gwt0", GUEST)).unwrap();
        let vmm = Guest::attach("gwt0");
        let refused = plug(&port("gwt0", GUEST)).unwrap_err();
        assert!(matches!(refused, NetError::TapInUse { .. }), "{refused}");
        assert!(Links::open().unwrap().get("gwt0").unwrap().up, "the running VM lost its network");
        drop(vmm);
        // A tap left by a crashed agent is taken over, and blocked again.
        plug(&port("gwt0", GUEST)).unwrap();
        assert!(!Links::open().unwrap().get("gwt0").unwrap().up);
        unplug("gwt0").unwrap();
        unplug("gwt0").unwrap();
        assert_eq!(ip("-o link show").lines().count(), before);
    });
}

#[test]
fn a_guests_addresses_are_learned_on_its_tap_and_announced_elsewhere() {
    in_namespace(|| {
        prepare(&network(None)).unwrap();
        plug(&port("gwt0", GUEST)).unwrap();
        let mut guest = Guest::attach("gwt0");
        open(&port("gwt0", GUEST)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let addresses: [std::net::IpAddr; 2] =
            ["10.77.0.10".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let [std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)] = addresses else { unreachable!() };
        let frames = [
            frame::rarp(GUEST),
            frame::gratuitous_arp(GUEST, v4),
            frame::unsolicited_advertisement(GUEST, v6),
        ];
        let seen = Addresses::new(GUEST, &[]);
        runtime.block_on(async {
            let (changed, mut changes) = tokio::sync::mpsc::channel(8);
            let learning =
                tokio::spawn(seen.clone().learn("gwt0".to_owned(), move || changed.try_send(()).unwrap()));
            tokio::task::yield_now().await;
            frames.iter().for_each(|frame| guest.send(frame).unwrap());
            for _ in addresses {
                tokio::time::timeout(PATIENCE, changes.recv()).await.expect("an address is learned");
            }
            learning.abort();
        });
        assert_eq!(seen.all(), addresses.map(|ip| GuestAddress { mac: GUEST, ip }));

        plug(&port("gwt1", PEER)).unwrap();
        let mut peer = Guest::attach("gwt1");
        open(&port("gwt1", PEER)).unwrap();
        runtime.block_on(announce(port("gwt0", GUEST), seen.all(), || true));
        for repetition in 0..6 {
            for frame in &frames {
                assert!(peer.receives(frame, PATIENCE), "repetition {repetition}");
            }
        }
    });
}
