//! Disks that move with their VM: to the engine, pages beyond RAM.
//!
//! ```text
//!   page numbers:   | RAM ...          |   | disk 0 ...    |   | disk 2 ...        |
//!                     first behind the disks in each round      only those that move
//! ```
//!
//! They go in the same rounds over the same streams as memory, under one budget, so that memory comes to rest together with
//! them. Unlike memory they are copied before they are sent, are never sent as deltas, and are never reused or left to follow.

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use crate::machine::{MachineError, PageRange};

/// Disks lie at multiples of so many pages, whole pieces and whole words of a page set.
const ALIGN_PAGES: u64 = 1 << 16;

/// Where a disk lies among the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskRange {
    /// Which of the VM's disks it is, from 0.
    pub index: u32,
    /// Pages of the disk as the guest sees it; the last may be cut short by its end.
    pub range: PageRange,
}

/// Where disks lie that have these numbers and sizes in bytes, above the RAM that lies at `ram`.
pub fn lay_out(ram: &[PageRange], disks: impl IntoIterator<Item = (u32, u64)>) -> Vec<DiskRange> {
    let mut next = ram.iter().map(|range| range.end()).max().unwrap_or(0);
    let place = |(index, bytes): (u32, u64)| {
        let start = next.next_multiple_of(ALIGN_PAGES);
        let range = PageRange { start: Gfn(start), pages: bytes.div_ceil(PAGE_SIZE_BYTES) };
        next = range.end();
        DiskRange { index, range }
    };
    disks.into_iter().map(place).collect()
}

/// The disks of a VM that runs here and leaves with them. Every call may come from any thread, beside the guest's own writes.
pub trait LeavingDisks: Send + Sync {
    /// Ascending, without overlap, none of it RAM.
    fn ranges(&self) -> &[DiskRange];

    /// Gives `found` the runs of `within`, which lies on one disk, that may hold anything but zeros, ascending. A page that is
    /// written afterwards is in the dirty log.
    fn data(&self, within: PageRange, found: &mut Vec<PageRange>) -> Result<(), MachineError>;

    /// Copies whole pages, all of one disk, as they are now; what is behind the disk's end reads as zeros. A page that is
    /// written afterwards is in the dirty log.
    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError>;
}

/// The new disks of a VM that arrives with them. Every call may come from any thread.
pub trait ArrivingDisks: Send + Sync {
    /// As [`LeavingDisks::ranges`].
    fn ranges(&self) -> &[DiskRange];

    /// Writes whole pages, all on one disk; what is behind its end is left out.
    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError>;

    /// Makes pages of one disk read as zeros; takes no space where they were never written.
    fn zero(&self, pages: PageRange) -> Result<(), MachineError>;

    /// Makes durable what was written so far, while others write on. It has failed for good once it has failed.
    fn flush(&self) -> Result<(), MachineError>;
}

/// Whether a page is of one of these disks.
pub(crate) fn holds(disks: &[DiskRange], page: Gfn) -> bool {
    disks.iter().any(|disk| disk.range.contains(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_lie_above_ram_apart_from_each_other_and_hold_all_their_bytes() {
        let ram = [PageRange { start: Gfn(0), pages: 100 }, PageRange { start: Gfn(1 << 20), pages: 5 }];
        let disks = lay_out(&ram, [(0, 1 << 40), (3, PAGE_SIZE_BYTES + 512)]);
        assert_eq!(
            disks.iter().map(|disk| (disk.index, disk.range.pages)).collect::<Vec<_>>(),
            [(0, 1 << 28), (3, 2)]
        );
        let mut end = ram[1].end();
        for DiskRange { range, .. } in &disks {
            assert!(range.start.0 >= end && range.start.0.is_multiple_of(ALIGN_PAGES), "{disks:?}");
            end = range.end();
        }
        assert!(holds(&disks, disks[1].range.start) && !holds(&disks, Gfn(end)) && !holds(&disks, Gfn(7)));
    }
}
