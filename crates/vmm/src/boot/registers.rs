//! The registers that vCPU 0 starts with.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes as _, GuestAddress};

use super::{BOOT_STACK, BootError, Entry, GDT, PAGE_TABLES};
use crate::kvm::{KvmError, call};
use crate::memory::GuestRam;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_LARGE: u64 = 1 << 7;
const GIB: u64 = 1 << 30;
/// Everything below 4 GiB is mapped one to one, in large pages of 2 MiB.
const MAPPED_GIB: u64 = 4;

/// Selectors and flat segments as Linux's boot protocol names them.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_BUSY_TASK: u8 = 0xb;

impl Entry {
    /// Writes the tables that the entry state needs: descriptors, and for 64-bit entries page tables.
    pub(crate) fn write_tables(&self, ram: &GuestRam) -> Result<(), BootError> {
        let long = matches!(self, Self::Linux64 { .. });
        let descriptors = [0, 0, descriptor(&code(long)), descriptor(&data()), descriptor(&task())];
        for (index, descriptor) in descriptors.iter().enumerate() {
            ram.write_obj(*descriptor, GuestAddress(GDT + 8 * index as u64))?;
        }
        if long {
            write_page_tables(ram)?;
        }
        Ok(())
    }
}

/// Sets the registers of a vCPU that is fresh from reset.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(call("reading segment and control registers"))?;
    let long = matches!(entry, Entry::Linux64 { .. });
    sregs.cs = code(long);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data(), data(), data(), data(), data());
    sregs.tr = task();
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 5 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0_PE | CR0_ET;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry {
        Entry::Linux64 { rip, zero_page } => {
            sregs.cr0 |= CR0_PG;
            (sregs.cr3, sregs.cr4, sregs.efer) = (PAGE_TABLES, CR4_PAE, EFER_LME | EFER_LMA);
            (regs.rip, regs.rsi, regs.rsp) = (rip, zero_page, BOOT_STACK);
        }
        Entry::Pvh { rip, start_info } => (regs.rip, regs.rbx) = (rip, start_info),
    }
    vcpu.set_sregs(&sregs).map_err(call("setting segment and control registers"))?;
    vcpu.set_regs(&regs).map_err(call("setting general registers"))
}

/// One PML4, one page of gigabytes, then a page of 2 MiB pages for each gigabyte.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    let page = |n: u64| PAGE_TABLES + 0x1000 * n;
    ram.write_obj(page(1) | PAGE_PRESENT_WRITABLE, GuestAddress(page(0)))?;
    for gib in 0..MAPPED_GIB {
        ram.write_obj(page(2 + gib) | PAGE_PRESENT_WRITABLE, GuestAddress(page(1) + 8 * gib))?;
        for index in 0..512 {
            let address = gib * GIB + (index << 21);
            ram.write_obj(
                address | PAGE_LARGE | PAGE_PRESENT_WRITABLE,
                GuestAddress(page(2 + gib) + 8 * index),
            )?;
        }
    }
    Ok(())
}

fn code(long: bool) -> kvm_segment {
    kvm_segment { selector: CODE_SELECTOR, type_: TYPE_CODE, l: long.into(), db: (!long).into(), ..flat() }
}

fn data() -> kvm_segment {
    kvm_segment { selector: DATA_SELECTOR, type_: TYPE_DATA, db: 1, ..flat() }
}

fn task() -> kvm_segment {
    kvm_segment {
        selector: TASK_SELECTOR,
        type_: TYPE_BUSY_TASK,
        limit: 0x67,
        present: 1,
        ..Default::default()
    }
}

fn flat() -> kvm_segment {
    kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() }
}

/// A segment as the 8 bytes of a descriptor.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let (base, bit) = (segment.base, |flag: u8, at: u32| u64::from(flag) << at);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use godwit_types::Bytes;

    use super::*;
    use crate::memory::Ram;

    #[test]
    fn descriptors_are_the_ones_of_the_manuals() {
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn the_page_tables_map_every_address_below_4_gib_to_itself() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        write_page_tables(ram.guest()).unwrap();
        let read = |at: u64| ram.guest().read_obj::<u64>(GuestAddress(at)).unwrap();
        for address in [0u64, 0x10_0000, 0x4020_0000, 0xfee0_0000, 0xffff_ffff] {
            let pdpt = read(PAGE_TABLES) & !0xfff;
            let directory = read(pdpt + 8 * (address >> 30)) & !0xfff;
            let entry = read(directory + 8 * (address >> 21 & 511));
            assert_eq!(entry & !0x1f_ffff, address & !0x1f_ffff, "{address:#x}");
            assert_eq!(entry & (PAGE_LARGE | PAGE_PRESENT_WRITABLE), 0x83);
        }
    }
}
