//! A split virtqueue (virtio 1.2, section 2.7), polled.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::memory::Memory;
use crate::mmio;

/// Most descriptors of a queue.
pub const QUEUE_SIZE_MAX: u16 = 64;

pub const NEXT: u16 = 1;
pub const DEVICE_WRITES: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// One queue, driver's side.
pub struct Queue {
    rings: &'static Rings,
    size: u16,
    /// Heads offered so far.
    offered: u16,
    /// Heads taken back so far.
    taken: u16,
    /// The register that tells the device of new heads, and the queue's number to write there.
    notify: (u64, u16),
}

#[repr(C, align(4096))]
struct Rings {
    descriptors: [Descriptor; QUEUE_SIZE_MAX as usize],
    available: Available,
    used: Used,
}

#[repr(C)]
struct Descriptor {
    address: [AtomicU32; 2],
    length: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

#[repr(C)]
struct Available {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [AtomicU16; QUEUE_SIZE_MAX as usize],
    event: AtomicU16,
}

#[repr(C, align(4))]
struct Used {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [UsedElement; QUEUE_SIZE_MAX as usize],
    event: AtomicU16,
}

#[repr(C)]
struct UsedElement {
    id: AtomicU32,
    length: AtomicU32,
}

impl Queue {
    /// An empty queue.
    pub fn new(memory: &mut Memory, size: u16, notify: (u64, u16)) -> Self {
        // SAFETY: all-zero rings are an empty queue.
        let rings = unsafe { memory.zeroed::<Rings>(1) }.expect("memory for a queue");
        Self { rings: &rings[0], size: size.min(QUEUE_SIZE_MAX), offered: 0, taken: 0, notify }
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    /// Physical addresses of descriptors, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [
            (&raw const self.rings.descriptors) as u64,
            (&raw const self.rings.available) as u64,
            (&raw const self.rings.used) as u64,
        ]
    }

    /// Asks the device not to interrupt for this queue.
    pub fn poll_only(&self) {
        self.rings.available.flags.store(NO_INTERRUPT, Ordering::Relaxed);
    }

    /// Sets a descriptor. `buffer` must stay where it is while the device has it.
    pub fn describe(&self, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let descriptor = &self.rings.descriptors[usize::from(index)];
        let (address, length) = buffer;
        descriptor.address[0].store(address as u32, Ordering::Relaxed);
        descriptor.address[1].store((address >> 32) as u32, Ordering::Relaxed);
        descriptor.length.store(length, Ordering::Relaxed);
        descriptor.flags.store(flags, Ordering::Relaxed);
        descriptor.next.store(next, Ordering::Relaxed);
    }

    /// Gives the device the chain that begins at this descriptor.
    pub fn offer(&mut self, head: u16) {
        let available = &self.rings.available;
        available.ring[usize::from(self.offered % self.size)].store(head, Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
        available.index.store(self.offered, Ordering::Release);
    }

    /// Tells the device, unless it does not want to be told.
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.rings.used.flags.load(Ordering::Acquire) & NO_NOTIFY == 0 {
            let (register, number) = self.notify;
            // SAFETY: the queue's notification register; all that was offered stays valid until it is taken back.
            unsafe { mmio::write16(register, number) };
        }
    }

    /// Whether the device has given anything back.
    pub fn has_used(&self) -> bool {
        self.rings.used.index.load(Ordering::Acquire) != self.taken
    }

    /// Whether the device has anything.
    pub fn in_flight(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Takes back a chain: its head, and how many bytes the device wrote.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        let element = &self.rings.used.ring[usize::from(self.taken % self.size)];
        self.taken = self.taken.wrapping_add(1);
        Some((element.id.load(Ordering::Relaxed) as u16, element.length.load(Ordering::Relaxed)))
    }
}
