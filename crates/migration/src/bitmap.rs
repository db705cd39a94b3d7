//! A set of guest pages.

use godwit_types::Gfn;

use crate::machine::PageRange;

/// One bit for each guest frame from 0 up to a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
}

impl PageBitmap {
    /// An empty set over the frames `0..frames`.
    pub fn new(frames: u64) -> Self {
        Self {
            words: vec![
                0;
                usize::try_from(frames.div_ceil(64)).expect("guest memory fits the address space")
            ],
        }
    }

    /// An empty set that has room for all pages of `ranges`.
    pub fn covering(ranges: &[PageRange]) -> Self {
        Self::new(ranges.iter().map(|range| range.start.0 + range.pages).max().unwrap_or(0))
    }

    /// All frames that it has room for, rounded up.
    pub fn all(&self) -> PageRange {
        PageRange { start: Gfn(0), pages: self.words.len() as u64 * 64 }
    }

    /// Adds a frame. Frames at or above the limit are a defect of the caller.
    pub fn insert(&mut self, gfn: Gfn) {
        self.words[(gfn.0 / 64) as usize] |= 1 << (gfn.0 % 64);
    }

    /// Adds a frame, as above; whether it was not in the set.
    pub fn insert_new(&mut self, gfn: Gfn) -> bool {
        let word = &mut self.words[(gfn.0 / 64) as usize];
        let bit = 1 << (gfn.0 % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Adds the frames `first + i` for each bit `i` set in `word`; `first` is a multiple of 64.
    pub fn insert_word(&mut self, first: Gfn, word: u64) {
        debug_assert!(first.0.is_multiple_of(64));
        self.words[(first.0 / 64) as usize] |= word;
    }

    /// Adds all frames of a range.
    pub fn insert_range(&mut self, range: PageRange) {
        let (mut frame, end) = (range.start.0, range.start.0 + range.pages);
        while frame < end {
            let count = (64 - frame % 64).min(end - frame);
            let ones = u64::MAX >> (64 - count);
            self.words[(frame / 64) as usize] |= ones << (frame % 64);
            frame += count;
        }
    }

    /// Removes a frame; whether it was in the set.
    pub fn remove(&mut self, gfn: Gfn) -> bool {
        let Some(word) = self.words.get_mut((gfn.0 / 64) as usize) else { return false };
        let bit = 1 << (gfn.0 % 64);
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    /// Removes all frames.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether the frame is in the set.
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.words.get((gfn.0 / 64) as usize).is_some_and(|word| word >> (gfn.0 % 64) & 1 == 1)
    }

    /// How many frames are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many frames of the set lie in `within`.
    pub fn len_within(&self, within: PageRange) -> u64 {
        let end = (within.start.0 + within.pages).min(self.words.len() as u64 * 64);
        let mut frame = within.start.0;
        let mut count = 0;
        while frame < end {
            let bits = (64 - frame % 64).min(end - frame);
            let mask = u64::MAX >> (64 - bits);
            count += u64::from((self.words[(frame / 64) as usize] >> (frame % 64) & mask).count_ones());
            frame += bits;
        }
        count
    }

    /// Whether no frame is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The frames of the set that lie in `within`, as maximal runs, ascending.
    pub fn runs(&self, within: PageRange) -> impl Iterator<Item = PageRange> {
        let end = (within.start.0 + within.pages).min(self.words.len() as u64 * 64);
        let mut from = within.start.0;
        std::iter::from_fn(move || {
            let start = self.find(from, end, 0)?;
            from = self.find(start, end, u64::MAX).unwrap_or(end);
            Some(PageRange { start: Gfn(start), pages: from - start })
        })
    }

    /// The first frame in `from..end` whose bit, after `flip`, is set.
    fn find(&self, from: u64, end: u64, flip: u64) -> Option<u64> {
        let mut frame = from;
        while frame < end {
            let word = (self.words[(frame / 64) as usize] ^ flip) >> (frame % 64);
            if word != 0 {
                return Some(frame + u64::from(word.trailing_zeros())).filter(|found| *found < end);
            }
            frame = (frame / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, pages: u64) -> PageRange {
        PageRange { start: Gfn(start), pages }
    }

    proptest! {
        #[test]
        fn the_runs_of_a_window_are_its_frames_and_nothing_else(
            frames in prop::collection::btree_set(0u64..400, 0..200),
            start in 0u64..420,
            pages in 0u64..420,
        ) {
            let mut set = PageBitmap::new(400);
            frames.iter().for_each(|frame| set.insert(Gfn(*frame)));
            let runs: Vec<_> = set.runs(range(start, pages)).collect();
            let named: Vec<u64> = runs.iter().flat_map(|run| run.start.0..run.start.0 + run.pages).collect();
            let expected: Vec<u64> = frames.range(start..start + pages).copied().collect();
            prop_assert_eq!(set.len_within(range(start, pages)), expected.len() as u64);
            prop_assert_eq!(named, expected);
            prop_assert!(runs.windows(2).all(|pair| pair[0].start.0 + pair[0].pages < pair[1].start.0));
        }

        #[test]
        fn a_range_adds_exactly_its_frames(start in 0u64..300, pages in 0u64..300) {
            let mut set = PageBitmap::covering(&[range(0, 600)]);
            set.insert_range(range(start, pages));
            prop_assert_eq!(set.len(), pages);
            prop_assert!((start..start + pages).all(|frame| set.contains(Gfn(frame))));
        }
    }
}
