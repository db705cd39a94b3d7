//! Where PCI lies in all machine types so far: part of what the guest sees, so it never changes for any of them.

/// First address of the memory-mapped configuration space (ECAM), for segment 0.
pub const ECAM_START: u64 = 0xE000_0000;
/// Length of the ECAM in bytes: buses 0 to 255.
pub const ECAM_BYTES: u64 = 256 << 20;
/// First address of the window that BARs are assigned from.
pub const MMIO_START: u64 = 0xC000_0000;
/// First address behind the window.
pub const MMIO_END: u64 = ECAM_START;

/// The port that selects a configuration register by a 4-byte write; ports behind it are not claimed.
pub const CONFIG_ADDRESS_PORT: u64 = 0xCF8;
/// First of the four ports through which the selected register is accessed.
pub const CONFIG_DATA_PORT: u64 = 0xCFC;

/// Device numbers on bus 0; each device has function 0 alone.
pub const HOST_BRIDGE_SLOT: u8 = 0x00;
pub const RNG_SLOT: u8 = 0x01;
pub const BALLOON_SLOT: u8 = 0x02;
pub const CONSOLE_SLOT: u8 = 0x03;
/// Disk `n` is in slot `DISK_SLOT_FIRST + n`.
pub const DISK_SLOT_FIRST: u8 = 0x08;
/// Network card `n` is in slot `NIC_SLOT_FIRST + n`.
pub const NIC_SLOT_FIRST: u8 = 0x10;
/// Device numbers of one bus.
pub const SLOTS: usize = 32;

/// Distance between the BARs of neighbouring slots, in bytes.
const BAR_STRIDE: u64 = 64 << 10;

/// Where the first BAR of the device in `slot` is at power-on.
pub const fn bar_start(slot: u8) -> u64 {
    MMIO_START + slot as u64 * BAR_STRIDE
}

const _: () = assert!(bar_start(SLOTS as u8) <= MMIO_END);
