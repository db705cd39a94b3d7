//! virtio-balloon: the guest gives pages back, and the host frees them.
//!
//! It gives them to the balloon when the host wants memory (inflate), and otherwise reports, a few seconds after it has
//! freed them, those that it has no use for. Reported pages stay the guest's, who may use them again at any time after
//! the answer; until then its driver keeps them from everybody.
//!
//! A page given back reads as zeros from then on, which is a change of guest memory like any other: it is marked, so
//! that a migration under way sends the zeros.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use godwit_types::units::{Bytes, PAGE_SIZE_BYTES};
use prost::Message;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Buffer, Chain, DriverFault, Interrupts, Io, Progress, Source, VirtioDevice, copy_config};
use crate::memory::GuestRam;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Drivers disagree on which queue reports come in: the standard says the fifth, whatever else there is, and Linux has
/// long counted only those queues that are in use, which makes it the third. So it is any behind the first two.
const QUEUE_SIZES: [u16; 5] = [128; 5];
const QUEUES_WITHOUT_REPORTS: usize = 2;
/// The guest may take pages back when it would run out of memory otherwise. The bindings have neither feature.
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The guest reports free pages.
const FEATURE_REPORTING: u64 = 1 << 5;
/// Page numbers read from a chain at once.
const PAGES_PER_READ: usize = 256;
/// Chains between two looks at whether to stop.
const CHAINS_PER_TURN: usize = 1;
/// Most page numbers in one chain.
const CHAIN_PAGES_MAX: usize = 64 << 10;

/// The sizes of the device's queues.
pub const fn queues(reporting: bool) -> &'static [u16] {
    if reporting { &QUEUE_SIZES } else { QUEUE_SIZES.split_at(QUEUES_WITHOUT_REPORTS).0 }
}

/// The device.
pub struct Balloon {
    interrupts: Arc<Interrupts>,
    ram_pages: u32,
    /// Whether the guest may report free pages.
    reporting: bool,
    /// Whether memory is still on its way here, once any was.
    awaited: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    /// Pages that the host wants.
    target: AtomicU32,
    /// Pages that the guest says it has given.
    actual: AtomicU32,
}

/// What of the device moves with the guest.
#[derive(Clone, PartialEq, Message)]
struct BalloonState {
    #[prost(uint32, tag = "1")]
    target: u32,
    #[prost(uint32, tag = "2")]
    actual: u32,
}

impl Balloon {
    /// An empty balloon, which takes reports of free pages if `reporting`.
    pub fn new(ram: &GuestRam, interrupts: &Arc<Interrupts>, reporting: bool) -> Self {
        let bytes: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
        Self {
            interrupts: Arc::clone(interrupts),
            ram_pages: u32::try_from(bytes / PAGE_SIZE_BYTES).unwrap_or(u32::MAX),
            reporting,
            awaited: OnceLock::new(),
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
        }
    }

    /// Asks the guest to give up `target` in all; more than its memory counts as all of it.
    pub fn set_target(&self, target: Bytes) {
        let pages = target.pages().min(self.ram_pages.into()) as u32;
        if self.target.swap(pages, Ordering::SeqCst) != pages {
            self.interrupts.config_changed();
        }
    }

    /// What the guest has given up.
    pub fn size(&self) -> Bytes {
        Bytes(u64::from(self.actual.load(Ordering::SeqCst).min(self.ram_pages)) * PAGE_SIZE_BYTES)
    }

    /// Leaves what the guest gives back as it is, as long as `awaited` says so. Once in the device's life: another call is
    /// ignored.
    pub fn free_nothing_while(&self, awaited: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.awaited.set(Box::new(awaited));
    }

    /// Gives the pages of `run` back to the host, if this is the time for it.
    fn free(&self, ram: &GuestRam, run: &Range<u64>) {
        if !self.awaited.get().is_some_and(|awaited| awaited()) {
            free(ram, run);
        }
    }

    fn read_config(&self) -> [u8; 8] {
        let (target, actual) = (self.target.load(Ordering::SeqCst), self.actual.load(Ordering::SeqCst));
        (u64::from(actual) << 32 | u64::from(target)).to_le_bytes()
    }
}

impl VirtioDevice for Balloon {
    const NAME: &'static str = "virtio-balloon";
    const ID: u32 = VIRTIO_ID_BALLOON;
    /// No class of its own.
    const CLASS: u32 = 0xFF_00_00;

