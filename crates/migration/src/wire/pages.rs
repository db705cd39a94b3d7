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

use godwit_types::Gfn;

use super::error::WireError;
use crate::machine::PageRange;

/// Most runs in one record.
pub const RUNS_MAX: usize = 1024;
/// Most pages whose contents follow one record: 1 MiB.
pub const RAW_PAGES_MAX: u64 = 256;
/// Length of an encoded run, in bytes.
const RUN_BYTES: usize = 16;
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

/// The pages that one record names, on both sides. The contents of the raw ones follow the frame, in the order of the runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRecord {
    pub round: u32,
    /// Pages named by all runs.
    pub pages: u64,
    /// Those of them whose contents follow.
    pub raw_pages: u64,
    pub runs: Vec<Run>,
}

impl PageRecord {
    /// Begins a record without pages; the memory of the last one is used again.
    pub fn begin(&mut self, round: u32) {
        self.runs.clear();
        (self.round, self.pages, self.raw_pages) = (round, 0, 0);
    }

    /// Adds a page, to the last run if it continues that one.
    pub fn push(&mut self, gfn: Gfn, kind: PageKind) {
        match self.runs.last_mut() {
            Some(Run { range, kind: same })
                if *same == kind
                    && range.start.0 + range.pages == gfn.0
                    && range.pages < u64::from(u32::MAX) =>
            {
                range.pages += 1;
            }
            _ => self.runs.push(Run { range: PageRange { start: gfn, pages: 1 }, kind }),
        }
        self.count(1, kind);
    }

    /// The runs whose contents follow.
    pub fn raw(&self) -> impl Iterator<Item = PageRange> {
        self.runs.iter().filter(|run| run.kind == PageKind::Raw).map(|run| run.range)
    }

    /// Replaces what is in `payload`.
    pub fn encode_into(&self, payload: &mut Vec<u8>) {
        payload.clear();
        payload.extend_from_slice(&self.round.to_le_bytes());
        payload.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        for Run { range, kind } in &self.runs {
            payload.extend_from_slice(&range.start.0.to_le_bytes());
            payload.extend_from_slice(&(range.pages as u32).to_le_bytes());
            payload.extend_from_slice(&(*kind as u32).to_le_bytes());
        }
    }

    /// Takes the place of this record, within all limits. What it holds after an error is of no use.
    pub fn decode_into(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let (round, rest) = take_u32(payload)?;
        let (runs, table) = take_u32(rest)?;
        if runs as usize > RUNS_MAX || runs as usize * RUN_BYTES != table.len() {
            return Err(malformed("the run table does not fit"));
        }
        self.begin(round);
        for entry in table.chunks_exact(RUN_BYTES) {
            let run = run(entry)?;
            self.count(run.range.pages, run.kind);
            self.runs.push(run);
        }
        if self.raw_pages > RAW_PAGES_MAX {
            return Err(malformed(format!("{} pages of contents in one record", self.raw_pages)));
        }
        Ok(())
    }

    fn count(&mut self, pages: u64, kind: PageKind) {
        self.pages += pages;
        self.raw_pages += if kind == PageKind::Raw { pages } else { 0 };
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

    proptest! {
        #[test]
        fn a_record_gives_back_every_page_as_it_was_put_in(
            pages in prop::collection::btree_map(0u64..2000, any::<bool>(), 0..RAW_PAGES_MAX as usize),
            round: u32,
        ) {
            let mut sent = PageRecord::default();
            sent.begin(round);
            for (gfn, zero) in &pages {
                sent.push(Gfn(*gfn), if *zero { PageKind::Zero } else { PageKind::Raw });
            }
            let mut record = of_one_run(7, 1);
            record.decode_into(&encoded(&sent)).unwrap();
            prop_assert_eq!(&record, &sent);
            prop_assert_eq!((record.round, record.pages), (round, pages.len() as u64));
            prop_assert_eq!(record.raw_pages, pages.values().filter(|zero| !**zero).count() as u64);
            let back = record.runs.iter().flat_map(|run| {
                (run.range.start.0..run.range.start.0 + run.range.pages).map(|gfn| (gfn, run.kind == PageKind::Zero))
            });
            prop_assert_eq!(back.collect::<Vec<_>>(), pages.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_record_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut record = PageRecord::default();
            if record.decode_into(&bytes).is_ok() {
                prop_assert!(record.raw_pages <= RAW_PAGES_MAX);
            }
            let _ = RoundEnd::decode(&bytes);
        }

        #[test]
        fn a_round_end_survives_the_wire(round: u32, pages: u64) {
            let sent = RoundEnd { round, pages };
            prop_assert_eq!(RoundEnd::decode(&sent.encode()), Ok(sent));
        }
    }

    /// A record that says nothing of how many pages its one raw run has.
    fn of_one_run(start: u64, pages: u64) -> PageRecord {
        let range = PageRange { start: Gfn(start), pages };
        PageRecord { round: 1, runs: vec![Run { range, kind: PageKind::Raw }], ..Default::default() }
    }

    fn encoded(record: &PageRecord) -> Vec<u8> {
        let mut payload = vec![0xee; 3];
        record.encode_into(&mut payload);
        payload
    }

    #[test]
    fn a_record_that_promises_more_contents_than_the_limit_is_refused() {
        for (pages, fits) in [(RAW_PAGES_MAX, true), (RAW_PAGES_MAX + 1, false), (u64::from(u32::MAX), false)]
        {
            let payload = encoded(&of_one_run(5, pages));
            assert_eq!(PageRecord::default().decode_into(&payload).is_ok(), fits, "{pages} pages");
        }
    }

    #[test]
    fn a_table_that_is_cut_short_or_too_long_is_refused() {
        let whole = encoded(&of_one_run(5, 1));
        assert!(PageRecord::default().decode_into(&whole[..whole.len() - 1]).is_err());
        assert!(PageRecord::default().decode_into(&[&whole[..], &[0]].concat()).is_err());
    }
}
