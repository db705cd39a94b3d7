//! A split virtqueue in the hands of its device.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, DriverFault};
use super::{Interrupts, Progress};
use crate::memory::GuestRam;

/// Bytes of the flags and the index in front of either ring.
const RING_HEADER_BYTES: u64 = 4;
const AVAILABLE_ENTRY_BYTES: u64 = 2;
const USED_ENTRY_BYTES: u64 = 8;

/// One queue. A queue that the driver has not enabled is always empty.
pub struct VirtQueue {
    index: usize,
    /// `None` while the driver has not enabled it.
    ring: Option<Queue>,
    /// The used index when the driver was last told, or did not want to be.
    told: u16,
}

impl VirtQueue {
    /// Queue number `index` as `state` describes it; checked to lie in RAM as a whole.
    pub fn new(index: usize, state: &QueueState, ram: &GuestRam) -> Result<Self, DriverFault> {
        if !state.ready {
            return Ok(Self { index, ring: None, told: 0 });
        }
        let ring = Queue::try_from(*state).map_err(DriverFault::Ring)?;
        if !ring.is_valid(ram) {
            return Err(DriverFault::OutsideRam);
        }
        Ok(Self { index, ring: Some(ring), told: state.next_used })
    }

    /// How far the device has come: the next index in the available ring, and in the used ring.
    pub fn position(&self) -> (u16, u16) {
        self.ring.as_ref().map_or((0, 0), |ring| (ring.next_avail(), ring.next_used()))
    }

    /// Takes the next chain, if there is one.
    pub fn pop<'r>(&mut self, ram: &'r GuestRam) -> Result<Option<Chain<'r>>, DriverFault> {
        let Some(ring) = &mut self.ring else { return Ok(None) };
        let head = ring.iter(ram).map_err(DriverFault::Ring)?.next().map(|chain| chain.head_index());
        head.map(|head| Chain::read(ram, ring.desc_table(), ring.size(), head)).transpose()
    }

    /// Puts the last `count` popped chains back, which were not answered.
    pub fn unpop(&mut self, count: usize) {
        if let Some(ring) = &mut self.ring {
            // At most one ring's worth can have been popped.
            ring.set_next_avail(ring.next_avail().wrapping_sub(count as u16));
        }
    }

    /// Answers chains, each given by its head and the bytes written into it. The driver sees all of them at once.
    pub fn push(&mut self, ram: &GuestRam, answers: &[(u16, u32)]) -> Result<(), DriverFault> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let mut next = ring.next_used();
        for (head, written) in answers {
            let slot = u64::from(next % ring.size());
            let address = ring.used_ring() + RING_HEADER_BYTES + slot * USED_ENTRY_BYTES;
            let entry = u64::from(*written) << 32 | u64::from(*head);
            ram.write_slice(&entry.to_le_bytes(), GuestAddress(address))
                .map_err(|_| DriverFault::OutsideRam)?;
            next = next.wrapping_add(1);
        }
        ring.set_next_used(next);
        ram.store(next.to_le(), GuestAddress(ring.used_ring() + 2), Ordering::Release)
            .map_err(|_| DriverFault::OutsideRam)
    }

    /// Interrupts the driver if there are answers that it wants to be told of.
    pub fn interrupt(&mut self, ram: &GuestRam, interrupts: &Interrupts) -> Result<(), DriverFault> {
        let Some(ring) = &self.ring else { return Ok(()) };
        let next = ring.next_used();
        if next == self.told {
            return Ok(());
        }
        // The answers must be visible before the driver's wish is read, lest both sides wait for each other.
        fence(Ordering::SeqCst);
        let wish = |offset: u64| {
            let address = GuestAddress(ring.avail_ring() + offset);
            ram.load(address, Ordering::Relaxed).map(u16::from_le).map_err(|_| DriverFault::OutsideRam)
        };
        let wanted = if ring.event_idx_enabled() {
            let event = wish(RING_HEADER_BYTES + u64::from(ring.size()) * AVAILABLE_ENTRY_BYTES)?;
            // Virtio 1.2, 2.7.7.2: whether the answer number `event` is among the new ones.
            next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(self.told)
        } else {
            wish(0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        };
        self.told = next;
        if wanted {
            interrupts.queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver to kick at the next chain, and looks whether there is one already.
    pub fn rearm(&mut self, ram: &GuestRam) -> Result<Progress, DriverFault> {
        let Some(ring) = &mut self.ring else { return Ok(Progress::Idle) };
        let more = ring.enable_notification(ram).map_err(DriverFault::Ring)?;
        Ok(if more { Progress::More } else { Progress::Idle })
    }
}
