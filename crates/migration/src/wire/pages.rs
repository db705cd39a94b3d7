//! Page records: runs of pages of one round.
//!
//! ```text
//!  PAGES      round u32 | runs u32 | runs x { first frame u64 | pages u32 | kind u32 }
//!             after the frame: contents of the raw runs, in their order
//!  ROUND_END  round u32 | zeros u32 | pages sent on this stream so far u64
//! ```
//!
//! A page always travels on the same stream, and the rounds of a stream never go backwards, so that older contents
//! cannot overwrite newer ones. The frame's checksum covers the runs and not the contents, which are sent from where they
//! lie while the guest may write them: on an encrypted connection each record is authenticated, in clear they are only
//! as safe as TCP makes them.

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::error::WireError;
use crate::machine::PageRange;

/// Most runs in one record.
pub const RUNS_MAX: usize = 1024;
/// Most page contents in one record, in bytes.
pub const RAW_BYTES_MAX: usize = 1 << 20;
/// Length of an encoded run, in bytes.
pub const RUN_BYTES: usize = 16;
/// Length of the fields before the runs, in bytes.
const PREFIX_BYTES: usize = 8;
pub(super) const TABLE_BYTES_MAX: usize = PREFIX_BYTES + RUNS_MAX * RUN_BYTES;
pub(super) const ROUND_END_BYTES: usize = 16;

/// How the pages of a run are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageKind {
    /// All bytes are zero; nothing follows.
    Zero = 0,
    /// The contents follow the frame as they are.
    Raw = 1,
}

/// Consecutive pages that are sent the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub range: PageRange,
    pub kind: PageKind,
}

/// The part of a record before the page contents, as it is built up.
#[derive(Debug)]
pub struct RunTable {
    bytes: Vec<u8>,
    last: Option<Run>,
}

impl RunTable {
    /// An empty table with room for all runs.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(TABLE_BYTES_MAX), last: None }
    }

    /// Begins a record.
    pub fn reset(&mut self, round: u32) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&round.to_le_bytes());
        self.bytes.extend_from_slice(&0u32.to_le_bytes());
        self.last = None;
    }

    /// Adds pages, to the last run if they continue that one.
    pub fn push(&mut self, added: PageRange, kind: PageKind) {
        let tail = self.bytes.len().saturating_sub(RUN_BYTES);
        let run = match self.last {
            Some(Run { range, kind: same })
                if same == kind
                    && range.start.0 + range.pages == added.start.0
                    && range.pages + added.pages <= u64::from(u32::MAX) =>
            {
                self.bytes.truncate(tail);
                Run { range: PageRange { pages: range.pages + added.pages, ..range }, kind }
            }
            _ => Run { range: added, kind },
        };
        self.bytes.extend_from_slice(&run.range.start.0.to_le_bytes());
        self.bytes.extend_from_slice(&(run.range.pages as u32).to_le_bytes());
        self.bytes.extend_from_slice(&(kind as u32).to_le_bytes());
        self.last = Some(run);
    }

    /// How many more runs fit.
    pub fn runs_left(&self) -> usize {
        RUNS_MAX - self.runs()
    }

    pub fn is_empty(&self) -> bool {
        self.runs() == 0
    }

    /// The encoded table.
    pub fn encode(&mut self) -> &[u8] {
        let runs = self.runs() as u32;
        self.bytes[4..PREFIX_BYTES].copy_from_slice(&runs.to_le_bytes());
        &self.bytes
    }

    fn runs(&self) -> usize {
        self.bytes.len().saturating_sub(PREFIX_BYTES) / RUN_BYTES
    }
}

impl Default for RunTable {
    fn default() -> Self {
        Self::new()
    }
}

/// A received record, checked. Its contents follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRecord {
    pub round: u32,
    /// Pages named by all runs.
    pub pages: u64,
    /// Length of the contents of the raw runs, in bytes; at most [`RAW_BYTES_MAX`].
    pub raw_bytes: usize,
    pub runs: Vec<Run>,
}

impl PageRecord {
    /// Takes the place of this record; uses its memory again. What it holds after an error is of no use.
    pub fn decode_into(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let (round, rest) = take_u32(payload)?;
        let (runs, table) = take_u32(rest)?;
        if runs as usize > RUNS_MAX || runs as usize * RUN_BYTES != table.len() {
            return Err(malformed("the run table does not fit"));
        }
        self.runs.clear();
        (self.round, self.pages) = (round, 0);
        let mut raw_pages: u64 = 0;
        for entry in table.chunks_exact(RUN_BYTES) {
            let run = run(entry)?;
            self.pages += run.range.pages;
            raw_pages += if run.kind == PageKind::Raw { run.range.pages } else { 0 };
            self.runs.push(run);
        }
        if raw_pages > (RAW_BYTES_MAX as u64) / PAGE_SIZE_BYTES {
            return Err(malformed(format!("{raw_pages} pages of contents in one record")));
        }
        self.raw_bytes = (raw_pages * PAGE_SIZE_BYTES) as usize;
        Ok(())
    }
}

