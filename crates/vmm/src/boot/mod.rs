//! Loads a kernel into guest memory and tells where a vCPU starts.

mod bzimage;
mod memory_map;
mod pvh;
mod registers;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use godwit_types::{Bytes, PAGE_SIZE_BYTES};
use linux_loader::loader;
use vm_memory::{GuestAddress, GuestMemoryError, ReadVolatile};

use crate::memory::{GuestRam, layout};
pub use memory_map::{MapEntry, MapKind, memory_map};
pub use registers::set_entry;

/// Where the boot code's own structures lie in low memory. Page tables follow [`PAGE_TABLES`] for six pages.
const GDT: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const ZERO_PAGE: u64 = 0x7000;
const BOOT_STACK: u64 = 0x8ff0;
const PAGE_TABLES: u64 = 0x9000;
const CMDLINE: u64 = 0x2_0000;

/// A kernel and what goes with it, given open so that a reset finds the same.
pub struct Kernel {
    path: PathBuf,
    kernel: File,
    kind: Kind,
    initrd: Option<(PathBuf, File)>,
    cmdline: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BzImage,
    Elf,
}

/// Where and how vCPU 0 starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol.
    Linux64 { rip: u64, zero_page: u64 },
    /// The PVH entry: 32-bit protected mode without paging.
    Pvh { rip: u64, start_info: u64 },
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot open the {what} {}", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is neither a Linux bzImage nor an ELF image: give a kernel, such as /boot/vmlinuz", .0.display())]
    NeitherKind(PathBuf),
    #[error("cannot load the kernel {}", path.display())]
    Load {
        path: PathBuf,
        #[source]
        source: loader::Error,
    },
    #[error("{} is an ELF image without a PVH entry note: build it with CONFIG_PVH=y, or give its bzImage", .0.display())]
    NoPvhNote(PathBuf),
    #[error("{} has no 64-bit entry point: give an x86-64 kernel", .0.display())]
    No64BitEntry(PathBuf),
    #[error("{needed} of memory is needed to boot {}; give the VM more memory", path.display())]
    TooBig { path: PathBuf, needed: Bytes },
    #[error("the kernel command line has {length} bytes; {} takes at most {max}", path.display())]
    Cmdline { path: PathBuf, length: usize, max: usize },
    #[error("cannot write boot data into guest memory")]
    Memory(#[from] GuestMemoryError),
    #[error("cannot read the initrd {}", .0.display())]
    Initrd(PathBuf, #[source] vm_memory::VolatileMemoryError),
}

impl Kernel {
    /// Looks what the kernel is. Files come with their paths, which are for messages.
    pub fn new(
        (path, kernel): (PathBuf, File),
        initrd: Option<(PathBuf, File)>,
        cmdline: &str,
    ) -> Result<Self, BootError> {
        let kind = detect(&kernel).ok_or_else(|| BootError::NeitherKind(path.clone()))?;
        Ok(Self { path, kernel, kind, initrd, cmdline: cmdline.to_owned() })
    }

    /// Loads everything that the kernel needs into zeroed memory; `rsdp` is where the ACPI tables begin.
    pub fn load(&self, ram: &GuestRam, memory: Bytes, rsdp: u64) -> Result<Entry, BootError> {
        match self.kind {
            Kind::BzImage => bzimage::load(self, ram, memory, rsdp),
            Kind::Elf => pvh::load(self, ram, memory, rsdp),
        }
    }

    /// Loads the initrd at the top of the low memory, below `limit` and above `kernel_end`. Its address and length.
    fn load_initrd(
        &self,
        ram: &GuestRam,
        memory: Bytes,
        kernel_end: u64,
        limit: u64,
    ) -> Result<Option<(u64, u64)>, BootError> {
        let top = memory.0.min(layout::LOW_RAM_END).min(limit);
        let too_big =
            |bytes: u64| BootError::TooBig { path: self.path.clone(), needed: Bytes(kernel_end + bytes) };
        if kernel_end > top {
            return Err(too_big(0));
        }
        let Some((path, file)) = &self.initrd else { return Ok(None) };
        let opened = |source| BootError::Open { what: "initrd", path: path.clone(), source };
        let mut file = file.try_clone().map_err(opened)?;
        let length = file.seek(SeekFrom::End(0)).map_err(opened)?;
        file.rewind().map_err(opened)?;
        let start = top.checked_sub(length).map(|start| start & !(PAGE_SIZE_BYTES - 1));
        let start = start.filter(|start| *start >= kernel_end).ok_or_else(|| too_big(length))?;
        let slice = vm_memory::GuestMemoryBackend::get_slice(ram, GuestAddress(start), length as usize)?;
        file.read_exact_volatile(&mut slice.clone())
            .map_err(|error| BootError::Initrd(path.clone(), error))?;
        Ok(Some((start, length)))
    }

    /// Writes the command line, NUL-terminated.
    fn load_cmdline(&self, ram: &GuestRam, max: usize) -> Result<u64, BootError> {
        let length = self.cmdline.len();
        if length > max {
            return Err(BootError::Cmdline { path: self.path.clone(), length, max });
        }
        let bytes = [self.cmdline.as_bytes(), b"\0"].concat();
        vm_memory::Bytes::write_slice(ram, &bytes, GuestAddress(CMDLINE))?;
        Ok(CMDLINE)
    }

    fn reader(&self) -> Result<File, BootError> {
        let opened = |source| BootError::Open { what: "kernel", path: self.path.clone(), source };
        let mut file = self.kernel.try_clone().map_err(opened)?;
        file.rewind().map_err(opened)?;
        Ok(file)
    }
}

/// Tells a bzImage (the Linux boot protocol's `HdrS` at 0x202) from an ELF image.
fn detect(file: &File) -> Option<Kind> {
    let mut magic = [0; 4];
    let mut at = |offset| file.read_exact_at(&mut magic, offset).is_ok().then_some(magic);
    if at(0) == Some(*b"\x7fELF") {
        return Some(Kind::Elf);
    }
    (at(0x202) == Some(*b"HdrS")).then_some(Kind::BzImage)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_is_no_kernel_is_refused_by_name() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0x90; 2048]).unwrap();
        let given = (file.path().to_owned(), file.reopen().unwrap());
        let error = Kernel::new(given, None, "").err().unwrap().to_string();
        assert!(error.contains("neither") && error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
