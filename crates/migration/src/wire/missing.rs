//! The pages that a destination does not have, as runs, in as many frames as it takes.
//!
//! ```text
//!  MISSING  last u8 (1: no more follow) | for each run: pages since the end of the run before, pages of the run
//! ```
//!
//! Both numbers are LEB128, so that a run costs two or three bytes: the list is sent while the guest stands. The first
//! frame counts from page 0, and each of the others from where the one before has ended.

use godwit_types::Gfn;

use super::error::WireError;
use crate::bitmap::PageBitmap;
use crate::machine::PageRange;

/// Longest payload, in bytes.
pub const MISSING_BYTES_MAX: usize = 64 << 10;
/// Longest number, in bytes: 63 bits.
const NUMBER_BYTES_MAX: usize = 9;

/// The payloads that name `runs`, which ascend and do not touch; at least one.
pub fn missing(runs: impl Iterator<Item = PageRange>) -> Vec<Vec<u8>> {
    let mut frames = vec![vec![0]];
    let mut end = 0;
    for run in runs {
        let mut frame = frames.pop().unwrap_or_else(|| vec![0]);
        if frame.len() + 2 * NUMBER_BYTES_MAX > MISSING_BYTES_MAX {
            frames.push(std::mem::replace(&mut frame, vec![0]));
        }
        push(&mut frame, run.start.0 - end);
        push(&mut frame, run.pages);
        frames.push(frame);
        end = run.start.0 + run.pages;
    }
    if let Some(last) = frames.last_mut() {
        last[0] = 1;
    }
    frames
}

/// Puts the frames together again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pages: PageBitmap,
    ranges: Vec<PageRange>,
    end: u64,
}

impl Missing {
    /// Nothing yet; only pages of `ranges`, which is RAM, may be named.
    pub fn of(ranges: &[PageRange]) -> Self {
        Self { pages: PageBitmap::covering(ranges), ranges: ranges.to_vec(), end: 0 }
    }

    /// Takes in one payload. After the last one, the pages of all.
    pub fn take(&mut self, payload: &[u8]) -> Result<Option<PageBitmap>, WireError> {
        let (last, mut rest) = payload.split_first().ok_or_else(|| malformed("cut short"))?;
        while !rest.is_empty() {
            let start = self.end.checked_add(take(&mut rest)?);
            let pages = take(&mut rest)?;
            let run =
                start.map(|start| PageRange { start: Gfn(start), pages }).filter(|run| self.is_ram(*run));
            let run = run.ok_or_else(|| malformed("a run that is empty or not RAM"))?;
            self.pages.insert_range(run);
            self.end = run.start.0 + pages;
        }
        match last {
            0 => Ok(None),
            1 => {
                self.end = 0;
                Ok(Some(std::mem::replace(&mut self.pages, PageBitmap::covering(&self.ranges))))
            }
            _ => Err(malformed("neither the last frame nor one before it")),
        }
    }

    fn is_ram(&self, run: PageRange) -> bool {
        let Some(end) = run.start.0.checked_add(run.pages).filter(|_| run.pages > 0) else { return false };
        self.ranges.iter().any(|ram| run.start.0 >= ram.start.0 && end <= ram.start.0 + ram.pages)
    }
}

fn push(frame: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        frame.push(number as u8 | 0x80);
        number >>= 7;
    }
    frame.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut number = 0;
    for shift in (0..NUMBER_BYTES_MAX as u32).map(|index| 7 * index) {
        let (byte, rest) = bytes.split_first().ok_or_else(|| malformed("cut short"))?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(malformed("a number that is too long"))
}

fn malformed(reason: impl ToString) -> WireError {
    WireError::malformed("list of missing pages", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RAM with a hole, larger than any list that is sent here.
    const RAM: [PageRange; 2] =
        [PageRange { start: Gfn(0), pages: 100_000_000 }, PageRange { start: Gfn(200_000_000), pages: 1000 }];

    fn received(frames: &[Vec<u8>]) -> Vec<PageRange> {
        let mut missing = Missing::of(&RAM);
        let mut all = None;
        for frame in frames {
            assert!(frame.len() <= MISSING_BYTES_MAX && all.is_none());
            all = missing.take(frame).unwrap();
        }
        let all = all.unwrap();
        RAM.iter().flat_map(|ram| all.runs(*ram).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_list_that_no_frame_can_hold_is_put_together_again() {
        let run = |index: u64| PageRange { start: Gfn(index * 1000), pages: 500 };
        let runs: Vec<PageRange> = (0..40_000).map(run).collect();
        let frames = missing(runs.iter().copied());
        assert!(frames.len() > 1);
        assert_eq!(received(&frames), runs);
        assert!(received(&missing(std::iter::empty())).is_empty());
    }

    #[test]
    fn what_is_empty_or_not_ram_is_refused() {
        for (run, fits) in [
            ([0, 1], true),
            ([200_000_000, 1000], true),
            ([0, 0], false),
            ([150_000_000, 1], false),
            ([99_999_999, 2], false),
            ([200_000_000, 1001], false),
            ([u64::MAX >> 1, u64::MAX >> 1], false),
        ] {
            let mut frame = vec![1];
            run.into_iter().for_each(|number| push(&mut frame, number));
            assert_eq!(Missing::of(&RAM).take(&frame).is_ok(), fits, "{run:?}");
        }
        assert!(Missing::of(&RAM).take(&[2]).is_err() && Missing::of(&RAM).take(&[]).is_err());
    }

    proptest! {
        #[test]
        fn runs_survive_the_wire(gaps in prop::collection::vec((1u64..1 << 20, 1u64..1 << 20), 0..50)) {
            let mut end = 0;
            let run = |(gap, pages)| {
                let run = PageRange { start: Gfn(end + gap), pages };
                end += gap + pages;
                run
            };
            let runs: Vec<PageRange> = gaps.into_iter().map(run).take_while(|run| run.start.0 < 90_000_000).collect();
            prop_assert_eq!(received(&missing(runs.iter().copied())), runs);
        }

        #[test]
        fn arbitrary_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Missing::of(&RAM[1..]).take(&bytes);
        }
    }
}
