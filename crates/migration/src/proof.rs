//! Whether memory at the destination is what it was at the source: one digest of all of it, made on both sides.
//!
//! ```text
//!  destination   a page was put in its place --> its digest in the table       the guest runs: sum of the table --+
//!                                                                                                                 | the same?
//!  source        the guest has left, its memory stands --> all pages are read once more --> sum ------------------+
//! ```
//!
//! Nothing of it is done while the guest stands. What the source reads is what the guest had when it was stopped, whatever
//! the dirty log, the codecs or the network made of it.
//!
//! The digest of memory is the sum, modulo 2^128, of the digests of its pages. A page of zeros has the digest 0, any other one
//! XXH3-128 of its contents, seeded with its number and the migration. It finds errors; it is no defence against somebody
//! who chooses memory's contents, nor has to be: both sides are Godwit's.

use std::iter::Sum;
use std::ops::Add;
use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_types::{Gfn, MigrationId, PAGE_SIZE_BYTES};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::machine::{GuestMemory, MachineError, PageRange, is_zero};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// Pages whose digests share a lock: as many as go to one stream in turn.
const PART_PAGES: u64 = crate::wire::PIECE_PAGES;
/// Pages that are read at a time.
const CHUNK_PAGES: u64 = 256;
/// Spreads page numbers over the seed: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The digest of all memory; see the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MemoryDigest(pub u128);

impl Add for MemoryDigest {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl Sum for MemoryDigest {
    fn sum<I: Iterator<Item = Self>>(digests: I) -> Self {
        digests.fold(Self::default(), Add::add)
    }
}

/// What the digests of one migration are seeded with.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

impl Seed {
    fn of(migration: MigrationId) -> Self {
        Self(migration.0.as_u64_pair().1)
    }

    fn page(self, gfn: Gfn, contents: &[u8]) -> u128 {
        if is_zero(contents) {
            return 0;
        }
        xxh3_128_with_seed(contents, self.0 ^ gfn.0.wrapping_add(1).wrapping_mul(SPREAD))
    }
}

/// Reads one share of memory, of so many that are read at once. Nobody may write it meanwhile. The sum of all shares is the
/// digest of memory.
pub fn read(
    memory: &dyn GuestMemory,
    migration: MigrationId,
    (share, of): (usize, usize),
) -> Result<MemoryDigest, MachineError> {
    let seed = Seed::of(migration);
    let parts = memory.ranges().iter().flat_map(|range| range.parts(CHUNK_PAGES));
    let mut digest = MemoryDigest::default();
    for part in parts.skip(share).step_by(of) {
        digest = digest + sum(seed, part.start, memory.bytes(part)?);
    }
    Ok(digest)
}

fn sum(seed: Seed, first: Gfn, contents: &[u8]) -> MemoryDigest {
    let pages = (first.0..).zip(contents.chunks_exact(PAGE_BYTES));
    pages.map(|(gfn, page)| MemoryDigest(seed.page(Gfn(gfn), page))).sum()
}

/// What a destination knows of its pages: the digest of each as it was put in its place last. Takes 16 bytes a page where
/// memory holds anything. A page goes to one stream always, so that its digest and its contents are of the same time.
#[derive(Debug)]
pub struct Tally {
    seed: Seed,
    parts: Vec<Part>,
}

/// The digests of up to [`PART_PAGES`] pages.
#[derive(Debug)]
struct Part {
    pages: PageRange,
    /// Empty as long as all its pages are zeros.
    digests: Mutex<Vec<u128>>,
}

impl Tally {
    /// Of RAM, ascending, in which all pages are zeros.
    pub fn new(migration: MigrationId, ranges: &[PageRange]) -> Self {
        let parts = ranges.iter().flat_map(|range| range.parts(PART_PAGES));
        let parts = parts.map(|pages| Part { pages, digests: Mutex::default() }).collect();
        Self { seed: Seed::of(migration), parts }
    }

    /// These whole pages were put in their places, from `first` on.
    pub fn put(&self, first: Gfn, contents: &[u8]) {
        let pages = PageRange { start: first, pages: (contents.len() / PAGE_BYTES) as u64 };
        self.each(pages, |digests, part, some| {
            let at = ((some.start.0 - first.0) * PAGE_SIZE_BYTES) as usize;
            digests.resize(part.pages as usize, 0);
            for (gfn, page) in some.gfns().zip(contents[at..].chunks_exact(PAGE_BYTES)) {
                digests[(gfn.0 - part.start.0) as usize] = self.seed.page(gfn, page);
            }
        });
    }

    /// These pages are zeros.
    pub fn zero(&self, pages: PageRange) {
        self.each(pages, |digests, part, some| {
            if !digests.is_empty() {
                let at = (some.start.0 - part.start.0) as usize;
                digests[at..at + some.pages as usize].fill(0);
            }
        });
    }

    /// Of all memory.
    pub fn sum(&self) -> MemoryDigest {
        self.parts.iter().map(|part| part.lock().iter().copied().map(MemoryDigest).sum()).sum()
    }

