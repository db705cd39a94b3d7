//! virtio-balloon: the guest gives pages back, and the host frees them.
//!
//! A page given back reads as zeros from then on, which is a change of guest memory like any other: it is marked, so
//! that a migration under way sends the zeros.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use godwit_types::units::{Bytes, PAGE_SIZE_BYTES};
use prost::Message;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Chain, DriverFault, Interrupts, Io, Progress, Source, VirtioDevice, copy_config};
use crate::memory::GuestRam;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Number of queues.
pub const QUEUES: usize = 2;
const QUEUE_SIZES: [u16; QUEUES] = [128, 128];
/// The guest may take pages back when it would run out of memory otherwise. The bindings do not have it.
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Page numbers read from a chain at once.
const PAGES_PER_READ: usize = 256;
/// Chains between two looks at whether to stop.
const CHAINS_PER_TURN: usize = 1;
/// Most page numbers in one chain.
const CHAIN_PAGES_MAX: usize = 64 << 10;

/// The device.
pub struct Balloon {
    interrupts: Arc<Interrupts>,
    ram_pages: u32,
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
    /// An empty balloon.
    pub fn new(ram: &GuestRam, interrupts: &Arc<Interrupts>) -> Self {
        let bytes: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
        Self {
            interrupts: Arc::clone(interrupts),
            ram_pages: u32::try_from(bytes / PAGE_SIZE_BYTES).unwrap_or(u32::MAX),
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
        FEATURE_DEFLATE_ON_OOM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
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
            Source::Queue(INFLATE) => io.serve_queue(INFLATE, CHAINS_PER_TURN, |chain| inflate(ram, chain)),
            // The guest touches the pages that it takes back, and the host's kernel then provides them.
            _ => io.serve_queue(DEFLATE, CHAINS_PER_TURN, |_| Ok(0)),
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

/// Frees the pages whose numbers the chain lists, neighbours in one go.
fn inflate(ram: &GuestRam, mut chain: Chain<'_>) -> Result<u32, DriverFault> {
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
                free(ram, &run);
                run = page..page + 1;
            }
        }
    }
    free(ram, &run);
    Ok(0)
}

/// Gives the pages of `run` back to the host. Those outside RAM are ignored: the guest harms only itself.
fn free(ram: &GuestRam, run: &std::ops::Range<u64>) {
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
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::devices::virtio::Function;
    use crate::devices::virtio::test_driver::*;
    use vm_memory::FileOffset;

    const LIST: u64 = BUFFERS;

    fn file_backed() -> Machine {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM_BYTES as u64).unwrap();
        let range = (GuestAddress(0), RAM_BYTES, Some(FileOffset::new(file, 0)));
        Machine::with_ram(Arc::new(GuestRam::from_ranges_with_files([range]).unwrap()))
    }

    fn started(machine: &Machine) -> (Plugged<Balloon>, Driver) {
        let balloon = |interrupts: &_| Balloon::new(&machine.environment.ram, interrupts);
        let function = Function::new(8, &machine.environment, balloon, QUEUES).unwrap();
        let plugged = Plugged { function };
        let mut driver = Driver::new(machine, &plugged);
        driver.start(0);
        (plugged, driver)
    }

    fn give(driver: &mut Driver, pages: &[u32]) {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        driver.put(LIST, &list);
        let head = driver.submit(INFLATE, &[(LIST, list.len() as u32, 0)]);
        assert_eq!(driver.answer(INFLATE), (head, 0));
    }

    #[test]
    fn pages_given_back_read_as_zeros_and_are_marked_as_written() {
        for machine in [Machine::empty(), file_backed()] {
            let (_plugged, mut driver) = started(&machine);
            let pages = [0x300u32, 0x301, 0x302, 0x2ff, 0x500];
            for page in 0x2fe..=0x503u64 {
                driver.put(page * 4096, &[0x55; 4096]);
            }
            let region = machine.ram().iter().next().unwrap();
            (**region).bitmap().reset();
            give(&mut driver, &pages);
            for page in 0x2fe..=0x503u64 {
                let given = pages.contains(&(page as u32));
                let dirty = region.bitmap().dirty_at(page as usize * 4096);
                let zero = driver.get(page * 4096, 4096).iter().all(|byte| *byte == 0);
                assert_eq!((dirty, zero), (given, given), "page {page:#x}");
            }
        }
    }

    #[test]
    fn pages_outside_ram_are_ignored() {
        let machine = file_backed();
        let (_plugged, mut driver) = started(&machine);
        driver.put(RAM_BYTES as u64 - 4096, &[1; 4096]);
        let last = (RAM_BYTES / 4096) as u32 - 1;
        give(&mut driver, &[u32::MAX, u32::MAX - 1, last + 1, last, 0xf_ffff]);
        assert_eq!(driver.get(RAM_BYTES as u64 - 4096, 4096), [0; 4096]);
    }

    #[test]
    fn the_guest_learns_the_target_and_tells_its_size_and_both_move_along() {
        let machine = Machine::empty();
        let (plugged, driver) = started(&machine);
        plugged.function.device().set_target(Bytes::mib(4));
        machine.messages.wait_for(0x100);
        assert_eq!(driver.read_u32(0x2000), 1024);
        driver.write(0x2004, &1000u32.to_le_bytes());
        assert_eq!(plugged.function.device().size(), Bytes(1000 * 4096));
        let next = Machine::with_ram(Arc::clone(&machine.environment.ram));
        let (there, _) = started(&next);
        there.function.reset();
        migrate(&plugged, &there);
        assert_eq!(there.function.device().size(), Bytes(1000 * 4096));
        assert_eq!(driver.moved_to(&next, &there).read_u32(0x2000), 1024);
        there.function.device().set_target(Bytes::mib(1 << 30));
        assert_eq!(driver.moved_to(&next, &there).read_u32(0x2000), (RAM_BYTES / 4096) as u32);
    }
}
