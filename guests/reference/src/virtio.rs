//! Virtio over PCI (virtio 1.2, section 4.1), modern only.

use crate::memory::Memory;
use crate::mmio;
use crate::pci::Function;
use crate::queue::Queue;

const VENDOR: u16 = 0x1af4;
pub const DEVICE_NET: u16 = 0x1041;
pub const DEVICE_BLOCK: u16 = 0x1042;

const CAPABILITY_VENDOR: u8 = 0x09;
const CONFIG_COMMON: u8 = 1;
const CONFIG_NOTIFY: u8 = 2;
const CONFIG_DEVICE: u8 = 4;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_ADDRESSES: u64 = 0x20;

const ACKNOWLEDGE_AND_DRIVER: u8 = 3;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

const FEATURE_VERSION_1: u64 = 1 << 32;

/// A virtio device that is being set up.
pub struct Virtio {
    pub function: Function,
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    /// Its own configuration.
    pub device: u64,
    /// What both sides can.
    pub features: u64,
    status: u8,
}

impl Virtio {
    /// Finds the first device of that kind, resets it, and agrees on those of `features` that it has.
    pub fn find(ecam: u64, device: u16, features: u64, memory: &mut Memory) -> Option<Self> {
        let function = Function::find(ecam, VENDOR, device)?;
        function.enable();
        let mut virtio =
            Self { function, common: 0, notify: 0, notify_multiplier: 0, device: 0, features: 0, status: 0 };
        for (_, at) in function.capabilities().filter(|(id, _)| *id == CAPABILITY_VENDOR) {
            virtio.locate(at, memory);
        }
        virtio.negotiate(features);
        Some(virtio)
    }

    fn locate(&mut self, capability: u64, memory: &mut Memory) {
        let kind = self.function.read8(capability + 3);
        if !matches!(kind, CONFIG_COMMON | CONFIG_NOTIFY | CONFIG_DEVICE) {
            return;
        }
        let bar = self.function.bar(self.function.read8(capability + 4));
        assert_ne!(bar, 0, "firmware has given the device no addresses");
        let address = bar + u64::from(self.function.read32(capability + 8));
        memory.map(address, address + u64::from(self.function.read32(capability + 12)));
        match kind {
            CONFIG_COMMON => self.common = address,
            CONFIG_NOTIFY => {
                self.notify = address;
                self.notify_multiplier = self.function.read32(capability + 16).into();
            }
            _ => self.device = address,
        }
    }

    fn negotiate(&mut self, wanted: u64) {
        self.write8(STATUS, 0);
        while self.read8(STATUS) != 0 {}
        self.add_status(ACKNOWLEDGE_AND_DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.write32(DEVICE_FEATURE_SELECT, half);
            offered |= u64::from(self.read32(DEVICE_FEATURE)) << (32 * half);
        }
        self.features = offered & (wanted | FEATURE_VERSION_1);
        for half in 0..2 {
            self.write32(DRIVER_FEATURE_SELECT, half);
            self.write32(DRIVER_FEATURE, (self.features >> (32 * half)) as u32);
        }
        self.add_status(FEATURES_OK);
        assert!(self.read8(STATUS) & FEATURES_OK != 0, "the device refuses features {:#x}", self.features);
    }

    /// Sets up a queue; `msix` is the message that it sends.
    pub fn queue(&self, number: u16, msix: Option<u16>, memory: &mut Memory) -> Queue {
        const NO_VECTOR: u16 = 0xffff;
        self.write16(QUEUE_SELECT, number);
        let offset = u64::from(self.read16(QUEUE_NOTIFY_OFF)) * self.notify_multiplier;
        let queue = Queue::new(memory, self.read16(QUEUE_SIZE), (self.notify + offset, number));
        self.write16(QUEUE_SIZE, queue.size());
        self.write16(QUEUE_MSIX_VECTOR, msix.unwrap_or(NO_VECTOR));
        for (address, at) in queue.addresses().into_iter().zip((QUEUE_ADDRESSES..).step_by(8)) {
            self.write32(at, address as u32);
            self.write32(at + 4, (address >> 32) as u32);
        }
        self.write16(QUEUE_ENABLE, 1);
        if msix.is_none() {
            queue.poll_only();
        }
        queue
    }

    /// Starts the device.
    pub fn start(&mut self) {
        self.add_status(DRIVER_OK);
    }

    fn add_status(&mut self, bits: u8) {
        self.status |= bits;
        self.write8(STATUS, self.status);
    }

    /// A word of the device's own configuration.
    pub fn config8(&self, at: u64) -> u8 {
        // SAFETY: the device's configuration is mapped and has no side effects.
        unsafe { mmio::read8(self.device + at) }
    }

    /// See [`Virtio::config8`].
    pub fn config32(&self, at: u64) -> u32 {
        // SAFETY: the device's configuration is mapped and has no side effects.
        unsafe { mmio::read32(self.device + at) }
    }

    fn read8(&self, at: u64) -> u8 {
        // SAFETY: the common configuration is mapped.
        unsafe { mmio::read8(self.common + at) }
    }

    fn read16(&self, at: u64) -> u16 {
        // SAFETY: the common configuration is mapped.
        unsafe { mmio::read16(self.common + at) }
    }

    fn read32(&self, at: u64) -> u32 {
        // SAFETY: the common configuration is mapped.
        unsafe { mmio::read32(self.common + at) }
    }

    fn write8(&self, at: u64, value: u8) {
        // SAFETY: the common configuration is mapped; a queue is enabled only with memory of its own.
        unsafe { mmio::write8(self.common + at, value) };
    }

    fn write16(&self, at: u64, value: u16) {
        // SAFETY: as in `write8`.
        unsafe { mmio::write16(self.common + at, value) };
    }

    fn write32(&self, at: u64, value: u32) {
        // SAFETY: as in `write8`.
        unsafe { mmio::write32(self.common + at, value) };
    }
}