fn run(entry: &[u8]) -> Result<Run, WireError> {
    let (start, rest) = entry.split_first_chunk().ok_or_else(|| malformed("cut short"))?;
    let (pages, rest) = take_u32(rest)?;
    let (kind, _) = take_u32(rest)?;
    let kind = match kind {
        0 => PageKind::Zero,
        1 => PageKind::Raw,
        other => return Err(malformed(format!("unknown page kind {other}"))),
    };
    let range = PageRange { start: Gfn(u64::from_le_bytes(*start)), pages: u64::from(pages) };
    if pages == 0 || range.start.0.checked_add(range.pages).is_none() {
        return Err(malformed("an empty or endless run"));
    }
    Ok(Run { range, kind })
}

/// The end of a round on one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundEnd {
    pub round: u32,
    /// Pages sent on this stream in all rounds; the receiver must have counted the same.
    pub pages: u64,
}

impl RoundEnd {
    pub fn encode(self) -> [u8; ROUND_END_BYTES] {
        let mut bytes = [0; ROUND_END_BYTES];
        bytes[..4].copy_from_slice(&self.round.to_le_bytes());
        bytes[8..].copy_from_slice(&self.pages.to_le_bytes());
        bytes
    }

    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let (round, rest) = take_u32(payload)?;
        let (_, rest) = take_u32(rest)?;
        let pages = rest.try_into().map_err(|_| malformed("a round end of a wrong length"))?;
        Ok(Self { round, pages: u64::from_le_bytes(pages) })
    }
}

fn take_u32(bytes: &[u8]) -> Result<(u32, &[u8]), WireError> {
    let (number, rest) = bytes.split_first_chunk().ok_or_else(|| malformed("cut short"))?;
    Ok((u32::from_le_bytes(*number), rest))
}

fn malformed(reason: impl ToString) -> WireError {
    WireError::malformed("page record", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = PAGE_SIZE_BYTES as usize;

    proptest! {
        #[test]
        fn a_record_gives_back_every_page_as_it_was_put_in(
            pages in prop::collection::btree_map(0u64..2000, any::<bool>(), 0..RAW_BYTES_MAX / PAGE),
            round: u32,
        ) {
            let mut table = RunTable::new();
            table.reset(round);
            for (gfn, zero) in &pages {
                table.push(one(*gfn), if *zero { PageKind::Zero } else { PageKind::Raw });
            }
            let mut record = PageRecord { runs: vec![Run { range: one(7), kind: PageKind::Raw }], ..Default::default() };
            record.decode_into(table.encode()).unwrap();
            prop_assert_eq!((record.round, record.pages), (round, pages.len() as u64));
            prop_assert_eq!(record.raw_bytes, pages.values().filter(|zero| !**zero).count() * PAGE);
            let back = record.runs.iter().flat_map(|run| {
                (run.range.start.0..run.range.start.0 + run.range.pages).map(|gfn| (gfn, run.kind == PageKind::Zero))
            });
            prop_assert_eq!(back.collect::<Vec<_>>(), pages.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_record_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut record = PageRecord::default();
            if record.decode_into(&bytes).is_ok() {
                prop_assert!(record.raw_bytes <= RAW_BYTES_MAX);
            }
            let _ = RoundEnd::decode(&bytes);
        }

        #[test]
        fn a_round_end_survives_the_wire(round: u32, pages: u64) {
            let sent = RoundEnd { round, pages };
            prop_assert_eq!(RoundEnd::decode(&sent.encode()), Ok(sent));
        }
    }

    fn one(gfn: u64) -> PageRange {
        PageRange { start: Gfn(gfn), pages: 1 }
    }

    #[test]
    fn a_record_that_promises_more_contents_than_the_limit_is_refused() {
        let most = (RAW_BYTES_MAX / PAGE) as u64;
        for (pages, fits) in [(most, true), (most + 1, false), (u64::from(u32::MAX), false)] {
            let mut table = RunTable::new();
            table.reset(1);
            table.push(PageRange { start: Gfn(5), pages }, PageKind::Raw);
            assert_eq!(PageRecord::default().decode_into(table.encode()).is_ok(), fits, "{pages} pages");
        }
    }

    #[test]
    fn a_table_that_is_cut_short_or_too_long_is_refused() {
        let mut table = RunTable::new();
        table.reset(1);
        table.push(one(5), PageKind::Raw);
        let whole = table.encode().to_vec();
        assert!(PageRecord::default().decode_into(&whole[..whole.len() - 1]).is_err());
        assert!(PageRecord::default().decode_into(&[&whole[..], &[0]].concat()).is_err());
    }
}
