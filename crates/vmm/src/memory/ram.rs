//! Guest RAM by whole pages.
//!
//! Reads and writes go through the memfd's file interface and not through the mapping: reading a page that nobody has
//! touched then gives zeros without allocating it, and writing a page needs neither a fault nor a page of zeros first.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{GuestMemory, MachineError, PageRange};
use godwit_types::{Bytes, Gfn, PAGE_SIZE_BYTES};
use vm_memory::bitmap::Bitmap;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, layout};

/// Guest RAM.
pub struct Ram {
    memfd: Arc<File>,
    guest: Arc<GuestRam>,
    ranges: Vec<PageRange>,
}

/// One KVM memory slot: a range of RAM and where it is mapped in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub id: u32,
    pub range: PageRange,
    pub host_address: u64,
}

/// Why guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot create a memory file for {0} of guest memory; free memory on this host")]
    Create(Bytes, #[source] io::Error),
    #[error("cannot map {0} of guest memory; free memory on this host")]
    Map(Bytes, #[source] vm_memory::mmap::FromRangesError),
    #[error("cannot clear guest memory")]
    Clear(#[source] io::Error),
}

impl Ram {
    /// Reserves `memory` of RAM; nothing of it is allocated before it is touched.
    pub fn new(memory: Bytes) -> Result<Self, MemoryError> {
        let memfd = create_memfd(memory).map_err(|error| MemoryError::Create(memory, error))?;
        let memfd = Arc::new(memfd);
        let ranges = layout::ram_ranges(memory);
        let mut offset = 0;
        let mapped = ranges.iter().map(|range| {
            let bytes = range.pages * PAGE_SIZE_BYTES;
            let file = FileOffset::from_arc(Arc::clone(&memfd), offset);
            offset += bytes;
            (GuestAddress(range.start.address()), bytes as usize, Some(file))
        });
        let guest =
            GuestRam::from_ranges_with_files(mapped).map_err(|error| MemoryError::Map(memory, error))?;
        Ok(Self { memfd, guest: Arc::new(guest), ranges })
    }

    /// The RAM as devices see it.
    pub fn guest(&self) -> &Arc<GuestRam> {
        &self.guest
    }

    /// The memory slots to give to KVM, one for each range.
    pub fn slots(&self) -> Vec<Slot> {
        let slot = |(id, (range, region)): (usize, (&PageRange, &vm_memory::GuestRegionMmap<_>))| Slot {
            id: id as u32,
            range: *range,
            host_address: region.as_ptr() as u64,
        };
        self.ranges.iter().zip(self.guest.iter()).enumerate().map(slot).collect()
    }

    /// Makes all RAM read as zeros, as after power-on, and counts all of it as written by the VMM.
    pub fn clear(&self) -> Result<(), MemoryError> {
        let pages = self.ranges.iter().map(|range| range.pages).sum::<u64>();
        self.punch(0, pages * PAGE_SIZE_BYTES).map_err(MemoryError::Clear)?;
        for region in self.guest.iter() {
            region.bitmap().mark_dirty(0, region.len() as usize);
        }
        Ok(())
    }

    /// Forgets the VMM's own writes so far.
    pub fn forget_own_writes(&self) {
        for region in self.guest.iter() {
            region.get_mmap().bitmap().reset();
        }
    }

    /// Adds the pages that the VMM itself has written since the last call.
    pub fn harvest_own_writes(&self, dirty: &mut PageBitmap) {
        for (range, region) in self.ranges.iter().zip(self.guest.iter()) {
            insert_words(dirty, range.start, &region.get_mmap().bitmap().get_and_reset());
        }
    }

    /// The memfd's offset of a run of pages, which must lie within one range.
    fn offset(&self, first: Gfn, pages: u64) -> Result<u64, MachineError> {
        let mut before = 0;
        for range in &self.ranges {
            if let Some(at) = first.0.checked_sub(range.start.0)
                && at.checked_add(pages).is_some_and(|end| end <= range.pages)
            {
                return Ok((before + at) * PAGE_SIZE_BYTES);
            }
            before += range.pages;
        }
        Err(MachineError {
            step: "accessing guest memory".into(),
            reason: format!("{pages} pages from {:#x} on are not all RAM", first.0),
        })
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: only the memfd's own pages are freed; their mapping stays valid and reads as zeros.
        let done = unsafe { libc::fallocate(self.memfd.as_raw_fd(), mode, offset as i64, bytes as i64) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether any page was allocated in this part of the memfd.
    fn touched(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        // SAFETY: `lseek` reads no memory; nothing else uses the file position.
        let next = unsafe { libc::lseek(self.memfd.as_raw_fd(), offset as i64, libc::SEEK_DATA) };
        if next >= 0 {
            return Ok((next as u64) < offset + bytes);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            error => Err(error),
        }
    }
}

impl GuestMemory for Ram {
    fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        let offset = self.offset(first, whole_pages(into.len())?)?;
        self.memfd.read_exact_at(into, offset).map_err(|error| failed("reading", first, &error))
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        let offset = self.offset(first, whole_pages(from.len())?)?;
        self.memfd.write_all_at(from, offset).map_err(|error| failed("writing", first, &error))
    }

    fn zero(&self, first: Gfn, pages: u64) -> Result<(), MachineError> {
        let (offset, bytes) = (self.offset(first, pages)?, pages * PAGE_SIZE_BYTES);
        let zeroed =
            self.touched(offset, bytes).and_then(|yes| if yes { self.punch(offset, bytes) } else { Ok(()) });
        zeroed.map_err(|error| failed("zeroing", first, &error))
    }
}

fn create_memfd(memory: Bytes) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(memory.0)?;
    Ok(file)
}

/// Adds a bitmap's words, whose first bit stands for `start`, a multiple of 64.
pub(crate) fn insert_words(dirty: &mut PageBitmap, start: Gfn, words: &[u64]) {
    for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
        dirty.insert_word(Gfn(start.0 + 64 * index as u64), *word);
    }
}

fn whole_pages(bytes: usize) -> Result<u64, MachineError> {
    let bytes = bytes as u64;
    if bytes.is_multiple_of(PAGE_SIZE_BYTES) {
        return Ok(bytes / PAGE_SIZE_BYTES);
    }
    Err(MachineError {
        step: "accessing guest memory".into(),
        reason: format!("{bytes} bytes are not a whole number of pages"),
    })
}

fn failed(step: &str, first: Gfn, error: &io::Error) -> MachineError {
    MachineError { step: format!("{step} guest memory at page {:#x}", first.0), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::Bytes as _;

    use super::*;

    const PAGE: usize = PAGE_SIZE_BYTES as usize;

    fn allocated_pages(ram: &Ram) -> u64 {
        ram.memfd.metadata().unwrap().blocks() * 512 / PAGE_SIZE_BYTES
    }

    #[test]
    fn pages_written_by_a_migration_are_what_devices_read_and_the_other_way_round() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(5), &[7; PAGE]).unwrap();
        assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(5 * PAGE as u64 + 9)).unwrap(), 7);
        ram.guest().write_obj(0xabu8, GuestAddress(6 * PAGE as u64)).unwrap();
        let mut pages = vec![0; 2 * PAGE];
        ram.read(Gfn(5), &mut pages).unwrap();
        assert_eq!((pages[PAGE - 1], pages[PAGE], pages[PAGE + 1]), (7, 0xab, 0));
    }

    #[test]
    fn reading_and_zeroing_untouched_memory_allocates_nothing() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.read(Gfn(0), &mut vec![1; 64 * PAGE]).unwrap();
        ram.zero(Gfn(0), 4096).unwrap();
        assert_eq!(allocated_pages(&ram), 0);
    }

    #[test]
    fn a_zeroed_page_reads_as_zeros_whatever_it_held_and_its_neighbours_stay() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(10), &[9; 3 * PAGE]).unwrap();
        ram.zero(Gfn(11), 1).unwrap();
        let mut pages = vec![1; 3 * PAGE];
        ram.read(Gfn(10), &mut pages).unwrap();
        assert!(pages[..PAGE].iter().all(|byte| *byte == 9));
        assert!(pages[PAGE..2 * PAGE].iter().all(|byte| *byte == 0));
        assert!(pages[2 * PAGE..].iter().all(|byte| *byte == 9));
        assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(11 * PAGE as u64)).unwrap(), 0);
    }

    #[test]
    fn accesses_outside_ram_are_refused() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        let pages = Bytes::mib(16).pages();
        for (first, count) in [(pages, 1), (pages - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
            assert!(ram.read(Gfn(first), &mut vec![0; count * PAGE]).is_err(), "{first:#x}+{count}");
            assert!(ram.write(Gfn(first), &vec![0; count * PAGE]).is_err(), "{first:#x}+{count}");
            assert!(ram.zero(Gfn(first), count as u64).is_err(), "{first:#x}+{count}");
        }
        assert!(ram.zero(Gfn(1), u64::MAX).is_err());
        assert!(ram.read(Gfn(0), &mut [0; 100]).is_err());
    }

    #[test]
    fn every_write_of_a_device_is_harvested_once() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.guest().write_obj(1u64, GuestAddress(3 * PAGE as u64 - 4)).unwrap();
        let mut dirty = PageBitmap::new(4096);
        ram.harvest_own_writes(&mut dirty);
        assert_eq!((dirty.len(), dirty.contains(Gfn(2)), dirty.contains(Gfn(3))), (2, true, true));
        let mut again = PageBitmap::new(4096);
        ram.harvest_own_writes(&mut again);
        assert!(again.is_empty());
    }

    #[test]
    fn cleared_memory_is_zero_and_counts_as_written() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(1), &[1; PAGE]).unwrap();
        ram.clear().unwrap();
        assert_eq!(allocated_pages(&ram), 0);
        let mut dirty = PageBitmap::new(4096);
        ram.harvest_own_writes(&mut dirty);
        assert_eq!(dirty.len(), 4096);
    }
}
