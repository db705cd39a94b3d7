//! PCI functions on bus 0, through the memory-mapped configuration space.

use crate::mmio;

const DEVICES: u64 = 32;
const VENDOR: u64 = 0x00;
const DEVICE: u64 = 0x02;
const COMMAND: u64 = 0x04;
const BAR_FIRST: u64 = 0x10;
const CAPABILITIES: u64 = 0x34;

const COMMAND_MEMORY_AND_MASTER: u16 = 0b110;
/// As many as fit the configuration space: a list that goes round must end.
const CAPABILITIES_MAX: usize = 48;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;

/// One function's configuration space.
#[derive(Clone, Copy)]
pub struct Function {
    base: u64,
}

impl Function {
    /// The first function of this vendor and device.
    pub fn find(ecam: u64, vendor: u16, device: u16) -> Option<Self> {
        (0..DEVICES)
            .map(|slot| Self { base: ecam + (slot << 15) })
            .find(|function| function.read16(VENDOR) == vendor && function.read16(DEVICE) == device)
    }

    /// Lets it decode its BARs and access memory.
    pub fn enable(&self) {
        self.write16(COMMAND, self.read16(COMMAND) | COMMAND_MEMORY_AND_MASTER);
    }

    /// Identifier and place of each capability.
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u64)> {
        let mut next = self.read8(CAPABILITIES);
        core::iter::from_fn(move || {
            let at = u64::from(next & !3);
            (at != 0).then(|| {
                next = self.read8(at + 1);
                (self.read8(at), at)
            })
        })
        .take(CAPABILITIES_MAX)
    }

    /// The address of a memory BAR, as firmware has set it.
    pub fn bar(&self, index: u8) -> u64 {
        const WIDE: u32 = 0b100;
        let at = BAR_FIRST + u64::from(index) * 4;
        let low = self.read32(at);
        let high = if low & WIDE != 0 { self.read32(at + 4) } else { 0 };
        u64::from(low & !0xf) | u64::from(high) << 32
    }

    /// Sends the function's MSI-X message 0 as this vector to this LAPIC. False if it has no MSI-X.
    pub fn enable_msix(&self, apic_id: u32, vector: u8, map: impl FnOnce(u64)) -> bool {
        let Some((_, at)) = self.capabilities().find(|(id, _)| *id == CAPABILITY_MSIX) else { return false };
        let place = self.read32(at + 4);
        let entry = self.bar((place & 7) as u8) + u64::from(place & !7);
        map(entry);
        let message = [0xfee0_0000 | apic_id << 12, 0, vector.into(), 0];
        for (word, at) in message.into_iter().zip((entry..).step_by(4)) {
            // SAFETY: the table entry's four words, mapped above; the message is an interrupt.
            unsafe { mmio::write32(at, word) };
        }
        self.write16(at + 2, MSIX_ENABLE);
        true
    }

    pub fn read8(&self, at: u64) -> u8 {
        // SAFETY: within this function's configuration space.
        unsafe { mmio::read8(self.base + at) }
    }

    pub fn read16(&self, at: u64) -> u16 {
        // SAFETY: within this function's configuration space.
        unsafe { mmio::read16(self.base + at) }
    }

    pub fn read32(&self, at: u64) -> u32 {
        // SAFETY: within this function's configuration space.
        unsafe { mmio::read32(self.base + at) }
    }

    fn write16(&self, at: u64, value: u16) {
        // SAFETY: within this function's configuration space; BARs stay where they are.
        unsafe { mmio::write16(self.base + at, value) };
    }
}
