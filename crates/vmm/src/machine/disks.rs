//! The disks that move with the VM, as the engine sees them: pages above RAM.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{ArrivingDisks, DiskRange, LeavingDisks, MachineError, PageRange, lay_out};
use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use crate::devices::disk::Disk;
use crate::devices::virtio::block::BlockFunction;

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// With so many bytes unflushed whoever writes flushes first, so that disks arrive as fast as they become durable, and no
/// flush takes long: 64 MiB.
const UNFLUSHED_MAX: u64 = 64 << 20;

/// Which disks move, and where they lie.
struct Layout {
    ranges: Vec<DiskRange>,
    /// One for each range.
    disks: Vec<BlockFunction>,
}

impl Layout {
    /// Of the disks with these numbers; an error names one that there is not, or that its guest may only read.
    fn new(all: &[BlockFunction], moving: &BTreeSet<u32>, ram: &[PageRange]) -> Result<Self, MachineError> {
        let disk = |index: &u32| {
            let found = all.get(*index as usize).filter(|block| !block.device().disk().read_only());
            found.cloned().ok_or_else(|| MachineError {
                step: "choosing the disks that move".into(),
                reason: format!("the VM has no disk {index} that its guest can write"),
            })
        };
        let disks: Vec<BlockFunction> = moving.iter().map(disk).collect::<Result<_, _>>()?;
        let sizes = disks.iter().map(|block| block.device().disk().bytes());
        let ranges = lay_out(ram, moving.iter().copied().zip(sizes));
        Ok(Self { ranges, disks })
    }

    /// The disk that all of these pages are of, and the offset of the first in it.
    fn place(&self, pages: PageRange) -> Result<(&Disk, u64), MachineError> {
        let fits = |disk: &DiskRange| disk.range.contains(pages.start) && pages.end() <= disk.range.end();
        let index = self.ranges.iter().position(fits).ok_or_else(|| MachineError {
            step: "reaching a disk that moves".into(),
            reason: format!("{} pages from {:#x} on are not all of one disk", pages.pages, pages.start.0),
        })?;
        let offset = (pages.start.0 - self.ranges[index].range.start.0) * PAGE_SIZE_BYTES;
        Ok((self.disks[index].device().disk(), offset))
    }

    fn each(&self) -> impl Iterator<Item = (PageRange, &Disk)> {
        self.ranges.iter().map(|disk| disk.range).zip(self.disks.iter().map(|block| block.device().disk()))
    }
}

/// Those that leave.
pub(super) struct Leaving(Layout);

impl Leaving {
    pub(super) fn new(
        all: &[BlockFunction],
        moving: &BTreeSet<u32>,
        ram: &[PageRange],
    ) -> Result<Self, MachineError> {
        Layout::new(all, moving, ram).map(Self)
    }

    /// Notes what the guest writes from now on.
    pub(super) fn start_log(&self) {
        self.0.each().for_each(|(_, disk)| disk.written().start(disk.bytes()));
    }

    pub(super) fn stop_log(&self) {
        self.0.each().for_each(|(_, disk)| disk.written().stop());
    }

    /// Adds the pages that the guest has written since the last call.
    pub(super) fn harvest(&self, dirty: &mut PageBitmap) {
        for (range, disk) in self.0.each() {
            disk.written().harvest(|run| {
                dirty.insert_range(PageRange { start: Gfn(range.start.0 + run.start.0), ..run })
            });
        }
    }
}

impl LeavingDisks for Leaving {
    fn ranges(&self) -> &[DiskRange] {
        &self.0.ranges
    }

    fn data(&self, within: PageRange, found: &mut Vec<PageRange>) -> Result<(), MachineError> {
        let (disk, offset) = self.0.place(within)?;
        let bytes = (within.pages * PAGE_SIZE_BYTES).min(disk.bytes() - offset);
        let mut next = within.start.0;
        let looked = disk.with_image(|image| {
            image.data(offset, bytes, |data| {
                // What begins or ends within a page counts as all of it, and no page counts twice.
                let page = |at: u64| within.start.0 + (at - offset) / PAGE_SIZE_BYTES;
                let (start, end) = (page(data.start).max(next), page(data.end - 1) + 1);
                if start < end {
                    found.push(PageRange { start: Gfn(start), pages: end - start });
                    next = end;
                }
            })
        });
        looked.map_err(failed("looking for what a disk holds"))
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        let (disk, offset) = self.0.place(pages(first, into.len()))?;
        let (held, behind) = into.split_at_mut((disk.bytes() - offset).min(into.len() as u64) as usize);
        behind.fill(0);
        disk.with_image(|image| image.read_bytes(held, offset)).map_err(failed("reading a disk that moves"))
    }
}

