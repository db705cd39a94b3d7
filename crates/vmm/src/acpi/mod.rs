//! The ACPI tables: what the guest learns about its platform.
//!
//! The platform is classic ACPI fixed hardware (PM1 registers and an SCI), not hardware-reduced ACPI. Power button,
//! power-off and reset are then three registers and no interpreted code; every kernel drives them, and none takes the
//! early path for hardware-reduced machines, on which Linux does without PIC and PIT and has no timer to calibrate by.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::devices::legacy::{pm, rtc};
use crate::memory::layout;

/// Where the tables begin: the area in which firmware leaves them, reserved by the memory map.
pub const TABLES: u64 = 0xe_0000;
/// How much room there is, in bytes.
pub const TABLES_BYTES_MAX: usize = (layout::HIGH_MEMORY_START - TABLES) as usize;

const OEM: [u8; 6] = *b"GODWIT";
const MACHINE: [u8; 8] = *b"GODWIT-1";
const REVISION: u32 = 1;
/// Offset of the flags in the MADT, and the flag that says that there is a PIC as well.
const MADT_FLAGS: usize = 40;
const MADT_PCAT_COMPAT: u32 = 1;
/// Type and length of an interrupt source override, and the flags "active high, level triggered".
const MADT_OVERRIDE: (u8, u8) = (2, 10);
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// "Legacy devices" and "VGA not present"; no keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2;
/// Latencies that say: there is no C2 and no C3.
const NO_C2_US: u16 = 101;
const NO_C3_US: u16 = 1001;

/// The tables for a machine with this many vCPUs, to be written at [`TABLES`]; the RSDP comes first.
pub fn tables(vcpus: u8) -> Vec<u8> {
    // The RSDP names the XSDT, which names the rest: room is left for it and it is written last.
    let mut image = vec![0; Rsdp::len()];
    let dsdt = append(&mut image, &dsdt::table());
    let facs = append(&mut image, &bytes(&FACS::new()));
    let fadt = append(&mut image, &bytes(&fadt(dsdt, facs)));
    let madt = append(&mut image, &madt(vcpus));
    let mut mcfg = MCFG::new(OEM, MACHINE, REVISION);
    mcfg.add_ecam(layout::ECAM.0, 0, 0, 255);
    let mcfg = append(&mut image, &bytes(&mcfg));
    let mut xsdt = XSDT::new(OEM, MACHINE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = append(&mut image, &bytes(&xsdt));
    image[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM, xsdt)));
    assert!(image.len() <= TABLES_BYTES_MAX, "the tables of the largest machine fit their area");
    image
}

fn fadt(dsdt: u64, facs: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM, MACHINE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    // Old parsers read only the 32-bit fields, and the FACS is looked for there first.
    fadt.dsdt = (dsdt as u32).into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = (pm::SCI as u16).into();
    fadt.pm1a_evt_blk = u32::from(pm::EVENTS).into();
    fadt.pm1a_cnt_blk = u32::from(pm::CONTROL).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len) = (4, 2);
    fadt.x_pm1a_evt_blk = port(pm::EVENTS, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(pm::CONTROL, 16, AccessSize::WordAccess);
    fadt.reset_reg = port(pm::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (NO_C2_US.into(), NO_C3_US.into());
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.finalize()
}

/// Local APICs, the I/O APIC, and how the SCI is wired. IRQ 0 needs no override: KVM's routing delivers it on pin 0.
fn madt(vcpus: u8) -> Vec<u8> {
    let address = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM, MACHINE, REVISION, address);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // Its id follows the local APICs' ids, as the two share a name space on old buses.
    madt.add_structure(IoApic::new(vcpus, layout::IO_APIC as u32, 0));
    let mut table = bytes(&madt);
    let (kind, length) = MADT_OVERRIDE;
    let isa_bus = 0;
    table.extend([kind, length, isa_bus, pm::SCI as u8]);
    table.extend(pm::SCI.to_le_bytes());
    table.extend(ACTIVE_HIGH_LEVEL.to_le_bytes());
    table[MADT_FLAGS..MADT_FLAGS + 4].copy_from_slice(&MADT_PCAT_COMPAT.to_le_bytes());
    seal(table)
}

/// Sets a table's length and checksum.
fn seal(mut table: Vec<u8>) -> Vec<u8> {
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = 0u8.wrapping_sub(table.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    table
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Appends a table, aligned as the FACS must be, and tells its guest address.
fn append(image: &mut Vec<u8>, table: &[u8]) -> u64 {
    image.resize(image.len().next_multiple_of(64), 0);
    let address = TABLES + image.len() as u64;
    image.extend(table);
    address
}

/// A table with a header, for AML.
fn definition_block(aml: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: u32 = 36;
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, 2, OEM, MACHINE, REVISION);
    table.append_slice(aml);
    table.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables by signature, found as a kernel finds them: RSDP, XSDT, and the FADT's DSDT and FACS.
    fn walk(image: &[u8]) -> Vec<(String, &[u8])> {
        let at = |address: u64| &image[(address - TABLES) as usize..];
        let u32_at =
            |bytes: &[u8], offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        let u64_at =
            |bytes: &[u8], offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap());
        let table = |address: u64| {
            let bytes = at(address);
            let bytes = &bytes[..u32_at(bytes, 4) as usize];
            (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
        };
        let xsdt = table(u64_at(image, 24));
        let mut found = vec![xsdt.clone()];
        found.extend((36..xsdt.1.len()).step_by(8).map(|offset| table(u64_at(xsdt.1, offset))));
        let fadt = found.iter().find(|(name, _)| name == "FACP").unwrap().1;
        found.extend([table(u64_at(fadt, 140)), table(u32_at(fadt, 36).into())]);
        found
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        for vcpus in [1, 2, 64] {
            let image = tables(vcpus);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(&image[..8], b"RSD PTR ");
            assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
            let found = walk(&image);
            let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["XSDT", "FACP", "APIC", "MCFG", "DSDT", "FACS"]);
            for (name, table) in found.iter().filter(|(name, _)| name != "FACS") {
                assert_eq!(sum(table), 0, "{name}");
            }
        }
    }

    #[test]
    fn the_madt_lists_every_vcpu_and_the_sci() {
        let image = tables(3);
        let madt = walk(&image).into_iter().find(|(name, _)| name == "APIC").unwrap().1;
        let mut kinds = Vec::new();
        let mut rest = &madt[44..];
        while !rest.is_empty() {
            kinds.push(rest[0]);
            rest = &rest[rest[1] as usize..];
        }
        assert_eq!(kinds, [0, 0, 0, 1, 2]);
    }
}
