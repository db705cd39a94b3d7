//! What of a record's pages goes on the wire: themselves from where they lie, or copies of them, packed.

use std::time::Instant;

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use crate::codec::chooser::Chooser;
use crate::codec::delta::SentPages;
use crate::codec::{Packer, Packing};
use crate::machine::{GuestMemory, MachineError};
use crate::wire::{PageKind, PageRecord};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// Pages of which copies are kept for deltas, over all streams: 32 MiB, part of what a VM's process may use beside its guest.
const KEPT_PAGES_MAX: usize = 8 << 10;
/// What a packing takes is learned from records of at least so many pages, or full ones: in smaller ones all is overhead.
const TELLING_PAGES: u64 = 64;

/// Where the guest is, whose pages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    Runs,
    /// There is no time to try anything.
    Stands,
    /// Its pages follow it: the destination has nothing that a delta could be to.
    HasLeft,
}

/// Where the contents of a record's pages are.
#[derive(Clone, Copy)]
pub(super) enum Pages<'a> {
    /// The guest may write them meanwhile.
    Memory(&'a dyn GuestMemory),
    /// Copies of all pages that have contents, one after the other. They are no page's of memory.
    Copied(&'a [u8]),
}

/// One stream's contents.
pub(super) struct Contents {
    chooser: Chooser,
    packer: Packer,
    kept: SentPages,
    /// Copies of the pages: the guest may write them while they are packed.
    plain: Vec<u8>,
    /// The record with what is sent of it as deltas.
    packed: PageRecord,
}

impl Contents {
    /// For one of `streams` streams.
    pub(super) fn new(streams: u32) -> Self {
        Self {
            chooser: Chooser::default(),
            packer: Packer::default(),
            kept: SentPages::new(KEPT_PAGES_MAX / streams as usize),
            plain: Vec::new(),
            packed: PageRecord::default(),
        }
    }

    /// Gives `send` the record as it goes on the wire, and the contents that follow it. Records have at most `pages_max`
    /// pages with contents now.
    pub(super) fn send<E: From<MachineError>>(
        &mut self,
        record: &mut PageRecord,
        (pages, guest): (Pages<'_>, Guest),
        pages_max: u64,
        send: impl FnOnce(&PageRecord, &[&[u8]]) -> Result<(), E>,
    ) -> Result<(), E> {
        let telling = record.raw_pages >= TELLING_PAGES.min(pages_max);
        let packing =
            if telling && guest != Guest::Stands { self.chooser.choose() } else { self.chooser.best() };
        let began = Instant::now();
        let plain = packing == Packing::None || record.raw_pages == 0;
        record.contents_bytes = record.raw_bytes() as u32;
        let packed_bytes = match pages {
            Pages::Memory(memory) if plain => {
                self.forget(record);
                let contents: Result<Vec<_>, _> = record.raw().map(|run| memory.bytes(run)).collect();
                send(record, &contents?)?;
                record.contents_bytes
            }
            Pages::Memory(memory) => {
                self.copy(record, memory, guest)?;
                let (codec, contents) = self.packer.pack(packing, &self.plain);
                (self.packed.codec, self.packed.contents_bytes) = (codec, contents.len() as u32);
                send(&self.packed, &[contents])?;
                self.packed.contents_bytes
            }
            Pages::Copied(copies) if plain => {
                send(record, &[copies])?;
                record.contents_bytes
            }
            Pages::Copied(copies) => {
                let (codec, contents) = self.packer.pack(packing, copies);
                (record.codec, record.contents_bytes) = (codec, contents.len() as u32);
                send(record, &[contents])?;
                record.contents_bytes
            }
        };
        if telling {
            self.chooser.learn(packing, record.raw_bytes(), packed_bytes.into(), began.elapsed());
        }
        Ok(())
    }

    /// Copies the record's pages, and makes deltas of those that are sent again.
    fn copy(
        &mut self,
        record: &PageRecord,
        memory: &dyn GuestMemory,
        guest: Guest,
    ) -> Result<(), MachineError> {
        // All pages are sent once, and most are not written again.
        let again = record.round > 1 && guest != Guest::HasLeft;
        self.plain.clear();
        self.packed.begin(record.round);
        for run in &record.runs {
            if !run.kind.has_contents() {
                self.packed.push_run(*run);
                run.range.gfns().for_each(|gfn| self.kept.forget(gfn));
                continue;
            }
            let start = self.plain.len();
            self.plain.extend_from_slice(memory.bytes(run.range)?);
            for (gfn, page) in run.range.gfns().zip(self.plain[start..].chunks_exact_mut(PAGE_BYTES)) {
                let delta = again && self.kept.send(gfn, page);
                self.packed.push(gfn, if delta { PageKind::Delta } else { PageKind::Raw });
            }
        }
        Ok(())
    }

    fn forget(&mut self, record: &PageRecord) {
        let pages = record.runs.iter().flat_map(|run| run.range.gfns());
        pages.for_each(|gfn: Gfn| self.kept.forget(gfn));
    }
}

#[cfg(test)]
mod tests;
