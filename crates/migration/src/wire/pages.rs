//! Page records: runs of pages of one round.
//!
//! ```text
//!  PAGES      round u32 | runs u32 | runs x { first frame u64 | pages u32 | kind u32 } | contents of the raw runs
//!  ROUND_END  round u32 | zeros u32 | pages sent on this stream so far u64
//! ```
//!
//! A page always travels on the same stream, and the rounds of a stream never go backwards, so that older contents
//! cannot overwrite newer ones.

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
    /// The contents follow as they are.
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

    /// Adds a page, to the last run if it continues that one.
    pub fn push(&mut self, gfn: Gfn, kind: PageKind) {
        let tail = self.bytes.len().saturating_sub(RUN_BYTES);
        let run = match self.last {
            Some(Run { range, kind: same })
                if same == kind
                    && range.start.0 + range.pages == gfn.0
                    && range.pages < u64::from(u32::MAX) =>
            {
                self.bytes.truncate(tail);
                Run { range: PageRange { pages: range.pages + 1, ..range }, kind }
            }
            _ => Run { range: PageRange { start: gfn, pages: 1 }, kind },
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

/// A received record, checked: its runs account for exactly its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRecord<'a> {
    pub round: u32,
    /// Pages named by all runs.
    pub pages: u64,
    table: &'a [u8],
    contents: &'a [u8],
}

impl<'a> PageRecord<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let (round, rest) = take_u32(payload)?;
        let (runs, rest) = take_u32(rest)?;
        let table_bytes = (runs as usize).min(RUNS_MAX + 1) * RUN_BYTES;
        if runs as usize > RUNS_MAX || table_bytes > rest.len() {
            return Err(malformed("the run table does not fit"));
        }
        let (table, contents) = rest.split_at(table_bytes);
        let mut record = Self { round, pages: 0, table, contents };
        let mut raw_pages = 0;
        for entry in table.chunks_exact(RUN_BYTES) {
            let run = run(entry)?;
            record.pages += run.range.pages;
            raw_pages += if run.kind == PageKind::Raw { run.range.pages } else { 0 };
        }
        if raw_pages * PAGE_SIZE_BYTES != contents.len() as u64 {
            return Err(malformed("the runs do not account for the contents"));
        }
        Ok(record)
    }

    /// The runs, each with its contents; those of a zero run are empty.
    pub fn runs(&self) -> impl Iterator<Item = (Run, &'a [u8])> {
        let mut contents = self.contents;
        self.table.chunks_exact(RUN_BYTES).map(move |entry| {
            let run = run(entry).expect("decode has checked every run");
            let pages = if run.kind == PageKind::Raw { run.range.pages } else { 0 };
            let (own, rest) = contents.split_at((pages * PAGE_SIZE_BYTES) as usize);
            contents = rest;
            (run, own)
        })
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
            pages in prop::collection::btree_map(0u64..2000, 0u8..4, 0..RUNS_MAX / 4),
            round: u32,
        ) {
            let mut table = RunTable::new();
            table.reset(round);
            let mut contents = Vec::new();
            for (gfn, fill) in &pages {
                table.push(Gfn(*gfn), if *fill == 0 { PageKind::Zero } else { PageKind::Raw });
                contents.extend(std::iter::repeat_n(*fill, if *fill == 0 { 0 } else { PAGE }));
            }
            let payload = [table.encode(), &contents].concat();
            let record = PageRecord::decode(&payload).unwrap();
            prop_assert_eq!((record.round, record.pages), (round, pages.len() as u64));
            let mut back = Vec::new();
            for (run, contents) in record.runs() {
                for index in 0..run.range.pages {
                    let fill = if run.kind == PageKind::Zero { 0 } else { contents[index as usize * PAGE] };
                    back.push((run.range.start.0 + index, fill));
                }
            }
            prop_assert_eq!(back, pages.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_record_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(record) = PageRecord::decode(&bytes) {
                record.runs().for_each(drop);
            }
            let _ = RoundEnd::decode(&bytes);
        }

        #[test]
        fn a_round_end_survives_the_wire(round: u32, pages: u64) {
            let sent = RoundEnd { round, pages };
            prop_assert_eq!(RoundEnd::decode(&sent.encode()), Ok(sent));
        }
    }

    #[test]
    fn runs_that_claim_more_or_less_than_the_contents_are_refused() {
        let mut table = RunTable::new();
        table.reset(1);
        table.push(Gfn(5), PageKind::Raw);
        for bytes in [0, PAGE - 1, PAGE + 1, 2 * PAGE] {
            let payload = [table.encode(), &vec![1; bytes]].concat();
            assert!(PageRecord::decode(&payload).is_err(), "{bytes} bytes were accepted for one page");
        }
    }
}
