//! The card on a real tap, in a network namespace that ends with the test's thread.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::device::Device;
use crate::devices::virtio::test_driver::*;
use crate::devices::virtio::{Function, VirtQueue};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 2);
const PORT: u16 = 7777;

const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const ANNOUNCE: u64 = 1 << VIRTIO_NET_F_GUEST_ANNOUNCE | 1 << VIRTIO_NET_F_STATUS | CTRL_VQ;

/// Runs `test` on a thread with a network namespace of its own, in which the tap `tap0` has the host's address. A guest
/// that moves finds `tap1` on the other side.
fn in_namespace(test: fn()) {
    let body = move || {
        // SAFETY: the call changes the namespace of this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("SKIPPED: making a network namespace needs root");
            return;
        }
        // Without IPv6 the host says nothing that the tests have not asked for.
        if fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").is_err() {
            eprintln!("the host has no IPv6, or /proc is read-only");
        }
        let tap = ["tuntap add tap0 mode tap vnet_hdr", "link set tap0 address 52:54:00:00:00:02"];
        let address = ["addr add 10.9.8.1/24 dev tap0", "link set tap0 up"];
        let neighbour = ["neigh add 10.9.8.2 lladdr 52:54:00:00:00:01 dev tap0"];
        let destination = ["tuntap add tap1 mode tap vnet_hdr"];
        for line in tap.iter().chain(&address).chain(&neighbour).chain(&destination) {
            let done = Command::new("ip").args(line.split(' ')).output();
            let Ok(done) = done else {
                eprintln!("SKIPPED: iproute2 is not installed");
                return;
            };
            if !done.status.success() {
                eprintln!("SKIPPED: no taps here: {}", String::from_utf8_lossy(&done.stderr));
                return;
            }
        }
        test();
    };
    std::thread::spawn(body).join().unwrap();
}

fn plug(machine: &Machine, tap: &str) -> Plugged<Net> {
    let tap = Tap::new(godwit_provision::attach(tap).unwrap());
    let card = |interrupts: &_| Net::new(tap, MAC, interrupts);
    Plugged { function: Function::new(8, &machine.environment, card, QUEUES).unwrap() }
}

fn started(machine: &Machine, features: u64) -> (Plugged<Net>, Driver) {
    let plugged = plug(machine, "tap0");
    let mut driver = Driver::new(machine, &plugged);
    driver.start(features);
    (plugged, driver)
}

