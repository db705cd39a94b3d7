//! What this host has kept of the VM, at the destination: offered to the source, and used where nothing has changed.
//!
//! ```text
//!  thread:  kept memory, piece by piece --> DIGESTS --> source      at most so far ahead of the pages that have come
//!  sink:    reused pages of the first round: kept memory --> guest memory;  all of its pages: kept no longer
//! ```
//!
//! Kept memory is only ever copied from, so that guest memory is as fresh as without it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use godwit_types::PAGE_SIZE_BYTES;

use super::outflow::Outflow;
use super::places::Places;
use super::pump::shards;
use super::seal::Seal;
use super::sink::SinkError;
use crate::machine::{Destination, Kept, MachineError, PageRange, is_zero};
use crate::wire::{
    DigestKey, Digester, Digests, PIECE_PAGES, PIECES_AHEAD_MAX, PageKind, PageRecord, Tag, WireError,
};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// Pages that are looked at, or copied, at a time: what stays in the processor's cache.
const CHUNK_PAGES: u64 = 64;
/// How far digests may be ahead of the pages that have come, in pages.
const AHEAD_PAGES_MAX: u64 = PIECES_AHEAD_MAX as u64 * PIECE_PAGES;

/// See the module. One for each page stream.
pub(super) struct Offer {
    machine: Arc<dyn Destination>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    came_pages: u64,
    ended: bool,
}

impl Offer {
    /// Nothing if nothing is kept.
    pub(super) fn of(machine: &Arc<dyn Destination>) -> Option<Self> {
        machine.kept()?;
        Some(Self { machine: Arc::clone(machine), progress: Mutex::default(), changed: Condvar::new() })
    }

    /// What the digests are made with; none if nothing is kept any more.
    pub(super) fn key(&self) -> Option<DigestKey> {
        self.machine.kept().map(Kept::key)
    }

    /// Sends the digests of all that goes over stream `index` of `count`, until that is done or the sink has ended.
    pub(super) fn send(&self, (index, count): (u32, u32), mut writer: Outflow) {
        let Some(kept) = self.machine.kept() else { return };
        let (digester, mut chunk, mut offered) = (Digester::new(&kept.key()), Vec::new(), 0);
        for piece in self.machine.memory().ranges().iter().flat_map(|range| shards(*range, index, count)) {
            if !self.may_offer(offered) {
                return;
            }
            let digests = digests(kept, &digester, piece, &mut chunk).unwrap_or_else(|error| {
                tracing::warn!("kept memory is of no use: {error}");
                Digests::new(piece.start)
            });
            // The sink sees it, too, if the connection has broken.
            if writer.frame(Tag::Digests, &digests.encode(), &[]).is_err() {
                return;
            }
            offered += piece.pages;
        }
    }

    /// Puts the reused pages of a record of the first round in their places, and gives back what was kept of all its pages.
    pub(super) fn take(
        &self,
        record: &PageRecord,
        seal: &Seal,
        chunk: &mut Vec<u8>,
    ) -> Result<(), SinkError> {
        let Some(kept) = self.machine.kept() else { return refuse(record) };
        for run in record.of_kind(|kind| kind == PageKind::Reused) {
            for part in run.parts(CHUNK_PAGES) {
                read(kept, part, chunk).map_err(SinkError::Machine)?;
                seal.write(Places { memory: self.machine.memory(), disks: None }, part.start, chunk)?;
            }
        }
        forget(kept, record);
        self.lock().came_pages += record.pages;
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until the pages that have come are near enough; false if no more come.
    fn may_offer(&self, offered: u64) -> bool {
        let far = |progress: &mut Progress| {
            !progress.ended && offered >= progress.came_pages.saturating_add(AHEAD_PAGES_MAX)
        };
        let progress = self.changed.wait_while(self.lock(), far).unwrap_or_else(PoisonError::into_inner);
        !progress.ended
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a record of pages that cannot be reused: nothing was offered, or no longer is.
pub(super) fn refuse(record: &PageRecord) -> Result<(), SinkError> {
    if record.reused_pages == 0 {
        return Ok(());
    }
    Err(WireError::malformed("page record", "pages that were not offered to be reused").into())
}

fn digests(
    kept: &dyn Kept,
    digester: &Digester,
    piece: PageRange,
    chunk: &mut Vec<u8>,
) -> Result<Digests, MachineError> {
    let mut digests = Digests::new(piece.start);
    for part in piece.parts(CHUNK_PAGES) {
        read(kept, part, chunk)?;
        for (gfn, page) in part.gfns().zip(chunk.chunks_exact(PAGE_BYTES)).filter(|(_, page)| !is_zero(page))
        {
            digests.push(gfn, digester.digest(page));
        }
    }
    Ok(digests)
}

fn read(kept: &dyn Kept, pages: PageRange, chunk: &mut Vec<u8>) -> Result<(), MachineError> {
    chunk.resize((pages.pages * PAGE_SIZE_BYTES) as usize, 0);
    kept.read(pages.start, chunk)
}

/// In as few pieces as can be: the runs of a record mostly touch.
fn forget(kept: &dyn Kept, record: &PageRecord) {
    let mut whole: Option<PageRange> = None;
    for run in &record.runs {
        whole = match whole {
            Some(before) if before.end() == run.range.start.0 => {
                Some(PageRange { pages: before.pages + run.range.pages, ..before })
            }
            before => {
                before.into_iter().for_each(|before| kept.forget(before));
                Some(run.range)
            }
        };
    }
    whole.into_iter().for_each(|whole| kept.forget(whole));
}

#[cfg(test)]
mod tests;
