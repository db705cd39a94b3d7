//! Pages of the memory workload. What a page must hold is a function of its [`Stamp`] and the [`Content`], so the
//! verifier computes every byte anew and finds any that is stale, lost or torn; the stamp in the page says which it is.
//!
//! | bytes | little-endian content |
//! | --- | --- |
//! | 0..8 | page number |
//! | 8..16 | generation: how often the page has been written, from 1; 0 is memory never written, all zero |
//! | 16..24 | seed of the run |
//! | 24..32 | check word over the three |
//! | 32..4096 | the body that the content calls for |
//!
//! Bodies: [`Content::Random`] does not compress; [`Content::Compressible`] shrinks to about a third; with
//! [`Content::Zero`] a page is all zero (without a stamp) in every second generation, and a stamp before zeroes in the
//! others, with neighbouring pages out of step: half of the pages are zero, and each keeps turning from one to the other.

use core::fmt;

/// Size of a page in 64-bit words.
pub const PAGE_WORDS: usize = 512;

const STAMP_WORDS: usize = 4;

/// A page of memory.
pub type Page = [u64; PAGE_WORDS];

/// What pages are filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    Zero,
    Compressible,
    #[default]
    Random,
}

/// Which page it is, and which version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub page: u64,
    pub generation: u64,
    pub seed: u64,
}

impl Stamp {
    /// Writes the page that belongs to this stamp.
    pub fn fill(&self, content: Content, page: &mut Page) {
        let head = self.head(content);
        page[..STAMP_WORDS].copy_from_slice(&head);
        let body = &mut page[STAMP_WORDS..];
        match self.body(content) {
            Body::Zero => body.fill(0),
            Body::Sparse(key) => (STAMP_WORDS..).zip(body).for_each(|(i, word)| *word = sparse(key, i)),
            Body::Random(key) => (STAMP_WORDS..).zip(body).for_each(|(i, word)| *word = random(key, i)),
        }
    }

    /// Checks every byte of a page against what belongs to this stamp.
    pub fn verify(&self, content: Content, page: &Page) -> Result<(), PageFault> {
        let body = &page[STAMP_WORDS..];
        let differences = match self.body(content) {
            Body::Zero => body.iter().fold(0, |sum, word| sum | word),
            Body::Sparse(key) => {
                (STAMP_WORDS..).zip(body).fold(0, |sum, (i, word)| sum | (word ^ sparse(key, i)))
            }
            Body::Random(key) => {
                (STAMP_WORDS..).zip(body).fold(0, |sum, (i, word)| sum | (word ^ random(key, i)))
            }
        };
        if differences == 0 && page[..STAMP_WORDS] == self.head(content) {
            return Ok(());
        }
        Err(self.fault(content, page))
    }

    #[cold]
    fn fault(&self, content: Content, page: &Page) -> PageFault {
        let expected = *self;
        if let Some(kind) = self.other_version(content, page) {
            return PageFault { expected, kind };
        }
        let word = (0..PAGE_WORDS).find(|&i| page[i] != self.word(content, i)).unwrap_or_default();
        PageFault {
            expected,
            kind: FaultKind::Torn { offset: word * 8, found: page[word], wanted: self.word(content, word) },
        }
    }

    /// What is wrong, if the page is whole but of another page, generation or run.
    fn other_version(&self, content: Content, page: &Page) -> Option<FaultKind> {
        if page.iter().all(|&word| word == 0) {
            return Some(FaultKind::Zero);
        }
        let found = Self { page: page[0], generation: page[1], seed: page[2] };
        if found == *self || (0..PAGE_WORDS).any(|i| page[i] != found.word(content, i)) {
            return None;
        }
        Some(match found {
            Self { page, seed, .. } if page != self.page || seed != self.seed => FaultKind::Foreign { found },
            Self { generation, .. } if generation < self.generation => FaultKind::Older { generation },
            Self { generation, .. } => FaultKind::Newer { generation },
        })
    }

    fn word(&self, content: Content, i: usize) -> u64 {
        match self.body(content) {
            _ if i < STAMP_WORDS => self.head(content)[i],
            Body::Zero => 0,
            Body::Sparse(key) => sparse(key, i),
            Body::Random(key) => random(key, i),
        }
    }

    fn head(&self, content: Content) -> [u64; STAMP_WORDS] {
        if self.generation == 0 || (content == Content::Zero && (self.page ^ self.generation) & 1 == 0) {
            return [0; STAMP_WORDS];
        }
        [self.page, self.generation, self.seed, self.key()]
    }

    fn body(&self, content: Content) -> Body {
        match content {
            _ if self.generation == 0 => Body::Zero,
            Content::Zero => Body::Zero,
            Content::Compressible => Body::Sparse(self.key()),
            Content::Random => Body::Random(self.key()),
        }
    }

    const fn key(&self) -> u64 {
        mix(mix(mix(self.seed) ^ self.page) ^ self.generation)
    }
}

enum Body {
    Zero,
    Sparse(u64),
    Random(u64),
}

