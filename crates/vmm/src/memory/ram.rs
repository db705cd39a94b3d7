//! Guest RAM by whole pages.
//!
//! It is private anonymous memory in huge pages where the kernel has them: what arrives then costs one fault for 512 pages,
//! and so does the guest when it goes on. Memory that nobody has written is never allocated by being read.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{GuestMemory, MachineError, PageRange};
use godwit_types::{Bytes, Gfn, PAGE_SIZE_BYTES};
use libc::iovec;
use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use super::aside::Aside;
use super::{GuestRam, advice, layout};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;

/// Guest RAM.
pub struct Ram {
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
    #[error("cannot map {0} of guest memory; free memory on this host")]
    Map(Bytes, #[source] vm_memory::mmap::FromRangesError),
    #[error("cannot clear guest memory")]
    Clear(#[source] io::Error),
}

impl Ram {
    /// Reserves `memory` of RAM; nothing of it is allocated before it is touched.
    pub fn new(memory: Bytes) -> Result<Self, MemoryError> {
        let ranges = layout::ram_ranges(memory);
        let mapped: Vec<_> = ranges
            .iter()
            .map(|range| (GuestAddress(range.start.address()), (range.pages * PAGE_SIZE_BYTES) as usize))
            .collect();
        let guest = GuestRam::from_ranges(&mapped).map_err(|error| MemoryError::Map(memory, error))?;
        let ram = Self { guest: Arc::new(guest), ranges };
        if let Err(error) = ram.advise(libc::MADV_HUGEPAGE) {
            tracing::info!("guest memory is in small pages: {error}");
        }
        Ok(ram)
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
        self.advise(libc::MADV_DONTNEED).map_err(MemoryError::Clear)?;
        for region in self.guest.iter() {
            region.bitmap().mark_dirty(0, region.len() as usize);
        }
        Ok(())
    }

    /// Gives pages back to the kernel: they are not here any more.
    pub(super) fn drop_pages(&self, pages: PageRange) -> io::Result<()> {
        // SAFETY: the pages are this process's own private mapping, as `part` has checked; no guest runs yet.
        unsafe { advice::drop_one(&self.part(pages)?) }
    }

    /// The same for all of these, but what long runs hold is freed later, from `aside`.
    pub(super) fn drop_all_soon(&self, pages: &PageBitmap, aside: &Aside) -> io::Result<()> {
        for range in &self.ranges {
            let parts: Vec<iovec> =
                pages.runs(*range).map(|run| self.part(run)).collect::<io::Result<_>>()?;
            let (long, mut left): (Vec<_>, Vec<_>) =
                parts.into_iter().partition(|part| Aside::is_worth(part.iov_len));
            // SAFETY: as above; a range is one mapping, and its runs come in order.
            let taken = unsafe { aside.take(&long) };
            left.extend_from_slice(&long[taken..]);
            // SAFETY: as above.
            unsafe { advice::drop_all(&left) }?;
        }
        Ok(())
    }

    /// Where a run of pages is mapped.
    fn part(&self, pages: PageRange) -> io::Result<iovec> {
        let slice = self.slice(pages).map_err(io::Error::other)?;
        Ok(iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
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

    /// A run of pages, which must lie within one range.
    fn slice(&self, pages: PageRange) -> Result<VolatileSlice<'_, BS<'_, AtomicBitmap>>, MachineError> {
        let address = pages.start.0.checked_mul(PAGE_SIZE_BYTES).map(GuestAddress);
        let bytes = pages.pages.checked_mul(PAGE_SIZE_BYTES).and_then(|bytes| usize::try_from(bytes).ok());
        let slice = address.zip(bytes).and_then(|(address, bytes)| self.guest.get_slice(address, bytes).ok());
        slice.ok_or_else(|| MachineError {
            step: "accessing guest memory".into(),
            reason: format!("{} pages from {:#x} on are not all RAM", pages.pages, pages.start.0),
        })
    }

    /// Gives advice on all of RAM.
    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        for region in self.guest.iter() {
            // SAFETY: the region is this process's own private mapping; at worst it reads as zeros afterwards.
            if unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl GuestMemory for Ram {
    fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
        let slice = self.slice(pages)?;
        // SAFETY: the mapping lives as long as `self`, its length was checked, and any bytes are valid. The guest may write
        // them meanwhile, beside Rust's memory model: what is read may be torn, and nothing is concluded from it that must
        // be true.
        Ok(unsafe { std::slice::from_raw_parts(slice.ptr_guard().as_ptr(), slice.len()) })
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        self.slice(PageRange { start: first, pages: whole_pages(from.len())? })?.copy_from(from);
        Ok(())
    }

    fn receive(&self, pages: PageRange, done: usize, mut from: BorrowedFd<'_>) -> io::Result<usize> {
        let slice = self.slice(pages).map_err(io::Error::other)?;
        let mut rest = slice.offset(done).map_err(io::Error::other)?;
        from.read_volatile(&mut rest).map_err(|error| match error {
            VolatileMemoryError::IOError(error) => error,
            other => io::Error::other(other),
        })
    }

    /// Before a guest has run here, only pages that the VMM has written can be other than zero.
    fn zero(&self, first: Gfn, pages: u64) -> Result<(), MachineError> {
        let slice = self.slice(PageRange { start: first, pages })?;
        for page in 0..pages as usize {
            let at = page * PAGE_BYTES;
            if slice.bitmap().dirty_at(at) {
                // Within the slice, whose length was checked.
                slice.subslice(at, PAGE_BYTES).expect("the page is in the run").copy_from(&[0u8; PAGE_BYTES]);
            }
        }
        Ok(())
    }

    fn prepare(&self, pages: PageRange) {
        let Ok(slice) = self.slice(pages) else { return };
        // SAFETY: the pages are this process's own private mapping, and their contents stay as they are.
        let populated = unsafe {
            libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_POPULATE_WRITE)
        };
        if populated != 0 {
            // Older kernels cannot (before Linux 5.14), and memory may be short: the pages are touched when they are written.
            tracing::debug!("guest memory is not made ready ahead: {}", io::Error::last_os_error());
        }
    }
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;
    use std::os::fd::AsFd;

    use vm_memory::Bytes as _;

    use super::*;

    const PAGE: usize = PAGE_BYTES;

    fn run(start: u64, pages: u64) -> PageRange {
        PageRange { start: Gfn(start), pages }
    }

    /// Resident memory of the mappings, by the kernel's own account, in KiB.
    fn allocated_kib(ram: &Ram) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", ram.slots()[0].host_address);
        let mapping = &smaps[smaps.find(&format!("\n{start}")).unwrap()..];
        let line = mapping.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn pages_written_by_a_migration_are_what_devices_read_and_the_other_way_round() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(5), &[7; PAGE]).unwrap();
        assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(5 * PAGE as u64 + 9)).unwrap(), 7);
        ram.guest().write_obj(0xabu8, GuestAddress(6 * PAGE as u64)).unwrap();
        let pages = ram.bytes(run(5, 2)).unwrap();
        assert_eq!((pages[PAGE - 1], pages[PAGE], pages[PAGE + 1]), (7, 0xab, 0));
    }

