//! Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst).

use godwit_types::Bytes;
use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes as _, GuestAddress};

use super::{BootError, Entry, Kernel, ZERO_PAGE, memory_map};
use crate::memory::{GuestRam, layout};

/// Offset of the 64-bit entry point from where the protected-mode kernel was loaded.
const ENTRY_64_OFFSET: u64 = 0x200;
const XLF_KERNEL_64: u16 = 1;
/// "A boot loader without an assigned number".
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn load(kernel: &Kernel, ram: &GuestRam, memory: Bytes, rsdp: u64) -> Result<Entry, BootError> {
    let loaded =
        BzImage::load(ram, None, &mut kernel.reader()?, Some(GuestAddress(layout::HIGH_MEMORY_START)))
            .map_err(|source| BootError::Load { path: kernel.path.clone(), source })?;
    let mut header = loaded.setup_header.unwrap_or_default();
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry(kernel.path.clone()));
    }
    // The kernel unpacks itself to its preferred address and needs `init_size` there before it can look around.
    let unpacked_end = header.pref_address.max(loaded.kernel_load.0).saturating_add(header.init_size.into());
    let kernel_end = unpacked_end.max(loaded.kernel_end);
    let initrd = kernel.load_initrd(ram, memory, kernel_end, u64::from(header.initrd_addr_max) + 1)?;
    let (initrd_start, initrd_bytes) = initrd.unwrap_or_default();
    header.type_of_loader = LOADER_UNDEFINED;
    header.loadflags |= LOADED_HIGH;
    header.ramdisk_image = initrd_start as u32;
    header.ramdisk_size = initrd_bytes as u32;
    header.cmd_line_ptr = kernel.load_cmdline(ram, header.cmdline_size as usize)? as u32;
    ram.write_obj(zero_page(header, memory, rsdp), GuestAddress(ZERO_PAGE))?;
    Ok(Entry::Linux64 { rip: loaded.kernel_load.0 + ENTRY_64_OFFSET, zero_page: ZERO_PAGE })
}

/// The zero page: the setup header, the memory map and the ACPI tables' address.
fn zero_page(header: setup_header, memory: Bytes, rsdp: u64) -> boot_params {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
    let map = memory_map(memory);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.bytes, r#type: entry.kind as u32 };
    }
    params.e820_entries = map.len() as u8;
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_page_carries_the_whole_memory_map_and_the_acpi_tables() {
        let params = zero_page(setup_header::default(), Bytes::mib(4096), 0xe_0000);
        let entries = params.e820_entries as usize;
        let last = params.e820_table[entries - 1];
        let (start, bytes, rsdp) = (last.addr, last.size, params.acpi_rsdp_addr);
        assert_eq!((entries, start, bytes, rsdp), (5, layout::HIGH_RAM_START, 1 << 30, 0xe_0000));
    }
}
