//! Page records: runs of pages of one round.
//!
//! ```text
//!  PAGES      round u32 | runs u32 | codec u32 | contents u32 | runs x { first frame u64 | pages u32 | kind u32 }
//!             after the frame: `contents` bytes, which the codec makes into the raw pages and deltas of the runs, in their order
//!  ROUND_END  round u32 | zeros u32 | pages sent on this stream so far u64
//! ```
//!
//! A page always travels on the same stream, and the rounds of a stream never go backwards, so that older contents
//! cannot overwrite newer ones, and a delta is always to what is there. The frame's checksum covers the runs and not the
//! contents, which may be sent from where they lie while the guest writes them: on an encrypted connection each record is
//! authenticated, in clear they are only as safe as TCP makes them.

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::error::WireError;
use crate::codec::Codec;
use crate::machine::PageRange;

/// Most runs in one record.
pub const RUNS_MAX: usize = 1024;
/// Most pages whose contents follow one record: 1 MiB.
pub const RAW_PAGES_MAX: u64 = 256;
/// Length of an encoded run, in bytes.
const RUN_BYTES: usize = 16;
/// Length of the fields before the runs, in bytes.
const PREFIX_BYTES: usize = 16;
pub(super) const TABLE_BYTES_MAX: usize = PREFIX_BYTES + RUNS_MAX * RUN_BYTES;
pub(super) const ROUND_END_BYTES: usize = 16;

/// How the pages of a run are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PageKind {
    /// All bytes are zero; nothing follows.
    Zero = 0,
    /// The contents follow.
    Raw = 1,
    /// The exclusive or of the contents with those that were sent last follows.
    Delta = 2,
    /// The destination has kept these contents, as its digests have shown; nothing follows.
    Reused = 3,
}

impl PageKind {
    /// Whether contents follow.
    pub const fn has_contents(self) -> bool {
        matches!(self, Self::Raw | Self::Delta)
    }
}

/// Consecutive pages that are sent the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub range: PageRange,
    pub kind: PageKind,
}

/// The pages that one record names, on both sides. The contents of those that have any follow the frame, in the order of the
/// runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRecord {
    pub round: u32,
    /// Pages named by all runs.
    pub pages: u64,
    /// Those of them whose contents follow, as they are or as deltas.
    pub raw_pages: u64,
    /// Those of these that are deltas.
    pub delta_pages: u64,
    /// Those that the destination has kept.
    pub reused_pages: u64,
    pub codec: Codec,
    /// Bytes that follow the frame.
    pub contents_bytes: u32,
    pub runs: Vec<Run>,
}