    fn features(&self) -> u64 {
        FEATURE_DEFLATE_ON_OOM | if self.reporting { FEATURE_REPORTING } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        queues(self.reporting)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&Self::read_config(self), offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.actual.store(u32::from_le_bytes(actual), Ordering::SeqCst);
        }
    }

    fn process(&self, source: Source, io: &mut Io<'_>) -> Result<Progress, DriverFault> {
        let ram = io.ram;
        match source {
            Source::Queue(INFLATE) => {
                io.serve_queue(INFLATE, CHAINS_PER_TURN, |chain| self.inflate(ram, chain))
            }
            // The guest touches the pages that it takes back, and the host's kernel then provides them.
            Source::Queue(DEFLATE) => io.serve_queue(DEFLATE, CHAINS_PER_TURN, |_| Ok(0)),
            Source::Queue(queue) => io.serve_queue(queue, CHAINS_PER_TURN, |chain| {
                self.take_report(ram, &chain);
                Ok(0)
            }),
            Source::Watched(_) => Ok(Progress::Idle),
        }
    }

    fn reset(&self) {
        self.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> Vec<u8> {
        let (target, actual) = (self.target.load(Ordering::SeqCst), self.actual.load(Ordering::SeqCst));
        BalloonState { target, actual }.encode_to_vec()
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        let state =
            BalloonState::decode(state).map_err(|error| format!("the saved state is damaged: {error}"))?;
        if state.target > self.ram_pages {
            return Err(format!("the balloon's target of {} pages is more than all memory", state.target));
        }
        self.target.store(state.target, Ordering::SeqCst);
        self.actual.store(state.actual, Ordering::SeqCst);
        Ok(())
    }
}

impl Balloon {
    /// Frees the pages whose numbers the chain lists, neighbours in one go.
    fn inflate(&self, ram: &GuestRam, mut chain: Chain<'_>) -> Result<u32, DriverFault> {
        let mut left = chain.readable_bytes() / 4;
        if left > CHAIN_PAGES_MAX {
            return Err(DriverFault::Request("the balloon is given more pages at once than it takes"));
        }
        let mut run = 0..0;
        let mut bytes = [0; PAGES_PER_READ * 4];
        while left > 0 {
            let part = &mut bytes[..left.min(PAGES_PER_READ) * 4];
            chain.take(part)?;
            left -= part.len() / 4;
            for number in part.chunks_exact(4) {
                let page = u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]]));
                if page == run.end && !run.is_empty() {
                    run.end += 1;
                } else if page + 1 == run.start {
                    run.start = page;
                } else {
                    self.free(ram, &run);
                    run = page..page + 1;
                }
            }
        }
        self.free(ram, &run);
        Ok(0)
    }

    /// Frees the pages that the chain's buffers consist of. It is answered afterwards, so that nobody uses them yet.
    fn take_report(&self, ram: &GuestRam, chain: &Chain<'_>) {
        for buffer in &chain.writable {
            if let Some(run) = whole_pages(ram, buffer) {
                self.free(ram, &run);
            }
        }
    }
}

/// The numbers of the pages that lie in the buffer as a whole.
fn whole_pages(ram: &GuestRam, buffer: &Buffer<'_>) -> Option<Range<u64>> {
    let at = buffer.ptr_guard().as_ptr() as u64;
    let start = ram.iter().find_map(|region| {
        let offset = at.checked_sub(region.as_ptr() as u64).filter(|offset| *offset < region.len())?;
        Some(region.start_addr().0 + offset)
    })?;
    Some(start.div_ceil(PAGE_SIZE_BYTES)..(start + buffer.len() as u64) / PAGE_SIZE_BYTES)
}

/// Gives the pages of `run` back to the host. Those outside RAM are ignored: the guest harms only itself.
fn free(ram: &GuestRam, run: &Range<u64>) {
    for region in ram.iter() {
        let (first, last) = (region.start_addr().0, region.start_addr().0 + region.len());
        let start = (run.start * PAGE_SIZE_BYTES).max(first);
        let end = (run.end * PAGE_SIZE_BYTES).min(last);
        if start >= end {
            continue;
        }
        let length = (end - start) as usize;
        let Ok(slice) = GuestMemoryBackend::get_slice(ram, GuestAddress(start), length) else { continue };
        // Shared memory is freed in its file; private memory, in its mapping.
        let advice = if region.file_offset().is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the range is guest RAM that the slice keeps mapped, which nothing in this process borrows.
        let outcome = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), length, advice) };
        if outcome == 0 {
            slice.bitmap().mark_dirty(0, length);
        } else {
            let error = std::io::Error::last_os_error();
            tracing::debug!(start, length, %error, "pages given back stay allocated");
        }
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