/// Those that arrive.
pub(super) struct Arriving {
    layout: Layout,
    /// Pages that hold something: all others of a new image are zeros, and take no space.
    filled: Mutex<PageBitmap>,
    /// Bytes that were written since the last flush began.
    unflushed: AtomicU64,
    /// Held by whoever flushes: another's flush ends behind one that is under way.
    flushing: Mutex<()>,
    /// The kernel tells of a flush that has failed once, and the next may seem to succeed.
    failed: Mutex<Option<MachineError>>,
}

impl Arriving {
    /// Opens the images for what will arrive.
    pub(super) fn new(
        all: &[BlockFunction],
        moving: &BTreeSet<u32>,
        ram: &[PageRange],
    ) -> Result<Self, MachineError> {
        let layout = Layout::new(all, moving, ram)?;
        for (_, disk) in layout.each() {
            disk.await_contents().map_err(|error| super::step("opening a disk that arrives", &error))?;
        }
        let ranges: Vec<PageRange> = layout.ranges.iter().map(|disk| disk.range).collect();
        let filled = Mutex::new(PageBitmap::covering(&ranges));
        Ok(Self {
            layout,
            filled,
            unflushed: AtomicU64::new(0),
            flushing: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    fn wrote(&self, bytes: u64) -> Result<(), MachineError> {
        let unflushed = self.unflushed.fetch_add(bytes, SeqCst) + bytes;
        if unflushed < UNFLUSHED_MAX { Ok(()) } else { self.flush_from(UNFLUSHED_MAX) }
    }

    /// Flushes, if at least so many bytes are unflushed.
    fn flush_from(&self, bytes: u64) -> Result<(), MachineError> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        if self.unflushed.load(SeqCst) < bytes {
            return Ok(());
        }
        // Before the flush: what is written meanwhile is left to the next.
        self.unflushed.store(0, SeqCst);
        let flushed = self.layout.each().try_for_each(|(_, disk)| disk.flush_contents());
        flushed.map_err(|error| {
            let error = failed("making a disk durable that arrives")(error);
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error).clone()
        })
    }

    fn check(&self) -> Result<(), MachineError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    fn filled(&self) -> std::sync::MutexGuard<'_, PageBitmap> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArrivingDisks for Arriving {
    fn ranges(&self) -> &[DiskRange] {
        &self.layout.ranges
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        self.check()?;
        let pages = pages(first, from.len());
        let (disk, offset) = self.layout.place(pages)?;
        self.filled().insert_range(pages);
        let written = disk.fill(offset, from);
        let flushed = self.wrote(from.len() as u64);
        written.map_err(failed("writing to a disk that arrives")).and(flushed)
    }

    fn zero(&self, pages: PageRange) -> Result<(), MachineError> {
        self.check()?;
        let (disk, offset) = self.layout.place(pages)?;
        let filled: Vec<PageRange> = self.filled().runs(pages).collect();
        for run in filled {
            let at = offset + (run.start.0 - pages.start.0) * PAGE_SIZE_BYTES;
            let zeroed = disk.unfill(at, run.pages * PAGE_SIZE_BYTES);
            let flushed = self.wrote(run.pages * PAGE_SIZE_BYTES);
            zeroed.map_err(failed("clearing a part of a disk that arrives")).and(flushed)?;
            let mut filled = self.filled();
            for page in run.gfns() {
                filled.remove(page);
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), MachineError> {
        self.flush_from(1)
    }
}

fn pages(first: Gfn, bytes: usize) -> PageRange {
    PageRange { start: first, pages: bytes.div_ceil(PAGE_BYTES) as u64 }
}

fn failed(step: &str) -> impl Fn(io::Error) -> MachineError {
    let step = step.to_owned();
    move |error| MachineError { step: step.clone(), reason: error.to_string() }
}
