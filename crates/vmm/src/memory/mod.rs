//! Guest memory, seen by devices as [`GuestRam`] and by a migration page by page as [`Ram`].

mod absent;
pub(crate) mod advice;
mod aside;
mod kept;
pub mod layout;
mod ram;
pub(crate) mod uffd;

use vm_memory::bitmap::AtomicBitmap;

pub use absent::{AbsentRam, Userfault};
pub use kept::KeptMemory;
pub(crate) use ram::insert_words;
pub use ram::{MemoryError, Ram, Slot};

/// Guest RAM. Every write through it marks its pages in the bitmap of the VMM's own writes.
pub type GuestRam = vm_memory::GuestMemoryMmap<AtomicBitmap>;
