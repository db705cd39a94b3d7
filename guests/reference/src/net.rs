//! A virtio network card, as smoltcp's device.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use crate::cpu::{Cpu, VECTOR_DEVICE};
use crate::memory::Memory;
use crate::queue::{DEVICE_WRITES, QUEUE_SIZE_MAX, Queue};
use crate::virtio::{DEVICE_NET, Virtio};
use core::sync::atomic::Ordering;

const FEATURE_MAC: u64 = 1 << 5;

const HEADER_BYTES: usize = 12;
const FRAME_BYTES_MAX: usize = 1514;
const BUFFER_BYTES: usize = 2048;

/// The card.
pub struct Card {
    receive: Receive,
    transmit: Transmit,
    pub mac: EthernetAddress,
}

struct Receive {
    queue: Queue,
    buffers: &'static mut [Buffer],
}

struct Transmit {
    queue: Queue,
    buffers: &'static mut [Buffer],
    /// Descriptors that the device does not have.
    free: [u16; QUEUE_SIZE_MAX as usize],
    free_count: usize,
}

type Buffer = [u8; BUFFER_BYTES];

impl Card {
    /// The first card, if there is one. It interrupts `cpu` when frames arrive, if it can.
    pub fn find(ecam: u64, cpu: &Cpu, memory: &mut Memory) -> Option<Self> {
        let mut virtio = Virtio::find(ecam, DEVICE_NET, FEATURE_MAC, memory)?;
        let apic_id = cpu.apic_id.load(Ordering::Relaxed);
        let msix = virtio.function.enable_msix(apic_id, VECTOR_DEVICE, |entry| memory.map(entry, entry + 16));
        let receive = Receive::new(virtio.queue(0, msix.then_some(0), memory), memory);
        let transmit = Transmit::new(virtio.queue(1, None, memory), memory);
        let mac = if virtio.features & FEATURE_MAC != 0 {
            EthernetAddress(core::array::from_fn(|i| virtio.config8(i as u64)))
        } else {
            EthernetAddress([0x02, 0x67, 0x6f, 0x64, 0x77, 0x74])
        };
        virtio.start();
        receive.queue.notify();
        Some(Self { receive, transmit, mac })
    }

    /// Whether frames have arrived.
    pub fn has_received(&self) -> bool {
        self.receive.queue.has_used()
    }
}

fn buffers(queue: &Queue, memory: &mut Memory) -> &'static mut [Buffer] {
    // SAFETY: any bytes are a valid buffer.
    unsafe { memory.zeroed::<Buffer>(queue.size().into()) }.expect("memory for network buffers")
}

impl Receive {
    fn new(mut queue: Queue, memory: &mut Memory) -> Self {
        let buffers = buffers(&queue, memory);
        for (index, buffer) in (0..).zip(buffers.iter()) {
            queue.describe(index, (buffer.as_ptr() as u64, BUFFER_BYTES as u32), DEVICE_WRITES, 0);
            queue.offer(index);
        }
        Self { queue, buffers }
    }
}

impl Transmit {
    fn new(queue: Queue, memory: &mut Memory) -> Self {
        let buffers = buffers(&queue, memory);
        let free_count = buffers.len();
        Self { queue, buffers, free: core::array::from_fn(|i| i as u16), free_count }
    }

    fn reclaim(&mut self) {
        while let Some((index, _)) = self.queue.take() {
            self.free[self.free_count] = index;
            self.free_count += 1;
        }
    }
}

impl phy::Device for Card {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        self.transmit.reclaim();
        if self.transmit.free_count == 0 {
            return None;
        }
        let (index, length) = self.receive.queue.take()?;
        Some((RxToken { receive: &mut self.receive, index, length }, TxToken(&mut self.transmit)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.transmit.reclaim();
        (self.transmit.free_count > 0).then_some(TxToken(&mut self.transmit))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities
    }
}

/// A frame that has arrived.
pub struct RxToken<'a> {
    receive: &'a mut Receive,
    index: u16,
    length: u32,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let end = (self.length as usize).clamp(HEADER_BYTES, BUFFER_BYTES);
        let result = f(&self.receive.buffers[usize::from(self.index)][HEADER_BYTES..end]);
        self.receive.queue.offer(self.index);
        self.receive.queue.notify();
        result
    }
}

/// Room for a frame to send.
pub struct TxToken<'a>(&'a mut Transmit);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let transmit = self.0;
        transmit.free_count -= 1;
        let index = transmit.free[transmit.free_count];
        let buffer = &mut transmit.buffers[usize::from(index)];
        let end = HEADER_BYTES + length;
        buffer[..HEADER_BYTES].fill(0);
        let result = f(&mut buffer[HEADER_BYTES..end]);
        transmit.queue.describe(index, (buffer.as_ptr() as u64, end as u32), 0, 0);
        transmit.queue.offer(index);
        transmit.queue.notify();
        result
    }
}
