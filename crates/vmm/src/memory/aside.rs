//! Pages that are taken out of memory at once, and freed later.
//!
//! ```text
//!   guest memory   [ page tables ][ page tables ][ page tables ]
//!                         |  moved, 2 MiB with each entry; the mapping stays, empty
//!                         v
//!   aside          [ page tables ] --------> freed, piece by piece, when nobody waits
//! ```
//!
//! Freeing a page takes the kernel a tenth of a microsecond or more, which for a gigabyte is a long blackout; moving its
//! page table takes as long for 2 MiB as for one page.

use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::iovec;

/// What one entry of a page directory maps.
const DIRECTORY_BYTES: usize = 2 << 20;

/// See the module. What is left is freed when it is dropped.
#[derive(Default)]
pub(super) struct Aside(Mutex<Vec<Mapping>>);

/// Whole pages that nobody uses, and address space behind them that holds nothing.
struct Mapping {
    start: usize,
    bytes: usize,
    empty: usize,
}

impl Aside {
    /// Whether so many bytes are worth it.
    pub(super) const fn is_worth(bytes: usize) -> bool {
        bytes >= DIRECTORY_BYTES
    }

    /// Moves what runs of pages hold aside, one after the other, to where they lie as they did: so one place is enough for all. Who
    /// touches them from now on finds none. Returns how many were moved, which are not all if the kernel refuses one.
    ///
    /// # Safety
    ///
    /// They are whole pages of one private anonymous mapping, in order, and nobody needs their contents any more.
    pub(super) unsafe fn take(&self, runs: &[iovec]) -> usize {
        let Some((first, last)) = runs.first().zip(runs.last()) else { return 0 };
        let start = first.iov_base as usize;
        let Some(place) = Mapping::reserve(start % DIRECTORY_BYTES, end(last) - start) else { return 0 };
        let there = |address: usize| place.start + (address - start);
        let place_end = place.start + place.bytes + place.empty;
        let mut mappings = self.mappings();
        for (number, run) in runs.iter().enumerate() {
            let (to, behind) = (there(run.iov_base as usize), there(end(run)));
            // SAFETY: the caller has vouched for the pages, and the place that they go to is this call's own.
            if !unsafe { moved(run, to) } {
                // The kernel may have cleared the place before it failed, and somebody else may have it by now: it is left alone.
                // It holds no memory.
                Mapping { start: behind, bytes: place_end - behind, empty: 0 }.free(usize::MAX);
                return number;
            }
            let next = runs.get(number + 1).map_or(place_end, |next| there(next.iov_base as usize));
            mappings.push(Mapping { start: to, bytes: run.iov_len, empty: next - behind });
        }
        runs.len()
    }

    /// Frees so many bytes, or what there is.
    pub(super) fn free(&self, mut bytes: usize) {
        let mut mappings = self.mappings();
        while let Some(last) = mappings.last_mut().filter(|_| bytes > 0) {
            bytes -= last.free(bytes);
            if last.bytes == 0 {
                mappings.pop();
            }
        }
    }

    /// How many bytes wait to be freed.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.mappings().iter().map(|mapping| mapping.bytes).sum()
    }

    fn mappings(&self) -> MutexGuard<'_, Vec<Mapping>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.free(usize::MAX);
    }
}

impl Mapping {
    /// A place for so many bytes that begins so far into what a page directory's entry maps.
    fn reserve(offset: usize, bytes: usize) -> Option<Self> {
        let all = bytes + DIRECTORY_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return None;
        }
        let reserved = reserved as usize;
        let before = (DIRECTORY_BYTES + offset - reserved % DIRECTORY_BYTES) % DIRECTORY_BYTES;
        Self { start: reserved, bytes: before, empty: 0 }.free(before);
        Some(Self { start: reserved + before, bytes, empty: DIRECTORY_BYTES - before })
    }

    /// Frees so many bytes from its end on, or all that there are; returns how many.
    fn free(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if bytes > 0 {
            let length = bytes + std::mem::take(&mut self.empty);
            // SAFETY: the mapping is this value's own, and nobody uses what is in it. It fails for bad arguments only.
            unsafe { libc::munmap((self.start + self.bytes) as *mut _, length) };
        }
        bytes
    }
}

/// Whether the kernel has moved what the run holds.
///
/// # Safety
///
/// As for [`Aside::take`]; nobody uses what is mapped there.
unsafe fn moved(run: &iovec, there: usize) -> bool {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: the caller has vouched for both places.
    unsafe {
        libc::mremap(run.iov_base, run.iov_len, run.iov_len, flags, there as *mut libc::c_void)
            != libc::MAP_FAILED
    }
}

fn end(run: &iovec) -> usize {
    run.iov_base as usize + run.iov_len
}