impl PageRecord {
    /// Begins a record without pages; the memory of the last one is used again.
    pub fn begin(&mut self, round: u32) {
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        *self = Self { round, runs, ..Self::default() };
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

    /// Adds a run as it is.
    pub fn push_run(&mut self, run: Run) {
        self.runs.push(run);
        self.count(run.range.pages, run.kind);
    }

    /// The runs whose contents follow.
    pub fn raw(&self) -> impl Iterator<Item = PageRange> {
        self.of_kind(PageKind::has_contents)
    }

    /// The runs whose kind is wanted.
    pub fn of_kind(&self, wanted: impl Fn(PageKind) -> bool) -> impl Iterator<Item = PageRange> {
        self.runs.iter().filter(move |run| wanted(run.kind)).map(|run| run.range)
    }

    /// The contents of all those pages, unpacked, in bytes.
    pub const fn raw_bytes(&self) -> u64 {
        self.raw_pages * PAGE_SIZE_BYTES
    }

    /// Replaces what is in `payload`.
    pub fn encode_into(&self, payload: &mut Vec<u8>) {
        payload.clear();
        payload.extend_from_slice(&self.round.to_le_bytes());
        payload.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        payload.extend_from_slice(&(self.codec as u32).to_le_bytes());
        payload.extend_from_slice(&self.contents_bytes.to_le_bytes());
        for Run { range, kind } in &self.runs {
            payload.extend_from_slice(&range.start.0.to_le_bytes());
            payload.extend_from_slice(&(range.pages as u32).to_le_bytes());
            payload.extend_from_slice(&(*kind as u32).to_le_bytes());
        }
    }

    /// Takes the place of this record, within all limits. What it holds after an error is of no use.
    pub fn decode_into(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let (round, rest) = take_u32(payload)?;
        let (runs, rest) = take_u32(rest)?;
        let (codec, rest) = take_u32(rest)?;
        let (contents_bytes, table) = take_u32(rest)?;
        if runs as usize > RUNS_MAX || runs as usize * RUN_BYTES != table.len() {
            return Err(malformed("the run table does not fit"));
        }
        self.begin(round);
        for entry in table.chunks_exact(RUN_BYTES) {
            self.push_run(run(entry)?);
        }
        if self.raw_pages > RAW_PAGES_MAX {
            return Err(malformed(format!("{} pages of contents in one record", self.raw_pages)));
        }
        (self.codec, self.contents_bytes) = (self::codec(codec)?, contents_bytes);
        let (contents, raw) = (u64::from(contents_bytes), self.raw_bytes());
        let fits = if self.codec == Codec::None { contents == raw } else { (1..raw).contains(&contents) };
        if fits { Ok(()) } else { Err(malformed(format!("{contents} bytes are not {raw} bytes packed"))) }
    }

    fn count(&mut self, pages: u64, kind: PageKind) {
        self.pages += pages;
        self.raw_pages += if kind.has_contents() { pages } else { 0 };
        self.delta_pages += if kind == PageKind::Delta { pages } else { 0 };
        self.reused_pages += if kind == PageKind::Reused { pages } else { 0 };
    }
}

fn codec(number: u32) -> Result<Codec, WireError> {
    match number {
        0 => Ok(Codec::None),
        1 => Ok(Codec::Lz4),
        2 => Ok(Codec::Zstd),
        other => Err(malformed(format!("unknown codec {other}"))),
    }
}

fn run(entry: &[u8]) -> Result<Run, WireError> {
    let (start, rest) = entry.split_first_chunk().ok_or_else(|| malformed("cut short"))?;
    let (pages, rest) = take_u32(rest)?;
    let (kind, _) = take_u32(rest)?;
    let kind = match kind {
        0 => PageKind::Zero,
        1 => PageKind::Raw,
        2 => PageKind::Delta,
        3 => PageKind::Reused,
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
            pages in prop::collection::btree_map(0u64..2000, kinds(), 0..RAW_PAGES_MAX as usize),
            round: u32,
        ) {
            let mut sent = PageRecord::default();
            sent.begin(round);
            pages.iter().for_each(|(gfn, kind)| sent.push(Gfn(*gfn), *kind));
            sent.contents_bytes = sent.raw_bytes() as u32;
            let mut record = of_one_run(7, 1);
            record.decode_into(&encoded(&sent)).unwrap();
            prop_assert_eq!(&record, &sent);
            prop_assert_eq!((record.round, record.pages), (round, pages.len() as u64));
            let count = |kind| pages.values().filter(|other| **other == kind).count() as u64;
            prop_assert_eq!(record.raw_pages, count(PageKind::Raw) + count(PageKind::Delta));
            prop_assert_eq!(record.delta_pages, count(PageKind::Delta));
            prop_assert_eq!(record.reused_pages, count(PageKind::Reused));
            let back = record.runs.iter().flat_map(|run| {
                (run.range.start.0..run.range.end()).map(|gfn| (gfn, run.kind))
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

    fn kinds() -> impl Strategy<Value = PageKind> {
        prop_oneof![Just(PageKind::Zero), Just(PageKind::Raw), Just(PageKind::Delta), Just(PageKind::Reused)]
    }

    /// A record that says nothing of how many pages its one raw run has.
    fn of_one_run(start: u64, pages: u64) -> PageRecord {
        let range = PageRange { start: Gfn(start), pages };
        let contents_bytes = (pages * PAGE_SIZE_BYTES) as u32;
        let runs = vec![Run { range, kind: PageKind::Raw }];
        PageRecord { round: 1, contents_bytes, runs, ..Default::default() }
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
    fn contents_are_as_long_as_the_pages_or_shorter_if_they_are_packed() {
        for (codec, bytes, fits) in [
            (Codec::None, 8192, true),
            (Codec::None, 8191, false),
            (Codec::Lz4, 8191, true),
            (Codec::Lz4, 8192, false),
            (Codec::Zstd, 1, true),
            (Codec::Zstd, 0, false),
        ] {
            let record = PageRecord { codec, contents_bytes: bytes, ..of_one_run(5, 2) };
            let decoded = PageRecord::default().decode_into(&encoded(&record));
            assert_eq!(decoded.is_ok(), fits, "{bytes} bytes of {codec:?}");
        }
    }

    #[test]
    fn a_table_that_is_cut_short_or_too_long_is_refused() {
        let whole = encoded(&of_one_run(5, 1));
        assert!(PageRecord::default().decode_into(&whole[..whole.len() - 1]).is_err());
        assert!(PageRecord::default().decode_into(&[&whole[..], &[0]].concat()).is_err());
    }
}
