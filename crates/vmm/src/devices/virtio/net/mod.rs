//! virtio-net on a tap.
//!
//! ```text
//!   queue 0, receive:   tap -> one frame held here -> the driver's buffers
//!   queue 1, transmit:  the driver's buffers -> tap
//!   queue 2, control:   the driver confirms announcements
//! ```
//!
//! Back-pressure both ways: without buffers the frame waits here and the next ones in the tap; while the tap is full,
//! the driver's frames stay in their queue. Whichever side made room wakes the worker.

mod receive;
mod tap;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use godwit_types::vm::MacAddress;
use prost::Message;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

pub(crate) use self::tap::TUNSETOFFLOAD;
pub use self::tap::Tap;

use self::receive::Receiver;
use self::tap::{FRAME_BYTES_MAX, HEADER_BYTES};
use super::{Chain, DriverFault, Interrupts, Io, Progress, Source, VirtioDevice, copy_config};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
/// Number of queues.
pub const QUEUES: usize = 3;
const QUEUE_SIZES: [u16; QUEUES] = [256, 256, 64];
/// Frames between two looks at the other sources, and at whether to stop.
const FRAMES_PER_TURN: usize = 64;
const CONFIG_BYTES: usize = 12;

const OFFLOADS: [(u32, u32); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, tap::OFFLOAD_CHECKSUM),
    (VIRTIO_NET_F_GUEST_TSO4, tap::OFFLOAD_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, tap::OFFLOAD_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, tap::OFFLOAD_ECN),
];

/// The device.
pub struct Net {
    tap: Tap,
    mac: MacAddress,
    interrupts: Arc<Interrupts>,
    features: AtomicU64,
    /// The driver has been asked to announce itself, and has not confirmed it yet.
    announcing: AtomicBool,
    /// The device has arrived from another host and has not asked yet.
    arrived: AtomicBool,
    receiver: Mutex<Receiver>,
    /// Whether no frame of the guest has left since the device was started, and when the first one did.
    quiet: AtomicBool,
    spoke: Mutex<Option<Instant>>,
}

/// What of the device moves with the guest.
#[derive(Clone, PartialEq, Message)]
struct NetState {
    #[prost(bool, tag = "1")]
    announcing: bool,
    /// A received frame, with its header, that waits for buffers.
    #[prost(bytes = "vec", tag = "2")]
    held: Vec<u8>,
}

impl Net {
    /// A card with the address `mac` on `tap`.
    pub fn new(tap: Tap, mac: MacAddress, interrupts: &Arc<Interrupts>) -> Self {
        Self {
            tap,
            mac,
            interrupts: Arc::clone(interrupts),
            features: AtomicU64::new(0),
            announcing: AtomicBool::new(false),
            arrived: AtomicBool::new(false),
            receiver: Mutex::new(Receiver::default()),
            quiet: AtomicBool::new(true),
            spoke: Mutex::default(),
        }
    }

    /// When the guest's first frame left since the device was started, if one has.
    pub fn spoke(&self) -> Option<Instant> {
        *self.spoke.lock().expect("nobody panics with it")
    }

    fn has(&self, feature: u32) -> bool {
        self.features.load(Ordering::Relaxed) & 1 << feature != 0
    }

    /// What the kernel may leave to the driver; every offload needs those that it builds on.
    fn offloads(&self) -> u32 {
        let accepted = OFFLOADS.iter().filter(|(feature, _)| self.has(*feature));
        let offloads = accepted.fold(0, |bits, (_, offload)| bits | offload);
        if offloads & tap::OFFLOAD_CHECKSUM == 0 {
            0
        } else if offloads & (tap::OFFLOAD_TSO4 | tap::OFFLOAD_TSO6) == 0 {
            tap::OFFLOAD_CHECKSUM
        } else {
            offloads
        }
    }

    fn receive(&self, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        let mergeable = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let mut receiver = self.receiver();
        let mut progress = Progress::More;
        for _ in 0..FRAMES_PER_TURN {
            if !receiver.holds_frame() && !receiver.fetch(&self.tap) {
                progress = Progress::Idle;
                break;
            }
            if !receiver.deliver(io.ram, &mut io.queues[RECEIVE], mergeable)? {
                progress = Progress::Idle;
                break;
            }
        }
        io.queues[RECEIVE].interrupt(io.ram, io.interrupts)?;
        Ok(progress)
    }

