//! A disk's pages: copied, since they lie nowhere in memory, and only where there is anything but zeros.

use std::ops::Range;

use godwit_types::Gfn;

use super::{PAGE_BYTES, Pump, PumpError, shards};
use crate::bitmap::PageBitmap;
use crate::disks::LeavingDisks;
use crate::driver::contents::Guest;
use crate::machine::{PageRange, is_zero};
use crate::wire::PageKind;

/// Pages that are read at a time: a guest that writes meanwhile waits for no more.
const CHUNK_PAGES: u64 = 64;

impl Pump {
    /// The disks' part of a round.
    pub(super) fn disks(
        &mut self,
        disks: &dyn LeavingDisks,
        pages: &PageBitmap,
        guest: Guest,
    ) -> Result<(), PumpError> {
        for disk in disks.ranges() {
            for shard in shards(disk.range, self.line.index, self.count) {
                for run in pages.runs(shard) {
                    self.disk_pages(disks, run, guest)?;
                }
            }
        }
        self.flush(None, guest)
    }

    /// Adds the pages of a run of a disk, of which only those are read that may hold anything.
    fn disk_pages(
        &mut self,
        disks: &dyn LeavingDisks,
        run: PageRange,
        guest: Guest,
    ) -> Result<(), PumpError> {
        let (mut data, mut chunk) = (std::mem::take(&mut self.data), std::mem::take(&mut self.chunk));
        data.clear();
        disks.data(run, &mut data)?;
        let mut next = run.start.0;
        for part in data.iter().flat_map(|data| data.parts(CHUNK_PAGES)) {
            self.disk_zeros(next..part.start.0, guest)?;
            chunk.resize(part.pages as usize * PAGE_BYTES, 0);
            disks.read(part.start, &mut chunk)?;
            for (gfn, page) in part.gfns().zip(chunk.chunks_exact(PAGE_BYTES)) {
                self.disk_page(gfn, Some(page).filter(|page| !is_zero(page)), guest)?;
            }
            next = part.end();
        }
        (self.data, self.chunk) = (data, chunk);
        self.disk_zeros(next..run.end(), guest)
    }

    fn disk_zeros(&mut self, mut pages: Range<u64>, guest: Guest) -> Result<(), PumpError> {
        pages.try_for_each(|gfn| self.disk_page(Gfn(gfn), None, guest))
    }

    /// Adds a page of a disk, whose contents are zeros if there are none.
    fn disk_page(&mut self, gfn: Gfn, contents: Option<&[u8]>, guest: Guest) -> Result<(), PumpError> {
        if self.is_full() {
            self.flush(None, guest)?;
        }
        self.record.push(gfn, if contents.is_some() { PageKind::Raw } else { PageKind::Zero });
        self.copies.extend_from_slice(contents.unwrap_or_default());
        Ok(())
    }
}
