//! The guest-physical address map of all machine types so far.
//!
//! ```text
//!           0 .. 0xc000_0000   RAM, as much as there is; legacy area 0xa_0000..0x10_0000 is RAM too, but reserved:
//!                              VMClock 0xd_f000, ACPI tables 0xe_0000
//! 0xc000_0000 .. 0xe000_0000   PCI BARs
//! 0xe000_0000 .. 0xf000_0000   PCI configuration space (ECAM)
//! 0xfec0_0000                  I/O APIC
//! 0xfee0_0000                  local APICs
//! 0xfeff_c000 .. 0xff00_0000   pages that KVM keeps for itself on Intel hosts
//! 0x1_0000_0000 ..             the rest of RAM
//! ```

use godwit_migration::PageRange;
use godwit_types::{Bytes, Gfn, PAGE_SIZE_BYTES};

use crate::devices::pci::layout as pci;

/// First address after the RAM below 4 GiB.
pub const LOW_RAM_END: u64 = pci::MMIO_START;
/// First address of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Where PCI BARs lie, and how many bytes there are.
pub const BAR_WINDOW: (u64, u64) = (pci::MMIO_START, pci::MMIO_END - pci::MMIO_START);
/// Where PCI configuration space lies, and how many bytes there are: 256 buses, of which bus 0 exists.
pub const ECAM: (u64, u64) = (pci::ECAM_START, pci::ECAM_BYTES);

pub const IO_APIC: u64 = 0xfec0_0000;
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// One page, which KVM needs on Intel hosts without unrestricted guest mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages, for the same reason.
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + PAGE_SIZE_BYTES;

/// First address of the legacy area that the memory map reserves.
pub const LEGACY_START: u64 = 0xa_0000;
/// The page by which a guest learns that its clock was disturbed; in that area.
pub const VMCLOCK: u64 = 0xd_f000;
/// First address of RAM after it, where kernels are loaded.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// The RAM ranges of a VM with this much memory, ascending.
pub fn ram_ranges(memory: Bytes) -> Vec<PageRange> {
    let low = memory.0.min(LOW_RAM_END);
    let range = |start: u64, bytes: u64| PageRange {
        start: Gfn(start / PAGE_SIZE_BYTES),
        pages: bytes / PAGE_SIZE_BYTES,
    };
    let mut ranges = vec![range(0, low)];
    if memory.0 > low {
        ranges.push(range(HIGH_RAM_START, memory.0 - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_reaches_the_device_window_continues_above_4_gib() {
        let ends = |memory| {
            let ranges = ram_ranges(memory);
            let total: u64 = ranges.iter().map(|range| range.pages).sum();
            assert_eq!(total, memory.pages(), "{memory}");
            ranges
                .iter()
                .map(|r| (r.start.address(), r.start.address() + r.pages * PAGE_SIZE_BYTES))
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(Bytes::mib(512)), [(0, 512 << 20)]);
        assert_eq!(ends(Bytes::mib(3072)), [(0, LOW_RAM_END)]);
        assert_eq!(ends(Bytes::mib(4096)), [(0, LOW_RAM_END), (HIGH_RAM_START, HIGH_RAM_START + (1 << 30))]);
    }
}
