//! A VM's memory where the VM is not: in a memory file that the host's agent holds on to.
//!
//! ```text
//!  the VM has left, or did not arrive    Ram::keep    guest memory --> file, given back to the kernel piece by piece
//!  the VM arrives                        KeptMemory   file --> what of it is still the same, given back likewise
//! ```
//!
//! What is in the file need not be whole, or of one moment: pages are used only where they turn out to be the same.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use godwit_migration::wire::DigestKey;
use godwit_migration::{GuestMemory, Kept, MachineError, PageRange, is_zero};
use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::Ram;

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// Guest memory is moved in pieces of this many pages, 8 MiB: so much is there twice for each thread.
const PIECE_PAGES: u64 = 2048;

/// See the module.
#[derive(Debug)]
pub struct KeptMemory {
    file: File,
    ranges: Vec<PageRange>,
    key: DigestKey,
}

impl KeptMemory {
    /// What a file holds of RAM that lies at `ranges`; nothing if it is empty.
    pub fn open(file: File, ranges: &[PageRange]) -> io::Result<Option<Self>> {
        if file.metadata()?.blocks() == 0 {
            return Ok(None);
        }
        let mut key = DigestKey::default();
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Some(Self { file, ranges: ranges.to_vec(), key }))
    }

    fn offset(&self, first: Gfn, pages: u64) -> io::Result<u64> {
        offset(&self.ranges, PageRange { start: first, pages })
    }
}

impl Kept for KeptMemory {
    fn key(&self) -> DigestKey {
        self.key
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        let offset = self.offset(first, (into.len() / PAGE_BYTES) as u64);
        let read = offset.and_then(|offset| self.file.read_exact_at(into, offset));
        read.map_err(|error| MachineError { step: "reading kept memory".into(), reason: error.to_string() })
    }

    fn forget(&self, pages: PageRange) {
        let punched = self.offset(pages.start, pages.pages).and_then(|offset| {
            let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let bytes = (pages.pages * PAGE_SIZE_BYTES) as libc::off_t;
            // SAFETY: the call takes numbers, and the file is open.
            match unsafe { libc::fallocate(self.file.as_raw_fd(), flags, offset as libc::off_t, bytes) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        if let Err(error) = punched {
            tracing::debug!("kept memory is given back later: {error}");
        }
    }
}

impl Ram {
    /// Moves all of memory into `file`, with so many threads, until `stop` says that it is enough. Nothing may write it any
    /// more: what was moved reads as zeros afterwards.
    pub fn keep(&self, file: &File, threads: usize, stop: impl Fn() -> bool + Sync) -> io::Result<()> {
        let pieces: Vec<PageRange> =
            self.ranges().iter().flat_map(|range| range.parts(PIECE_PAGES)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(piece) = pieces.get(next.fetch_add(1, Relaxed)).filter(|_| !stop()) {
                self.keep_piece(file, *piece)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let more: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mine = work();
            more.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).fold(mine, io::Result::and)
        })
    }

    fn keep_piece(&self, file: &File, piece: PageRange) -> io::Result<()> {
        let bytes = self.bytes(piece).map_err(io::Error::other)?;
        let start = offset(self.ranges(), piece)?;
        let write = |run: Range<usize>| file.write_all_at(&bytes[run.clone()], start + run.start as u64);
        let mut run = 0..0;
        for (index, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let at = index * PAGE_BYTES;
            if is_zero(page) {
                continue;
            }
            if run.end != at {
                write(std::mem::replace(&mut run, at..at))?;
            }
            run.end += PAGE_BYTES;
        }
        write(run)?;
        self.drop_pages(piece)
    }
}

/// Where pages of RAM lie in the file: the ranges one after the other.
fn offset(ranges: &[PageRange], pages: PageRange) -> io::Result<u64> {
    let mut before = 0;
    for range in ranges {
        if let Some(within) = pages.start.0.checked_sub(range.start.0)
            && within.checked_add(pages.pages).is_some_and(|end| end <= range.pages)
        {
            return Ok((before + within) * PAGE_SIZE_BYTES);
        }
        before += range.pages;
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "these pages are not all RAM"))
}

#[cfg(test)]
mod tests {
    use godwit_types::Bytes;

    use super::*;

    const PAGE: usize = PAGE_BYTES;

    fn file(memory: Bytes) -> File {
        File::from(godwit_provision::memory_file(memory).unwrap())
    }

    fn page(kept: &KeptMemory, gfn: u64) -> u8 {
        let mut page = [0xff; PAGE];
        kept.read(Gfn(gfn), &mut page).unwrap();
        assert!(page.iter().all(|byte| *byte == page[0]), "page {gfn}");
        page[0]
    }

    #[test]
    fn memory_that_is_kept_is_moved_and_zeros_take_nothing() {
        let memory = Bytes::mib(64);
        let (ram, file) = (Ram::new(memory).unwrap(), file(memory));
        for (gfn, byte) in [(0, 1), (1, 2), (5000, 3), (16383, 4)] {
            ram.write(Gfn(gfn), &[byte; PAGE]).unwrap();
        }
        ram.keep(&file, 3, || false).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, 4 * PAGE_SIZE_BYTES);
        assert!(ram.bytes(PageRange { start: Gfn(0), pages: 2 }).unwrap().iter().all(|byte| *byte == 0));
        let kept = KeptMemory::open(file.try_clone().unwrap(), ram.ranges()).unwrap().unwrap();
        let bytes: Vec<u8> = [0, 1, 2, 5000, 16383].iter().map(|gfn| page(&kept, *gfn)).collect();
        assert_eq!(bytes, [1, 2, 0, 3, 4]);
        kept.forget(PageRange { start: Gfn(1), pages: 5000 });
        assert_eq!((page(&kept, 0), page(&kept, 1), page(&kept, 5000)), (1, 0, 0));
        assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * PAGE_SIZE_BYTES);
        assert!(kept.read(Gfn(16383), &mut [0; 2 * PAGE]).is_err());
    }

    #[test]
    fn memory_above_4_gib_follows_the_memory_below_without_a_gap() {
        let ranges = [PageRange { start: Gfn(0), pages: 100 }, PageRange { start: Gfn(1 << 20), pages: 50 }];
        let at = |start, pages| offset(&ranges, PageRange { start: Gfn(start), pages }).ok();
        assert_eq!(at((1 << 20) + 7, 43), Some(107 * PAGE_SIZE_BYTES));
        assert_eq!([at(99, 2), at(100, 1), at((1 << 20) + 7, 44), at(u64::MAX, 1)], [None; 4]);
    }

    #[test]
    fn an_order_to_stop_leaves_what_was_moved_and_an_empty_file_is_nothing_kept() {
        let memory = Bytes::mib(64);
        let (ram, file) = (Ram::new(memory).unwrap(), file(memory));
        ram.write(Gfn(0), &[1; PAGE]).unwrap();
        ram.keep(&file, 2, || true).unwrap();
        assert!(KeptMemory::open(file, ram.ranges()).unwrap().is_none());
    }
}