/// The host's socket, once the tap has its carrier; before that the host's frames are lost.
fn host_socket() -> UdpSocket {
    wait_until("the tap gets no carrier", || {
        let shown = Command::new("ip").args(["-o", "link", "show", "tap0"]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("state UP")
    });
    let socket = UdpSocket::bind((HOST, PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// A UDP datagram from the guest to the host, with an empty virtio header in front.
fn datagram(text: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&(28 + text.len() as u16).to_be_bytes());
    ip.extend(GUEST.octets());
    ip.extend(HOST.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend(HOST_MAC.iter().chain(&MAC.0).chain(&[8, 0]));
    frame.extend(ip);
    let ports_and_length = [PORT, PORT, 8 + text.len() as u16, 0];
    frame.extend(ports_and_length.iter().flat_map(|field| field.to_be_bytes()));
    frame.extend(text);
    frame
}

fn send(driver: &mut Driver, text: &[u8]) {
    let frame = datagram(text);
    driver.put(BUFFERS, &frame);
    driver.submit(TRANSMIT, &[(BUFFERS, HEADER_BYTES as u32, 0), (BUFFERS + 12, frame.len() as u32 - 12, 0)]);
    driver.answer(TRANSMIT);
}

/// Waits for a frame in `buffer` that ends with `text`; returns its header.
fn expect(driver: &mut Driver, buffer: u64, text: &[u8]) -> Vec<u8> {
    let (_, written) = driver.answer(RECEIVE);
    let frame = driver.get(buffer, written as usize);
    assert!(frame.ends_with(text), "{frame:?}");
    frame[..HEADER_BYTES].to_vec()
}

#[test]
fn frames_go_both_ways() {
    // A tap that is attached anew has no carrier for a while, so each has a namespace of its own.
    in_namespace(|| frames_both_ways(0));
    in_namespace(|| frames_both_ways(MRG_RXBUF));
    in_namespace(|| frames_both_ways(MRG_RXBUF | EVENT_IDX));
}

fn frames_both_ways(features: u64) {
    let machine = Machine::empty();
    let (_plugged, mut driver) = started(&machine, features);
    let socket = host_socket();
    for round in 0..50u8 {
        send(&mut driver, &[round; 100]);
        let mut bytes = [0; 200];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 100);
        assert_eq!(bytes[..100], [round; 100]);
        driver.submit(RECEIVE, &[(BUFFERS + 0x4000, 4096, WRITE)]);
        socket.send_to(&[round, 1, 2, 3], (GUEST, PORT)).unwrap();
        let header = expect(&mut driver, BUFFERS + 0x4000, &[round, 1, 2, 3]);
        assert_eq!(header[10..], [1, 0], "one buffer");
    }
}

#[test]
fn the_first_frame_is_noted_each_time_that_the_card_starts() {
    in_namespace(|| {
        let machine = Machine::empty();
        let (plugged, mut driver) = started(&machine, 0);
        let spoke = || plugged.function.device().spoke();
        assert_eq!(spoke(), None);
        send(&mut driver, b"first");
        let first = spoke();
        assert!(first.is_some());
        send(&mut driver, b"second");
        assert_eq!(spoke(), first);
        plugged.function.pause().unwrap();
        plugged.function.resume().unwrap();
        assert_eq!(spoke(), None);
    });
}

#[test]
fn frames_wait_for_buffers_and_a_long_one_takes_several() {
    in_namespace(|| {
        let machine = Machine::empty();
        let (_plugged, mut driver) = started(&machine, MRG_RXBUF);
        let socket = host_socket();
        let text: Vec<u8> = (0..1200u32).map(|index| (index % 251) as u8).collect();
        socket.send_to(&text, (GUEST, PORT)).unwrap();
        // Header and frame have 1254 bytes, so four of the buffers do not suffice; nothing may be used up in vain.
        for number in 0..4 {
            driver.submit(RECEIVE, &[(BUFFERS + 256 * number, 256, WRITE)]);
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(driver.poll(RECEIVE), None);
        driver.submit(RECEIVE, &[(BUFFERS + 4 * 256, 256, WRITE)]);
        let mut length = driver.answer(RECEIVE).1;
        for _ in 1..5 {
            length += driver.poll(RECEIVE).expect("all buffers of a frame appear at once").1;
        }
        let frame = driver.get(BUFFERS, length as usize);
        assert_eq!((frame.len(), &frame[10..12], frame.ends_with(&text)), (1254, &[5, 0][..], true));
    });
}

#[test]
fn a_frame_that_waits_for_buffers_moves_with_the_guest_which_then_announces_itself() {
    in_namespace(|| {
        let machine = Machine::empty();
        let (here, driver) = started(&machine, MRG_RXBUF | ANNOUNCE);
        let socket = host_socket();
        socket.send_to(b"in flight", (GUEST, PORT)).unwrap();
        wait_until("no frame arrives", || here.function.device().receiver().holds_frame());
        let next = Machine::with_ram(Arc::clone(&machine.environment.ram));
        let there = plug(&next, "tap1");
        migrate(&here, &there);
        let mut driver = driver.moved_to(&next, &there);
        there.function.resume().unwrap();
        next.messages.wait_for(0x100);
        let announce = |driver: &Driver| driver.read_u16(0x2006) & VIRTIO_NET_S_ANNOUNCE as u16;
        assert_ne!(announce(&driver), 0);
        driver.put(BUFFERS, &[VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8, 0xee]);
        driver.submit(CONTROL, &[(BUFFERS, 2, 0), (BUFFERS + 2, 1, WRITE)]);
        driver.answer(CONTROL);
        assert_eq!((driver.get(BUFFERS + 2, 1)[0], announce(&driver)), (VIRTIO_NET_OK as u8, 0));
        driver.submit(RECEIVE, &[(BUFFERS + 0x4000, 4096, WRITE)]);
        expect(&mut driver, BUFFERS + 0x4000, b"in flight");
    });
}

#[test]
fn an_unknown_control_command_is_refused() {
    in_namespace(|| {
        let machine = Machine::empty();
        let (_plugged, mut driver) = started(&machine, CTRL_VQ);
        driver.put(BUFFERS, &[0, 0, 1, 0xee]);
        driver.submit(CONTROL, &[(BUFFERS, 3, 0), (BUFFERS + 3, 1, WRITE)]);
        driver.answer(CONTROL);
        assert_eq!(driver.get(BUFFERS + 3, 1)[0], VIRTIO_NET_ERR as u8);
        driver.submit(CONTROL, &[(BUFFERS, 3, 0)]);
        driver.wait_for_needs_reset();
    });
}

#[test]
fn malformed_frames_are_dropped() {
    in_namespace(|| {
        let machine = Machine::empty();
        let (_plugged, mut driver) = started(&machine, 0);
        let socket = host_socket();
        let mut bad_header = datagram(b"never");
        // A segmentation type that does not exist, of frames of no size.
        bad_header[1] = 0x7f;
        driver.put(BUFFERS + 0x8000, &bad_header);
        for (address, length) in
            [(BUFFERS, 1), (BUFFERS, 12), (BUFFERS, 13), (BUFFERS + 0x8000, bad_header.len() as u32)]
        {
            driver.submit(TRANSMIT, &[(address, length, 0)]);
            driver.answer(TRANSMIT);
        }
        driver.submit(TRANSMIT, &[(BUFFERS, 1 << 20, 0)]);
        driver.answer(TRANSMIT);
        send(&mut driver, b"well formed");
        let mut bytes = [0; 64];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 11);
    });
}

#[test]
fn a_frame_that_waits_for_buffers_does_not_keep_the_worker_busy() {
    in_namespace(|| {
        let machine = Machine::empty();
        let (plugged, mut driver) = started(&machine, MRG_RXBUF | EVENT_IDX);
        let buffer = driver.describe(RECEIVE, &[(BUFFERS, 256, WRITE)]);
        driver.offer(RECEIVE, buffer);
        plugged.function.pause().unwrap();
        let net = plugged.function.device();
        net.receiver().set_frame(&[1; 1000]).unwrap();
        let DriverQueue { base, size, .. } = driver.queues[RECEIVE];
        let state = virtio_queue::QueueState {
            max_size: size,
            size,
            ready: true,
            event_idx_enabled: true,
            desc_table: base,
            avail_ring: base + AVAILABLE,
            used_ring: base + USED,
            ..Default::default()
        };
        let mut queues = [VirtQueue::new(RECEIVE, &state, machine.ram()).unwrap()];
        let interrupts = &net.interrupts;
        let mut io = Io { ram: machine.ram(), queues: &mut queues, interrupts };
        assert_eq!(net.process(Source::Queue(RECEIVE), &mut io).unwrap(), Progress::Idle);
        let wished = driver.get(base + USED + 4 + 8 * u64::from(size), 2);
        assert_eq!(wished, [1, 0], "the driver is asked to kick at its second buffer");
        assert_eq!(io.queues[0].position(), (0, 0), "the first one is not used up");
    });
}
