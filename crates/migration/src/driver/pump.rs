//! One page stream's sending side: drops zeros, frames the rest, and sends it from where it lies in guest memory, or from
//! a copy of what lies on a disk.

mod disks;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender};

use godwit_types::{ApiError, Gfn, PAGE_SIZE_BYTES};

use super::contents::{Contents, Guest, Pages};
use super::flow::{Flow, Stopped};
use super::kept_there::KeptThere;
use super::link::LinkError;
use super::outflow::Outflow;
use super::outgoing::Event;
use super::rest::Rest;
use crate::bitmap::PageBitmap;
use crate::failure::{self, Link};
use crate::machine::{GuestMemory, MachineError, PageRange, Source, is_zero};
use crate::source::Input;
use crate::wire::{PIECE_PAGES, PageKind, PageRecord, RAW_PAGES_MAX, RUNS_MAX, RoundEnd, Tag};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// A record names at most this many pages, so that acknowledgements keep coming where all is zero.
const RECORD_PAGES_MAX: u64 = 16 << 10;
/// A paced stream sends records that take about this part of a second.
const PACED_RECORDS_PER_S: f64 = 20.0;

/// What a pump is to send.
pub(super) enum Job {
    /// Its part of these pages; whether the guest stands.
    Round { round: u32, pages: Arc<PageBitmap>, stands: bool },
    /// Whatever is left, together with the other streams, as this round. It has no end: the receiver knows what it needs.
    Rest { round: u32, rest: Arc<Rest> },
}

/// See the module.
pub(super) struct Pump {
    line: Line,
    count: u32,
    machine: Arc<dyn Source>,
    /// What the destination has kept, until the first round.
    kept: Option<KeptThere>,
    record: PageRecord,
    contents: Contents,
    /// Of a record of a disk: copies of its pages that are not zero.
    copies: Vec<u8>,
    /// What was last read of a disk, and where there is anything to read; kept to use their memory again.
    chunk: Vec<u8>,
    data: Vec<PageRange>,
    /// The record as it is sent; kept to use its memory again.
    payload: Vec<u8>,
    /// How many pages with contents the record may have.
    raw_pages_max: u64,
    sent_pages: u64,
}

/// The connection with its window and its pace.
struct Line {
    index: u32,
    writer: Outflow,
    flow: Arc<Flow>,
    sent_bytes: u64,
}

enum PumpError {
    Stopped,
    Link(LinkError),
    Machine(MachineError),
}

impl From<MachineError> for PumpError {
    fn from(error: MachineError) -> Self {
        Self::Machine(error)
    }
}

impl Pump {
    /// Stream `index` of `count`, whose handshake is done.
    pub(super) fn new(
        (index, count): (u32, u32),
        writer: Outflow,
        (machine, kept): (Arc<dyn Source>, Option<KeptThere>),
        flow: Arc<Flow>,
    ) -> Self {
        Self {
            line: Line { index, writer, flow, sent_bytes: 0 },
            count,
            machine,
            kept,
            record: PageRecord::default(),
            contents: Contents::new(count),
            copies: Vec::new(),
            chunk: Vec::new(),
            data: Vec::new(),
            payload: Vec::new(),
            raw_pages_max: RAW_PAGES_MAX,
            sent_pages: 0,
        }
    }

    /// Sends rounds until there are no more, or one fails. `peer` is who the pages go to.
    pub(super) fn run(mut self, jobs: &Receiver<Job>, events: &SyncSender<Event>, session: u32, peer: &str) {
        for job in jobs {
            let (result, round) = match &job {
                Job::Round { round, pages, stands } => (self.round(*round, pages, *stands), *round),
                Job::Rest { round, rest } => (self.rest(*round, rest), *round),
            };
            drop(job);
            let input = match result {
                Ok(()) => Input::RoundSent { stream: self.line.index, round },
                Err(PumpError::Stopped) => return,
                Err(error) => {
                    Input::Lost { link: Link::Pages(self.line.index), error: self.describe(error, peer) }
                }
            };
            let failed = matches!(input, Input::Lost { .. });
            // The engine may have gone; then there is nobody left to tell.
            if events.send(Event::Input(session, input)).is_err() || failed {
                return;
            }
        }
    }

    fn describe(&self, error: PumpError, peer: &str) -> ApiError {
        match error {
            PumpError::Machine(error) => failure::machine(&error),
            PumpError::Link(error) => error.describe(peer, Link::Pages(self.line.index)),
            PumpError::Stopped => failure::cancelled(),
        }
    }

    fn round(&mut self, round: u32, pages: &PageBitmap, stands: bool) -> Result<(), PumpError> {
        let (machine, guest) = (Arc::clone(&self.machine), if stands { Guest::Stands } else { Guest::Runs });
        let memory = machine.memory();
        self.begin(round, guest);
        if let Some(disks) = machine.disks() {
            self.disks(&*disks, pages, guest)?;
        }
        let mut kept = self.kept.take();
        for range in memory.ranges() {
            for shard in shards(*range, self.line.index, self.count) {
                kept.as_mut().map_or(Ok(()), |kept| kept.turn_to(shard)).map_err(PumpError::Link)?;
                for run in pages.runs(shard) {
                    self.pages(memory, run, guest, kept.as_ref())?;
                }
            }
        }
        self.flush(Some(memory), guest)?;
        let end = RoundEnd { round, pages: self.sent_pages }.encode();
        self.line.transmit((Tag::RoundEnd, guest), &end, &[])
    }

