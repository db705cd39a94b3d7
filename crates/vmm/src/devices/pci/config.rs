//! The configuration space of one function with a type-0 header.

use super::capability::Capability;

/// Bytes of a conventional configuration space.
pub const CONFIG_BYTES: usize = 256;
/// Base address registers of a type-0 header.
const BARS: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE_SIZE: usize = 0x0C;
const LATENCY_TIMER: usize = 0x0D;
const BAR_FIRST: usize = 0x10;
const SUBSYSTEM: usize = 0x2C;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;
const CAPABILITY_FIRST: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const BAR_TYPE_64: u32 = 0b100;

/// What a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass and interface, from the highest byte down.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// A memory BAR to create.
#[derive(Debug, Clone, Copy)]
pub struct BarSpec {
    /// Where it is at power-on; aligned to `bytes`.
    pub address: u64,
    /// A power of two, at least 16.
    pub bytes: u64,
    pub width: BarWidth,
}

/// How many address bits a memory BAR has. A 64-bit BAR takes two registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarWidth {
    Bits32,
    Bits64,
}

/// The registers, and which of their bits the guest may change.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    bars: [Option<BarSpec>; BARS],
    /// Where the next capability goes, and the byte that has to point there.
    capability_next: usize,
    capability_link: usize,
}

impl ConfigSpace {
    /// A function with neither BARs nor capabilities. Memory decoding is on, as firmware would leave it.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bars: [None; BARS],
            capability_next: CAPABILITY_FIRST,
            capability_link: CAPABILITIES_POINTER,
        };
        space.set(0, &identity.vendor.to_le_bytes());
        space.set(2, &identity.device.to_le_bytes());
        space.set(8, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.set(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        space.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        let command_bits = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTERRUPT_DISABLE;
        space.allow(COMMAND, &command_bits.to_le_bytes());
        for scratch in [CACHE_LINE_SIZE, LATENCY_TIMER, INTERRUPT_LINE] {
            space.allow(scratch, &[0xff]);
        }
        space
    }

    /// Adds a memory BAR at register `index`. Reading back all ones written gives its size, since the bits below the
    /// size do not change.
    pub fn add_bar(&mut self, index: usize, bar: BarSpec) {
        assert!(bar.bytes.is_power_of_two() && bar.bytes >= 16 && bar.address.is_multiple_of(bar.bytes));
        let at = BAR_FIRST + 4 * index;
        let mask = !(bar.bytes - 1);
        // The two low halves: `as` keeps the lower 32 bits on purpose.
        let kind = if bar.width == BarWidth::Bits64 { BAR_TYPE_64 } else { 0 };
        self.set(at, &(bar.address as u32 | kind).to_le_bytes());
        self.allow(at, &(mask as u32).to_le_bytes());
        if bar.width == BarWidth::Bits64 {
            self.set(at + 4, &((bar.address >> 32) as u32).to_le_bytes());
            self.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[index] = Some(bar);
    }

    /// Appends a capability and returns its offset.
    pub fn add_capability(&mut self, capability: &Capability) -> usize {
        let at = self.capability_next;
        self.set(self.capability_link, &[at as u8]);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.set(at, &[capability.id, 0]);
        self.set(at + 2, &capability.body);
        self.allow(at + 2, &capability.writable);
        self.capability_link = at + 1;
        self.capability_next = (at + 2 + capability.body.len()).next_multiple_of(4);
        at
    }

    /// Reads registers from `offset` on; those behind the end read as all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0xff);
        }
    }

    /// Writes registers from `offset` on, as far as they are writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, value) in (offset..CONFIG_BYTES).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | value & mask;
        }
    }

    /// The little-endian 16-bit register at `offset`.
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The little-endian 32-bit register at `offset`.
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    /// Whether the function may read and write guest memory.
    pub fn bus_master(&self) -> bool {
        self.u16_at(COMMAND) & COMMAND_MASTER != 0
    }

    /// Where the BAR at `index` answers, or `None` while memory decoding is off.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bars[index]?;
        if self.u16_at(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let at = BAR_FIRST + 4 * index;
        let high = if bar.width == BarWidth::Bits64 { self.u32_at(at + 4) } else { 0 };
        Some((u64::from(high) << 32 | u64::from(self.u32_at(at))) & !(bar.bytes - 1))
    }

    /// All registers, for saving.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes over saved registers. Bits that the guest cannot change must be as they are here.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let saved: &[u8; CONFIG_BYTES] = saved
            .try_into()
            .map_err(|_| format!("a configuration space has {CONFIG_BYTES} bytes, not {}", saved.len()))?;
        for (at, byte) in saved.iter().enumerate() {
            if (byte ^ self.bytes[at]) & !self.writable[at] != 0 {
                return Err(format!("the fixed configuration byte {at:#x} differs from this machine's"));
            }
        }
        self.bytes = *saved;
        Ok(())
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1AF4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1AF4,
        subsystem: 0x1100,
    };

    fn with_bars() -> ConfigSpace {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_bar(0, BarSpec { address: 0xC008_0000, bytes: 0x8000, width: BarWidth::Bits64 });
        space.add_bar(2, BarSpec { address: 0xC010_0000, bytes: 0x1000, width: BarWidth::Bits32 });
        space
    }

    #[test]
    fn a_guest_learns_the_size_of_a_bar_by_writing_all_ones() {
        let mut space = with_bars();
        for (register, ones) in [(0x10, 0xffff_8004u32), (0x14, 0xffff_ffff), (0x18, 0xffff_f000), (0x1c, 0)]
        {
            let before = space.u32_at(register);
            space.write(register, &[0xff; 4]);
            assert_eq!(space.u32_at(register), ones, "register {register:#x}");
            space.write(register, &before.to_le_bytes());
            assert_eq!(space.u32_at(register), before);
        }
    }

    #[test]
    fn a_moved_bar_answers_at_its_new_address_unless_decoding_is_off() {
        let mut space = with_bars();
        space.write(0x10, &0xD000_0000u32.to_le_bytes());
        space.write(0x14, &1u32.to_le_bytes());
        assert_eq!(space.bar_address(0), Some(0x1_D000_0000));
        assert_eq!(space.bar_address(2), Some(0xC010_0000));
        space.write(0x04, &[0, 0]);
        assert_eq!((space.bar_address(0), space.bar_address(2), space.bar_address(5)), (None, None, None));
    }

    #[test]
    fn fixed_registers_do_not_change_and_accesses_over_the_end_are_harmless() {
        let mut space = with_bars();
        for offset in [0, 2, 8, 0x2c, 0x30, 0x34, 254, 255, 256, 4095] {
            space.write(offset, &[0xff; 8]);
        }
        assert_eq!(space.u32_at(0), 0x1042_1AF4);
        assert_eq!(space.u32_at(0x30), 0, "there is no expansion ROM");
        let mut data = [0; 4];
        space.read(254, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn saved_registers_of_another_function_are_refused() {
        let mut space = with_bars();
        space.write(0x10, &0xD000_0000u32.to_le_bytes());
        let saved = space.bytes().to_vec();
        let mut fresh = with_bars();
        fresh.restore(&saved).unwrap();
        assert_eq!(fresh.bar_address(0), Some(0xD000_0000));
        let mut other = saved.clone();
        other[2] ^= 1;
        assert!(with_bars().restore(&other).is_err());
        assert!(with_bars().restore(&saved[..255]).is_err());
    }
}