    fn transmit(&self, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        let queue = &mut io.queues[TRANSMIT];
        let mut progress = Progress::More;
        for _ in 0..FRAMES_PER_TURN {
            let Some(mut chain) = queue.pop(io.ram)? else {
                progress = queue.rearm(io.ram)?;
                break;
            };
            if !self.send(&mut chain) {
                queue.unpop(1);
                progress = Progress::Idle;
                break;
            }
            queue.push(io.ram, &[(chain.head, 0)])?;
        }
        queue.interrupt(io.ram, io.interrupts)?;
        Ok(progress)
    }

    /// Whether the frame is gone. What is no frame, and what the kernel refuses, is dropped as on a wire.
    fn send(&self, chain: &mut Chain<'_>) -> bool {
        if !(HEADER_BYTES + 1..=FRAME_BYTES_MAX).contains(&chain.readable_bytes()) {
            return true;
        }
        match self.tap.send(chain.readable.make_contiguous()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::debug!(%error, "the host refuses a frame of the guest");
                true
            }
            Ok(()) => {
                if self.quiet.load(Ordering::Relaxed) && self.quiet.swap(false, Ordering::Relaxed) {
                    *self.spoke.lock().expect("nobody panics with it") = Some(Instant::now());
                }
                true
            }
        }
    }

    /// Commands: class and number, then data, answered by one byte.
    fn control(&self, mut chain: Chain<'_>) -> Result<u32, DriverFault> {
        let mut command = [0; 2];
        chain.take(&mut command)?;
        let announced = [VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8];
        let answer = if command == announced && self.has(VIRTIO_NET_F_GUEST_ANNOUNCE) {
            self.announcing.store(false, Ordering::SeqCst);
            VIRTIO_NET_OK
        } else {
            VIRTIO_NET_ERR
        };
        match chain.put(&[answer as u8]) {
            1 => Ok(1),
            _ => Err(DriverFault::Request("a control command has no room for its answer")),
        }
    }

    fn receiver(&self) -> MutexGuard<'_, Receiver> {
        self.receiver.lock().expect("no user of the receiver panics")
    }
}

impl VirtioDevice for Net {
    const NAME: &'static str = "virtio-net";
    const ID: u32 = VIRTIO_ID_NET;
    /// Network controller, Ethernet.
    const CLASS: u32 = 0x02_00_00;

    fn features(&self) -> u64 {
        let own = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        own.iter().chain(OFFLOADS.iter().map(|(feature, _)| feature)).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&self.mac.0);
        let announce = if self.announcing.load(Ordering::SeqCst) { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        config[6..8].copy_from_slice(&((VIRTIO_NET_S_LINK_UP | announce) as u16).to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        copy_config(&config, offset, data);
    }

    fn watched(&self) -> Vec<RawFd> {
        vec![self.tap.as_raw_fd()]
    }

    fn start(&self, features: u64) -> io::Result<()> {
        self.features.store(features, Ordering::Relaxed);
        self.tap.set_offloads(self.offloads())?;
        *self.spoke.lock().expect("nobody panics with it") = None;
        self.quiet.store(true, Ordering::Relaxed);
        if self.arrived.swap(false, Ordering::SeqCst) && self.has(VIRTIO_NET_F_GUEST_ANNOUNCE) {
            self.announcing.store(true, Ordering::SeqCst);
            self.interrupts.config_changed();
        }
        Ok(())
    }

    fn process(&self, source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        match source {
            Source::Queue(RECEIVE) => self.receive(io),
            Source::Queue(TRANSMIT) => self.transmit(io),
            Source::Queue(_) => {
                io.serve_queue(CONTROL, QUEUE_SIZES[CONTROL].into(), |chain| self.control(chain))
            }
            Source::Watched(_) => match (self.receive(io)?, self.transmit(io)?) {
                (Progress::Idle, Progress::Idle) => Ok(Progress::Idle),
                _ => Ok(Progress::More),
            },
        }
    }

    fn reset(&self) {
        self.features.store(0, Ordering::Relaxed);
        self.announcing.store(false, Ordering::SeqCst);
        self.receiver().drop_frame();
    }

    fn save(&self) -> Vec<u8> {
        let announcing = self.announcing.load(Ordering::SeqCst);
        NetState { announcing, held: self.receiver().frame().to_vec() }.encode_to_vec()
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        let state =
            NetState::decode(state).map_err(|error| format!("the saved state is damaged: {error}"))?;
        self.receiver().set_frame(&state.held)?;
        self.announcing.store(state.announcing, Ordering::SeqCst);
        self.arrived.store(true, Ordering::SeqCst);
        Ok(())
    }
}
