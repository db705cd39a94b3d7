//! The DSDT: PCI root, serial port, clocks, and how to power off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};

use super::{bytes, definition_block};
use crate::devices::legacy::{pm, rtc, serial};
use crate::devices::vmclock;
use crate::memory::layout;

/// First and last port of PCI configuration mechanism 1.
const PCI_CONFIG_PORTS: (u16, u16) = (0xcf8, 0xcff);

pub(super) fn table() -> Vec<u8> {
    let devices = [pci_root(), reserved(), serial_port(), clock(), vmclock()].concat();
    let power_off = Name::new(Path::new("_S5_"), &Package::new(vec![&pm::SLEEP_TYPE_S5, &0u8, &0u8, &0u8]));
    definition_block(&[Scope::raw(Path::new("_SB_"), devices), bytes(&power_off)].concat())
}

/// The PCI Express root. Its devices signal by MSI-X only, so there is no `_PRT`.
fn pci_root() -> Vec<u8> {
    let (config_first, config_last) = PCI_CONFIG_PORTS;
    let (bars, bars_bytes) = layout::BAR_WINDOW;
    let (first, last) = (bars as u32, (bars + bars_bytes - 1) as u32);
    device(
        "PCI0",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_UID"), &0u8),
        ],
        vec![
            &AddressSpace::new_bus_number(0u16, 255u16),
            &IO::new(config_first, config_first, 1, (config_last - config_first + 1) as u8),
            &AddressSpace::new_io(0u16, config_first - 1, None),
            &AddressSpace::new_io(config_last + 1, u16::MAX, None),
            &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None),
        ],
    )
}

/// Configuration space and the PM registers belong to the platform; Linux uses the former only if it is told so.
fn reserved() -> Vec<u8> {
    let (ecam, ecam_bytes) = layout::ECAM;
    device(
        "PLAT",
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C02"))],
        vec![
            &Memory32Fixed::new(true, ecam as u32, ecam_bytes as u32),
            &IO::new(pm::BASE, pm::BASE, 1, pm::PORTS as u8),
        ],
    )
}

fn serial_port() -> Vec<u8> {
    device(
        "COM1",
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0501")), &Name::new(Path::new("_UID"), &1u8)],
        vec![
            &IO::new(serial::BASE, serial::BASE, 1, serial::PORTS as u8),
            &Interrupt::new(true, true, false, false, serial::IRQ),
        ],
    )
}

/// The CMOS clock, without an interrupt: it has no alarm.
fn clock() -> Vec<u8> {
    device(
        "RTC0",
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0B00"))],
        vec![&IO::new(rtc::BASE, rtc::BASE, 1, rtc::PORTS as u8)],
    )
}

/// See [`vmclock`].
fn vmclock() -> Vec<u8> {
    let (first, last) = (layout::VMCLOCK as u32, layout::VMCLOCK as u32 + vmclock::PAGE_BYTES as u32 - 1);
    device(
        "VCLK",
        vec![
            // Linux looks for the second; the first is what others have given the same device.
            &Name::new(Path::new("_HID"), &"AMZNC10C"),
            &Name::new(Path::new("_CID"), &"VMCLOCK"),
            &Name::new(Path::new("_DDN"), &"VMCLOCK"),
        ],
        vec![&AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, first, last, None)],
    )
}

/// A device with these names and current resources.
fn device(name: &str, names: Vec<&dyn Aml>, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    let children = names.into_iter().chain([&resources as &dyn Aml]).collect();
    bytes(&Device::new(Path::new(name), children))
}