    /// Pages of the guest that stands go to any stream, since their contents do not change.
    fn rest(&mut self, round: u32, rest: &Rest) -> Result<(), PumpError> {
        let machine = Arc::clone(&self.machine);
        self.begin(round, Guest::HasLeft);
        while let Some(run) = rest.take(self.raw_pages_max) {
            self.pages(machine.memory(), run, Guest::HasLeft, None)?;
        }
        self.flush(Some(machine.memory()), Guest::HasLeft)
    }

    /// Begins a record. A paced stream sends small ones, so that its pace is even.
    fn begin(&mut self, round: u32, guest: Guest) {
        let rate = self.line.flow.pace.bytes_per_s().filter(|_| guest != Guest::Stands);
        let paced =
            |rate: u64| (rate as f64 / f64::from(self.count) / PACED_RECORDS_PER_S) as u64 / PAGE_SIZE_BYTES;
        self.raw_pages_max = rate.map_or(RAW_PAGES_MAX, paced).clamp(1, RAW_PAGES_MAX);
        self.record.begin(round);
    }

    /// Adds the pages of a run, each as what it holds.
    fn pages(
        &mut self,
        memory: &dyn GuestMemory,
        run: PageRange,
        guest: Guest,
        kept: Option<&KeptThere>,
    ) -> Result<(), PumpError> {
        let bytes = memory.bytes(run)?;
        for (gfn, page) in (run.start.0..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            if self.is_full() {
                self.flush(Some(memory), guest)?;
            }
            let kind = match (kind(page), kept) {
                (PageKind::Raw, Some(kept)) if kept.has(Gfn(gfn), page) => PageKind::Reused,
                (kind, _) => kind,
            };
            self.record.push(Gfn(gfn), kind);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        // Deltas cut the runs of pages with contents into pieces, at worst into pages.
        const RUNS: usize = RUNS_MAX - RAW_PAGES_MAX as usize;
        let PageRecord { pages, raw_pages, runs, .. } = &self.record;
        *pages == RECORD_PAGES_MAX || *raw_pages == self.raw_pages_max || runs.len() == RUNS
    }

    /// Sends the record, if it names any page, of memory or else of a disk, and begins the next of the same round.
    fn flush(&mut self, memory: Option<&dyn GuestMemory>, guest: Guest) -> Result<(), PumpError> {
        let Self { record, contents, copies, line, payload, raw_pages_max, .. } = self;
        if record.pages > 0 {
            self.sent_pages += record.pages;
            let pages = memory.map_or(Pages::Copied(copies), Pages::Memory);
            contents.send(record, (pages, guest), *raw_pages_max, |record, contents| {
                line.flow.count(record);
                record.encode_into(payload);
                line.transmit((Tag::Pages, guest), payload, contents)
            })?;
        }
        self.copies.clear();
        self.begin(self.record.round, guest);
        Ok(())
    }
}

impl Line {
    /// A guest that stands is held up by nothing that somebody has chosen.
    fn transmit(
        &mut self,
        (tag, guest): (Tag, Guest),
        payload: &[u8],
        contents: &[&[u8]],
    ) -> Result<(), PumpError> {
        self.flow.wait_for_window(self.index, self.sent_bytes).map_err(|Stopped| PumpError::Stopped)?;
        let took = self.writer.frame(tag, payload, contents).map_err(PumpError::Link)?;
        self.sent_bytes += took.frame;
        self.flow.page_stream_bytes.fetch_add(took.frame, Relaxed);
        self.flow.other_bytes.fetch_add(took.sealing, Relaxed);
        if guest == Guest::Stands {
            return Ok(());
        }
        self.flow.wait_for_pace(took.frame + took.sealing).map_err(|Stopped| PumpError::Stopped)
    }
}

/// The pieces of a range that go to stream `index` of `count`.
pub(super) fn shards(range: PageRange, index: u32, count: u32) -> impl Iterator<Item = PageRange> {
    let end = range.start.0 + range.pages;
    let mut next = range.start.0;
    std::iter::from_fn(move || {
        while next < end {
            let start = next;
            next = ((start / PIECE_PAGES + 1) * PIECE_PAGES).min(end);
            if start / PIECE_PAGES % u64::from(count) == u64::from(index) {
                return Some(PageRange { start: Gfn(start), pages: next - start });
            }
        }
        None
    })
}

/// How a page is sent.
pub(super) fn kind(page: &[u8]) -> PageKind {
    if is_zero(page) { PageKind::Zero } else { PageKind::Raw }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_page_goes_to_exactly_one_stream_and_always_to_the_same(
            start in 0u64..5000,
            pages in 1u64..9000,
            count in 1u32..5,
        ) {
            let range = PageRange { start: Gfn(start), pages };
            let mut seen: Vec<u64> = Vec::new();
            for index in 0..count {
                for shard in shards(range, index, count) {
                    seen.extend(shard.start.0..shard.start.0 + shard.pages);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (start..start + pages).collect::<Vec<_>>());
        }

        #[test]
        fn one_byte_makes_a_page_not_zero(at in 0usize..PAGE_BYTES, byte in 1u8..) {
            let mut page = vec![0; PAGE_BYTES];
            prop_assert!(is_zero(&page));
            page[at] = byte;
            prop_assert!(!is_zero(&page));
        }
    }
}