    /// Gives `update` the digests of each part of memory that has some of these pages, the part, and which pages.
    fn each(&self, pages: PageRange, mut update: impl FnMut(&mut Vec<u128>, PageRange, PageRange)) {
        let from = self.parts.partition_point(|part| part.pages.end() <= pages.start.0);
        for part in self.parts[from..].iter().take_while(|part| part.pages.start.0 < pages.end()) {
            let start = part.pages.start.max(pages.start);
            let some = PageRange { start, pages: part.pages.end().min(pages.end()) - start.0 };
            update(&mut part.lock(), part.pages, some);
        }
    }
}

impl Part {
    fn lock(&self) -> MutexGuard<'_, Vec<u128>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const MIGRATION: MigrationId = MigrationId(Uuid::from_u128(0x1234_5678_9abc_def0_1111_2222_3333_4444));
    /// With a gap, and parts that end within a range.
    const RAM: [PageRange; 2] =
        [PageRange { start: Gfn(2), pages: 30 }, PageRange { start: Gfn(1000), pages: 2 * PART_PAGES + 7 }];

    /// Each page holds one number, over and over.
    struct Pages(Vec<Vec<u8>>);

    impl Pages {
        fn zeros() -> Self {
            Self(RAM.iter().map(|range| vec![0; (range.pages * PAGE_SIZE_BYTES) as usize]).collect())
        }

        fn fill(&mut self, gfn: Gfn, byte: u8) {
            let index = RAM.iter().position(|range| range.contains(gfn)).unwrap();
            let at = ((gfn.0 - RAM[index].start.0) * PAGE_SIZE_BYTES) as usize;
            self.0[index][at..at + PAGE_BYTES].fill(byte);
        }
    }

    impl GuestMemory for Pages {
        fn ranges(&self) -> &[PageRange] {
            &RAM
        }

        fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
            let index = RAM.iter().position(|range| range.contains(pages.start)).unwrap();
            let at = ((pages.start.0 - RAM[index].start.0) * PAGE_SIZE_BYTES) as usize;
            Ok(&self.0[index][at..at + (pages.pages * PAGE_SIZE_BYTES) as usize])
        }

        fn write(&self, _: Gfn, _: &[u8]) -> Result<(), MachineError> {
            unreachable!("it is only read")
        }

        fn zero(&self, _: Gfn, _: u64) -> Result<(), MachineError> {
            unreachable!("it is only read")
        }
    }

    fn whole(memory: &Pages, shares: usize) -> MemoryDigest {
        (0..shares).map(|share| read(memory, MIGRATION, (share, shares)).unwrap()).sum()
    }

    fn anywhere() -> impl Strategy<Value = Gfn> {
        prop_oneof![
            (0..RAM[0].pages).prop_map(|at| Gfn(RAM[0].start.0 + at)),
            (0..RAM[1].pages).prop_map(|at| Gfn(RAM[1].start.0 + at))
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn both_sides_agree_whatever_was_put_where_and_how_often(
            writes in prop::collection::vec((anywhere(), 0u8..4), 0..60),
            shares in 1usize..5,
        ) {
            let (mut memory, tally) = (Pages::zeros(), Tally::new(MIGRATION, &RAM));
            for (gfn, byte) in writes {
                memory.fill(gfn, byte);
                match byte {
                    0 => tally.zero(PageRange { start: gfn, pages: 1 }),
                    _ => tally.put(gfn, &[byte; PAGE_BYTES]),
                }
            }
            prop_assert_eq!(whole(&memory, shares), tally.sum());
        }

        #[test]
        fn one_wrong_byte_or_two_pages_in_each_others_places_are_seen(
            at in 0..PAGE_BYTES, flip in 1u8.., first in anywhere(), second in anywhere(),
        ) {
            let put = |pages: &[(Gfn, &[u8])]| {
                let tally = Tally::new(MIGRATION, &RAM);
                pages.iter().for_each(|(gfn, page)| tally.put(*gfn, page));
                tally.sum()
            };
            let page = [7; PAGE_BYTES];
            let mut wrong = page;
            wrong[at] ^= flip;
            prop_assert_ne!(put(&[(first, &page)]), put(&[(first, &wrong)]));
            if first != second {
                prop_assert_ne!(put(&[(first, &page), (second, &wrong)]), put(&[(first, &wrong), (second, &page)]));
            }
        }
    }

    #[test]
    fn pages_over_several_parts_are_put_and_cleared_at_once() {
        let tally = Tally::new(MIGRATION, &RAM);
        let many = PageRange { start: Gfn(1000 + PART_PAGES - 3), pages: PART_PAGES + 6 };
        tally.put(many.start, &vec![1; (many.pages * PAGE_SIZE_BYTES) as usize]);
        let mut memory = Pages::zeros();
        many.gfns().for_each(|gfn| memory.fill(gfn, 1));
        assert_eq!(whole(&memory, 2), tally.sum());
        tally.zero(many);
        assert_eq!(tally.sum(), MemoryDigest::default());
    }
}
