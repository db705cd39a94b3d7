//! Errors that the workloads find: how many, and the first in words.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::say;
use crate::text::Text;

const FIRST_BYTES_MAX: usize = 256;

/// Errors of the memory workload.
pub static MEMORY: Faults = Faults::new();
/// Errors of the disk workload.
pub static DISK: Faults = Faults::new();

/// Errors of one kind, from any vCPU.
pub struct Faults {
    count: AtomicU64,
    state: AtomicU8,
    first: UnsafeCell<Text<FIRST_BYTES_MAX>>,
}

const NONE: u8 = 0;
const WRITING: u8 = 1;
const WRITTEN: u8 = 2;

// SAFETY: `first` is written by the one who moves `state` from NONE, and read by others only after WRITTEN.
unsafe impl Sync for Faults {}

impl Faults {
    const fn new() -> Self {
        Self { count: AtomicU64::new(0), state: AtomicU8::new(NONE), first: UnsafeCell::new(Text::new()) }
    }

    /// Counts an error; the first also goes to the console.
    pub fn add(&self, error: fmt::Arguments<'_>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.state.compare_exchange(NONE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: nobody else comes here, and nobody reads before WRITTEN.
        let text = unsafe { &mut *self.first.get() };
        // Text that is too long is cut.
        let _ = text.write_fmt(error);
        self.state.store(WRITTEN, Ordering::Release);
        say!("ERROR: {error}");
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn first(&self) -> Option<&str> {
        let written = self.state.load(Ordering::Acquire) == WRITTEN;
        // SAFETY: after WRITTEN the text does not change.
        written.then(|| unsafe { &*self.first.get() }.as_str())
    }
}
