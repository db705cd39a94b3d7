//! What the loader tells: `struct hvm_start_info` of the PVH boot protocol
//! (<https://xenbits.xen.org/docs/unstable/misc/pvh.html>).

use crate::bytes::Bytes;

const MAGIC: u32 = 0x336e_c578;
const BYTES: usize = 56;
const MEMORY_ENTRY_BYTES: usize = 24;
const MEMORY_RAM: u32 = 1;
const COMMAND_LINE_BYTES_MAX: usize = 4096;

/// The loader's page.
pub struct StartInfo(Bytes);

impl StartInfo {
    /// The one that the boot vCPU was given.
    pub fn get() -> Self {
        unsafe extern "C" {
            static start_info_address: u32;
        }
        // SAFETY: written once by boot.s, before ring 3.
        let address = unsafe { start_info_address };
        // SAFETY: the protocol puts the structure there and leaves the memory to the guest.
        let info = unsafe { Bytes::at(address.into(), BYTES) };
        assert_eq!(info.u32(0), MAGIC, "the loader does not speak PVH");
        assert!(info.u32(4) >= 1 && info.u32(48) > 0, "the loader gives no memory map");
        Self(info)
    }

    /// The kernel's command line.
    pub fn command_line(&self) -> &'static str {
        let address = self.0.u64(24);
        if address == 0 {
            return "";
        }
        // SAFETY: the protocol puts a NUL-terminated string there, in RAM that goes on behind it.
        let line = unsafe { Bytes::at(address, COMMAND_LINE_BYTES_MAX) }.as_slice();
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        core::str::from_utf8(line).expect("the command line is plain text")
    }

    /// Where ACPI's first table is; 0 if the loader does not say.
    pub fn rsdp(&self) -> u64 {
        self.0.u64(32)
    }

    /// First address and length of each block of RAM.
    pub fn ram(&self) -> impl Iterator<Item = (u64, u64)> {
        let count = self.0.u32(48) as usize;
        // SAFETY: the protocol puts `count` entries there.
        let map = unsafe { Bytes::at(self.0.u64(40), count * MEMORY_ENTRY_BYTES) };
        (0..count)
            .map(move |i| i * MEMORY_ENTRY_BYTES)
            .filter(move |&entry| map.u32(entry + 16) == MEMORY_RAM)
            .map(move |entry| (map.u64(entry), map.u64(entry + 8)))
    }
}
