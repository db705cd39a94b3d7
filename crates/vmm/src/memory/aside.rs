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

use std::io;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What one entry of a page directory maps.
const DIRECTORY_BYTES: usize = 2 << 20;

/// See the module. What is left is freed when it is dropped.
#[derive(Default)]
pub(super) struct Aside(Mutex<Vec<Mapping>>);

/// Whole pages that nobody uses.
struct Mapping {
    start: usize,
    bytes: usize,
}

impl Aside {
    /// Whether so many bytes are worth it.
    pub(super) const fn is_worth(bytes: usize) -> bool {
        bytes >= DIRECTORY_BYTES
    }

    /// Moves the pages aside. Who touches them from now on finds none.
    ///
    /// # Safety
    ///
    /// They are whole pages of a private anonymous mapping, and nobody needs their contents any more.
    pub(super) unsafe fn take(&self, start: *mut u8, bytes: usize) -> io::Result<()> {
        let to = Mapping::reserve(start as usize % DIRECTORY_BYTES, bytes)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        // SAFETY: the caller has vouched for the pages, and the place that they go to is this call's own.
        let moved = unsafe { libc::mremap(start.cast(), bytes, bytes, flags, to.start) };
        if moved == libc::MAP_FAILED {
            // The kernel may have cleared the place before it failed, and somebody else may have it by now: it is left alone.
            // It holds no memory.
            return Err(io::Error::last_os_error());
        }
        self.mappings().push(to);
        Ok(())
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
    fn reserve(offset: usize, bytes: usize) -> io::Result<Self> {
        let all = bytes + DIRECTORY_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reserved = reserved as usize;
        let before = (DIRECTORY_BYTES + offset - reserved % DIRECTORY_BYTES) % DIRECTORY_BYTES;
        let start = reserved + before;
        Self { start: reserved, bytes: before }.free(before);
        let after = DIRECTORY_BYTES - before;
        Self { start: start + bytes, bytes: after }.free(after);
        Ok(Self { start, bytes })
    }

    /// Frees so many bytes from its end on, or all that there are; returns how many.
    fn free(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if bytes > 0 {
            // SAFETY: the mapping is this value's own, and nobody uses what is in it. It fails for bad arguments only.
            unsafe { libc::munmap((self.start + self.bytes) as *mut _, bytes) };
        }
        bytes
    }
}