/// Word `i` of an incompressible body.
const fn random(key: u64, i: usize) -> u64 {
    mix(key.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Word `i` of a compressible body: two random words in every eight, among one word repeated.
const fn sparse(key: u64, i: usize) -> u64 {
    if i % 8 < 2 { random(key, i) } else { key }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A page that does not hold what was written to it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    pub expected: Stamp,
    pub kind: FaultKind,
}

/// How a page is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// All zero: its content is lost.
    Zero,
    /// A whole page of an older generation: later writes to it are lost.
    Older { generation: u64 },
    /// A whole page of a newer generation: the guest's own table of generations is stale.
    Newer { generation: u64 },
    /// A whole page that belongs elsewhere, or to another run.
    Foreign { found: Stamp },
    /// A page that no single write has produced; the first wrong word is at this byte.
    Torn { offset: usize, found: u64, wanted: u64 },
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp { page, generation, .. } = self.expected;
        write!(f, "page {page} generation {generation}: ")?;
        match self.kind {
            FaultKind::Zero => write!(f, "lost, all zero"),
            FaultKind::Older { generation } => write!(f, "stale, of generation {generation}"),
            FaultKind::Newer { generation } => write!(f, "of generation {generation}, the table is stale"),
            FaultKind::Foreign { found } => {
                write!(
                    f,
                    "holds page {} generation {} of run {:#x}",
                    found.page, found.generation, found.seed
                )
            }
            FaultKind::Torn { offset, found, wanted } => {
                write!(f, "torn, {found:#x} at byte {offset} where {wanted:#x} belongs")
            }
        }
    }
}

impl core::error::Error for PageFault {}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENTS: [Content; 3] = [Content::Zero, Content::Compressible, Content::Random];

    fn filled(content: Content, page: u64, generation: u64) -> (Stamp, Page) {
        let stamp = Stamp { page, generation, seed: 42 };
        let mut words = [0xdead; PAGE_WORDS];
        stamp.fill(content, &mut words);
        (stamp, words)
    }

    #[test]
    fn what_was_written_verifies() {
        for content in CONTENTS {
            for (page, generation) in [(0, 0), (0, 1), (0, 2), (7, 1), (7, 2), (1 << 40, 1 << 50)] {
                let (stamp, words) = filled(content, page, generation);
                assert_eq!(stamp.verify(content, &words), Ok(()), "{content:?} {stamp:?}");
            }
        }
    }

    #[test]
    fn memory_never_written_is_generation_zero() {
        for content in CONTENTS {
            let stamp = Stamp { page: 3, generation: 0, seed: 42 };
            assert_eq!(stamp.verify(content, &[0; PAGE_WORDS]), Ok(()));
        }
    }

    #[test]
    fn stale_lost_foreign_and_future_pages_are_named() {
        for content in [Content::Compressible, Content::Random] {
            let (new, new_words) = filled(content, 5, 9);
            let (old, old_words) = filled(content, 5, 8);
            let (found, other_words) = filled(content, 6, 9);
            let kind = |stamp: Stamp, words| stamp.verify(content, words).unwrap_err().kind;
            assert_eq!(kind(new, &old_words), FaultKind::Older { generation: 8 });
            assert_eq!(kind(old, &new_words), FaultKind::Newer { generation: 9 });
            assert_eq!(kind(new, &other_words), FaultKind::Foreign { found });
            assert_eq!(kind(new, &[0; PAGE_WORDS]), FaultKind::Zero);
        }
    }

    #[test]
    fn a_page_of_two_generations_is_torn_wherever_the_cut_is() {
        for content in [Content::Compressible, Content::Random] {
            let (stamp, new) = filled(content, 5, 9);
            let (_, old) = filled(content, 5, 8);
            // The first word is the page's number, the same in both.
            for cut in 2..PAGE_WORDS {
                for (front, back) in [(&new, &old), (&old, &new)] {
                    let mut words = *back;
                    words[..cut].copy_from_slice(&front[..cut]);
                    let fault = stamp.verify(content, &words).unwrap_err();
                    assert!(matches!(fault.kind, FaultKind::Torn { .. }), "{content:?} cut {cut}: {fault}");
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for content in CONTENTS {
            let (stamp, words) = filled(content, 4, 3);
            for bit in 0..PAGE_WORDS * 64 {
                let mut bad = words;
                bad[bit / 64] ^= 1 << (bit % 64);
                assert!(stamp.verify(content, &bad).is_err(), "{content:?} bit {bit}");
            }
        }
    }

    #[test]
    fn zero_content_keeps_half_of_the_pages_zero_and_turns_each_page() {
        let is_zero =
            |page, generation| filled(Content::Zero, page, generation).1.iter().all(|&word| word == 0);
        for page in 0..10 {
            for generation in 1..10 {
                assert_ne!(is_zero(page, generation), is_zero(page, generation + 1));
                assert_ne!(is_zero(page, generation), is_zero(page + 1, generation));
            }
        }
    }

    #[test]
    fn a_stale_page_of_zero_content_is_found_both_ways() {
        let (odd, stamped) = filled(Content::Zero, 4, 3);
        let (even, zero) = filled(Content::Zero, 4, 4);
        assert_eq!(odd.verify(Content::Zero, &zero).unwrap_err().kind, FaultKind::Zero);
        assert_eq!(
            even.verify(Content::Zero, &stamped).unwrap_err().kind,
            FaultKind::Older { generation: 3 }
        );
    }
}
