//! The PVH boot protocol (Xen's `start_info.h`): an ELF image whose note names a 32-bit entry point.

use godwit_types::Bytes;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes as _, GuestAddress};

use super::{BootError, Entry, Kernel, START_INFO, memory_map};
use crate::memory::GuestRam;

const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
/// The list of modules and the memory map follow the start info in its page.
const MODULES: u64 = START_INFO + 0x100;
const MEMORY_MAP: u64 = START_INFO + 0x200;
/// The protocol leaves the limit to the kernel; Linux's own is 2048 with the terminator.
const CMDLINE_BYTES_MAX: usize = godwit_types::vm::CMDLINE_BYTES_MAX;

pub(super) fn load(kernel: &Kernel, ram: &GuestRam, memory: Bytes, rsdp: u64) -> Result<Entry, BootError> {
    let loaded = Elf::load(ram, None, &mut kernel.reader()?, None)
        .map_err(|source| BootError::Load { path: kernel.path.clone(), source })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhNote(kernel.path.clone()));
    };
    let initrd = kernel.load_initrd(ram, memory, loaded.kernel_end, u64::MAX)?;
    if let Some((paddr, size)) = initrd {
        ram.write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(MODULES))?;
    }
    let map = memory_map(memory);
    let mut at = MEMORY_MAP;
    for entry in &map {
        let (addr, size, type_) = (entry.start, entry.bytes, entry.kind as u32);
        ram.write_obj(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    let start_info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: kernel.load_cmdline(ram, CMDLINE_BYTES_MAX)?,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    ram.write_obj(start_info, GuestAddress(START_INFO))?;
    Ok(Entry::Pvh { rip: entry.0, start_info: START_INFO })
}
