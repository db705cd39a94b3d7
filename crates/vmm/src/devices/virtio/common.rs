//! The common configuration: how a driver sets the device up (virtio 1.2, 4.1.4.3).
//!
//! ```text
//!   0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK            write 0 from anywhere: reset
//!                                     |              |
//!                        refused features:      the driver broke the rules:
//!                        the bit stays clear    + NEEDS_RESET
//! ```

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::Interrupts;

/// Length of the structure in bytes.
pub(super) const COMMON_BYTES: usize = 56;

/// Feature bits of the transport itself.
pub(super) const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
/// The status bits that the driver sets.
const DRIVER_BITS: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FAILED) as u8
    | FEATURES_OK
    | DRIVER_OK;

/// What the driver has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommonConfig {
    /// What the device offers.
    pub offered: u64,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    /// What the driver accepts.
    pub features: u64,
    pub queue_select: u16,
    /// `max_size` is the device's; `next_avail` and `next_used` are those of the last stop of the worker.
    pub queues: Vec<QueueState>,
}

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver wants the device reset.
    Reset,
    /// The status has changed; the worker may have to start.
    Status,
}

impl CommonConfig {
    /// The state after power-on.
    pub(super) fn new(device_features: u64, queue_sizes: &[u16]) -> Self {
        let queue = |size: &u16| QueueState { max_size: *size, size: *size, ..QueueState::default() };
        Self {
            offered: device_features | TRANSPORT_FEATURES,
            device_feature_select: 0,
            driver_feature_select: 0,
            features: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    /// Back to the state after power-on.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes);
    }

    /// Whether the driver has accepted features that are all offered, and knows virtio 1.
    pub(super) fn features_acceptable(&self) -> bool {
        self.features & !self.offered == 0 && self.features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// The queues as the worker is to take them over.
    pub(super) fn queue_states(&self) -> impl Iterator<Item = QueueState> {
        let event_idx_enabled = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.queues.iter().map(move |queue| QueueState { event_idx_enabled, ..*queue })
    }

    /// Reads registers at `offset`, of any width.
    pub(super) fn read(&self, offset: usize, data: &mut [u8], interrupts: &Interrupts) {
        let mut bytes = [0; COMMON_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.features, self.driver_feature_select).to_le_bytes());
        put(16, &interrupts.vector(None).to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[interrupts.status(), interrupts.generation()]);
        put(22, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(24, &queue.size.to_le_bytes());
            put(26, &interrupts.vector(Some(self.queue_select.into())).to_le_bytes());
            put(28, &u16::from(queue.ready).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.desc_table.to_le_bytes());
            put(40, &queue.avail_ring.to_le_bytes());
            put(48, &queue.used_ring.to_le_bytes());
        }
        super::copy_config(&bytes, offset, data);
    }

    /// Writes the register at `offset` by its own width, 64-bit ones also by halves. Anything else is ignored, as is
    /// whatever the driver may not do in its present state.
    pub(super) fn write(&mut self, offset: usize, data: &[u8], interrupts: &Interrupts) -> Effect {
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let status = interrupts.status();
        match (offset, data.len()) {
            (0, 4) => self.device_feature_select = value as u32,
            (8, 4) => self.driver_feature_select = value as u32,
            (12, 4) if status & FEATURES_OK == 0 => {
                set_half(&mut self.features, self.driver_feature_select, value as u32);
            }
            (16, 2) => interrupts.set_vector(None, value as u16),
            (20, 1) => return self.write_status(value as u8, interrupts),
            (22, 2) => self.queue_select = value as u16,
            (26, 2) => interrupts.set_vector(Some(self.queue_select.into()), value as u16),
            (24..COMMON_BYTES, _) if status & DRIVER_OK == 0 => self.write_queue(offset, data.len(), value),
            _ => {}
        }
        Effect::None
    }

    fn write_queue(&mut self, offset: usize, length: usize, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.ready {
            return;
        }
        match (offset, length) {
            (24, 2) if (value as u16).is_power_of_two() && value as u16 <= queue.max_size => {
                queue.size = value as u16;
            }
            (28, 2) if value == 1 => queue.ready = true,
            (32..56, 4 | 8) if offset.is_multiple_of(length) => {
                let address = match offset {
                    32..40 => &mut queue.desc_table,
                    40..48 => &mut queue.avail_ring,
                    _ => &mut queue.used_ring,
                };
                match length {
                    8 => *address = value,
                    _ => set_half(address, u32::from(!offset.is_multiple_of(8)), value as u32),
                }
            }
            _ => {}
        }
    }

    /// Bits may only be added, in order.
    fn write_status(&self, value: u8, interrupts: &Interrupts) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let status = interrupts.status();
        let mut added = value & !status & DRIVER_BITS;
        if added & FEATURES_OK != 0 && !self.features_acceptable() {
            added &= !FEATURES_OK;
        }
        if (status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        interrupts.add_status(added);
        Effect::Status
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
