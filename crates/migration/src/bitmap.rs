//! A set of guest pages.

use godwit_types::Gfn;

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

    /// Adds a frame. Frames at or above the limit are a defect of the caller.
    pub fn insert(&mut self, gfn: Gfn) {
        self.words[(gfn.0 / 64) as usize] |= 1 << (gfn.0 % 64);
    }

    /// Adds the frames `first + i` for each bit `i` set in `word`; `first` is a multiple of 64.
    pub fn insert_word(&mut self, first: Gfn, word: u64) {
        debug_assert!(first.0.is_multiple_of(64));
        self.words[(first.0 / 64) as usize] |= word;
    }

    /// Whether the frame is in the set.
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.words.get((gfn.0 / 64) as usize).is_some_and(|word| word >> (gfn.0 % 64) & 1 == 1)
    }

    /// How many frames are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no frame is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}
