//! Guest memory as devices see it.

use vm_memory::bitmap::AtomicBitmap;

/// Guest RAM on a memfd. Every write through it marks its pages in the bitmap of the VMM's own writes.
pub type GuestRam = vm_memory::GuestMemoryMmap<AtomicBitmap>;
