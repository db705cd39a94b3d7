//! A virtio function between source and destination.

use virtio_queue::QueueState;

use super::common::CommonConfig;
use crate::device::State;

/// One PCI function with everything in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionState {
    #[prost(uint32, tag = "1")]
    pub virtio_id: u32,
    /// All registers of the configuration space.
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
    /// The MSI-X table as the guest reads it.
    #[prost(bytes = "vec", tag = "3")]
    pub msix_table: Vec<u8>,
    #[prost(uint64, tag = "4")]
    pub msix_pending: u64,
    #[prost(uint32, tag = "5")]
    pub status: u32,
    #[prost(uint32, tag = "6")]
    pub isr: u32,
    #[prost(uint32, tag = "7")]
    pub generation: u32,
    #[prost(uint32, tag = "8")]
    pub device_feature_select: u32,
    #[prost(uint32, tag = "9")]
    pub driver_feature_select: u32,
    #[prost(uint64, tag = "10")]
    pub features: u64,
    #[prost(uint32, tag = "11")]
    pub queue_select: u32,
    #[prost(uint32, tag = "12")]
    pub config_vector: u32,
    #[prost(message, repeated, tag = "13")]
    pub queues: Vec<SavedQueue>,
    /// The device's own message.
    #[prost(bytes = "vec", tag = "14")]
    pub device: Vec<u8>,
}

impl State for FunctionState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u16 = 1;
}

/// One queue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SavedQueue {
    #[prost(uint32, tag = "1")]
    pub size: u32,
    #[prost(uint32, tag = "2")]
    pub vector: u32,
    #[prost(bool, tag = "3")]
    pub enabled: bool,
    #[prost(uint64, tag = "4")]
    pub descriptors: u64,
    #[prost(uint64, tag = "5")]
    pub available: u64,
    #[prost(uint64, tag = "6")]
    pub used: u64,
    #[prost(uint32, tag = "7")]
    pub next_available: u32,
    #[prost(uint32, tag = "8")]
    pub next_used: u32,
}

impl SavedQueue {
    /// The saved form of a queue whose interrupt vector is `vector`.
    pub(super) fn new(queue: &QueueState, vector: u16) -> Self {
        Self {
            size: queue.size.into(),
            vector: vector.into(),
            enabled: queue.ready,
            descriptors: queue.desc_table,
            available: queue.avail_ring,
            used: queue.used_ring,
            next_available: queue.next_avail.into(),
            next_used: queue.next_used.into(),
        }
    }

    fn to_queue(&self, max_size: u16) -> Result<QueueState, String> {
        let size: u16 = narrow(self.size, "queue size")?;
        if !size.is_power_of_two() || size > max_size {
            return Err(format!("a queue of size {size} does not fit a device with queues up to {max_size}"));
        }
        Ok(QueueState {
            max_size,
            size,
            ready: self.enabled,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
            next_avail: narrow(self.next_available, "available index")?,
            next_used: narrow(self.next_used, "used index")?,
            event_idx_enabled: false,
        })
    }
}

impl FunctionState {
    /// The driver's registers, checked against the device that `fresh` belongs to.
    pub(super) fn common(&self, fresh: &CommonConfig) -> Result<CommonConfig, String> {
        if self.queues.len() != fresh.queues.len() {
            let (theirs, ours) = (self.queues.len(), fresh.queues.len());
            return Err(format!("the saved device has {theirs} queues, this one has {ours}"));
        }
        let pairs = self.queues.iter().zip(&fresh.queues);
        let queues = pairs.map(|(saved, own)| saved.to_queue(own.max_size)).collect::<Result<_, _>>()?;
        let missing = self.features & !fresh.offered;
        if missing != 0 {
            return Err(format!("the guest uses features {missing:#x} that this device does not offer"));
        }
        Ok(CommonConfig {
            offered: fresh.offered,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            features: self.features,
            queue_select: narrow(self.queue_select, "queue selector")?,
            queues,
        })
    }
}

/// A field that must fit the register it came from.
pub(super) fn narrow<T: TryFrom<u32>>(value: u32, field: &str) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("the saved {field} {value:#x} is too large"))
}