    #[test]
    fn reading_and_zeroing_untouched_memory_allocates_nothing() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        assert!(ram.bytes(run(0, 4096)).unwrap().iter().all(|byte| *byte == 0));
        ram.zero(Gfn(0), 4096).unwrap();
        assert_eq!(allocated_kib(&ram), 0);
        ram.write(Gfn(3), &[1; PAGE]).unwrap();
        assert!(allocated_kib(&ram) >= 4);
    }

    #[test]
    fn a_zeroed_page_reads_as_zeros_whatever_it_held_and_its_neighbours_stay() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(10), &[9; 3 * PAGE]).unwrap();
        ram.zero(Gfn(11), 1).unwrap();
        let pages = ram.bytes(run(10, 3)).unwrap();
        assert!(pages[..PAGE].iter().all(|byte| *byte == 9));
        assert!(pages[PAGE..2 * PAGE].iter().all(|byte| *byte == 0));
        assert!(pages[2 * PAGE..].iter().all(|byte| *byte == 9));
        assert_eq!(ram.guest().read_obj::<u8>(GuestAddress(11 * PAGE as u64)).unwrap(), 0);
    }

    #[test]
    fn prepared_memory_is_there_and_reads_as_before() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        ram.write(Gfn(700), &[5; PAGE]).unwrap();
        ram.prepare(run(512, 1024));
        assert!(allocated_kib(&ram) >= 4096);
        assert_eq!(ram.bytes(run(700, 1)).unwrap(), [5; PAGE]);
        assert!(ram.bytes(run(701, 1)).unwrap().iter().all(|byte| *byte == 0));
        ram.prepare(run(u64::MAX, 2));
    }

    #[test]
    fn what_is_read_from_a_connection_lies_in_its_place_and_can_be_zeroed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let there = listener.accept().unwrap().0;
        here.write_all(&[8; PAGE + 100]).unwrap();
        drop(here);
        let (ram, mut done) = (Ram::new(Bytes::mib(16)).unwrap(), 10);
        while let count @ 1.. = ram.receive(run(7, 2), done, there.as_fd()).unwrap() {
            done += count;
        }
        assert_eq!(done, PAGE + 110);
        let came = [vec![0; 10], vec![8; PAGE + 100], vec![0; PAGE - 110]].concat();
        assert_eq!(ram.bytes(run(7, 2)).unwrap(), came);
        ram.zero(Gfn(7), 2).unwrap();
        assert!(ram.bytes(run(7, 2)).unwrap().iter().all(|byte| *byte == 0));
        assert!(ram.receive(run(7, 2), 2 * PAGE + 1, there.as_fd()).is_err());
        assert!(ram.receive(run(4095, 2), 0, there.as_fd()).is_err());
    }

    #[test]
    fn accesses_outside_ram_are_refused() {
        let ram = Ram::new(Bytes::mib(16)).unwrap();
        let pages = Bytes::mib(16).pages();
        for (first, count) in [(pages, 1), (pages - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2)] {
            assert!(ram.bytes(run(first, count as u64)).is_err(), "{first:#x}+{count}");
            assert!(ram.write(Gfn(first), &vec![0; count * PAGE]).is_err(), "{first:#x}+{count}");
            assert!(ram.zero(Gfn(first), count as u64).is_err(), "{first:#x}+{count}");
        }
        assert!(ram.zero(Gfn(1), u64::MAX).is_err());
        assert!(ram.write(Gfn(0), &[0; 100]).is_err());
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
        assert_eq!(allocated_kib(&ram), 0);
        let mut dirty = PageBitmap::new(4096);
        ram.harvest_own_writes(&mut dirty);
        assert_eq!(dirty.len(), 4096);
    }
}
