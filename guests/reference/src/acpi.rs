//! The ACPI tables that matter here: vCPUs, PCI configuration space, power.

use crate::bytes::Bytes;

const HEADER_BYTES: usize = 36;

/// The tables, by their root.
#[derive(Clone, Copy)]
pub struct Acpi {
    root: Bytes,
    /// Size of the root's entries.
    pointer_bytes: usize,
}

impl Acpi {
    /// Reads the root; `rsdp` is 0 if it must be searched for.
    pub fn new(rsdp: u64) -> Self {
        let address = if rsdp == 0 { search() } else { rsdp };
        // SAFETY: firmware keeps a root pointer of 36 bytes there (20 in its oldest version, with room behind).
        let pointer = unsafe { Bytes::at(address, 36) };
        let xsdt = if pointer.u8(15) >= 2 { pointer.u64(24) } else { 0 };
        if xsdt != 0 {
            Self { root: table(xsdt), pointer_bytes: 8 }
        } else {
            Self { root: table(pointer.u32(16).into()), pointer_bytes: 4 }
        }
    }

    /// The table with this signature.
    pub fn find(&self, signature: &[u8; 4]) -> Option<Bytes> {
        let count = (self.root.as_slice().len() - HEADER_BYTES) / self.pointer_bytes;
        (0..count)
            .map(|i| HEADER_BYTES + i * self.pointer_bytes)
            .map(|at| if self.pointer_bytes == 8 { self.root.u64(at) } else { self.root.u32(at).into() })
            .map(table)
            .find(|table| table.as_slice().starts_with(signature))
    }

    /// The LAPIC numbers of all vCPUs that may be used.
    pub fn apic_ids(&self) -> impl Iterator<Item = u32> {
        const ENABLED: u32 = 1;
        let madt = self.find(b"APIC").expect("ACPI lists the CPUs");
        let mut at = HEADER_BYTES + 8;
        core::iter::from_fn(move || {
            while at + 2 <= madt.as_slice().len() {
                let entry = at;
                at += usize::from(madt.u8(at + 1)).max(2);
                match madt.u8(entry) {
                    0 if madt.u32(entry + 4) & ENABLED != 0 => return Some(madt.u8(entry + 3).into()),
                    9 if madt.u32(entry + 8) & ENABLED != 0 => return Some(madt.u32(entry + 4)),
                    _ => {}
                }
            }
            None
        })
    }

    /// Where the configuration space of PCI segment 0 begins.
    pub fn ecam(&self) -> Option<u64> {
        self.find(b"MCFG").map(|mcfg| mcfg.u64(HEADER_BYTES + 8))
    }
}

/// A table with a standard header, whole.
pub fn table(address: u64) -> Bytes {
    // SAFETY: firmware keeps a table there, and the header says how long it is.
    unsafe {
        let header = Bytes::at(address, HEADER_BYTES);
        Bytes::at(address, header.u32(4) as usize)
    }
}

fn search() -> u64 {
    // SAFETY: the BIOS area is always mapped and does not change.
    let area = unsafe { Bytes::at(0xe_0000, 0x2_0000) };
    let found = area.as_slice().chunks(16).position(|block| block.starts_with(b"RSD PTR "));
    0xe_0000 + 16 * found.expect("the loader or the BIOS area names the ACPI tables") as u64
}
