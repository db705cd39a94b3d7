//! What a destination has kept of a VM: a digest for each page of a piece that holds anything.
//!
//! ```text
//!  DIGESTS  first page u64 | a bit for each of 1024 pages from there on: 128 bytes | for each bit that is set: 16 bytes
//! ```
//!
//! The piece is the one that the page stream comes to next. The digest is that of [`Digester`](super::Digester), with the key that
//! came with WELCOME.

use godwit_types::Gfn;

use super::digester::{DIGEST_BYTES, Digest};
use super::error::WireError;

/// Pages go to the streams in turn, in pieces of this many; a page always goes to the same stream.
pub const PIECE_PAGES: u64 = 1024;
/// A destination is at most this many pieces ahead of the pages that have come.
pub const PIECES_AHEAD_MAX: usize = 64;
const BITS_BYTES: usize = PIECE_PAGES as usize / 8;
const FIRST_BYTES: usize = 8;
pub(super) const DIGESTS_BYTES_MAX: usize = FIRST_BYTES + BITS_BYTES + PIECE_PAGES as usize * DIGEST_BYTES;

/// The digests of one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    first: Gfn,
    kept: [u64; PIECE_PAGES as usize / 64],
    digests: Vec<Digest>,
}

impl Digests {
    /// Of a piece of which nothing is kept yet.
    pub fn new(first: Gfn) -> Self {
        Self { first, kept: [0; _], digests: Vec::new() }
    }

    /// The first page of the piece.
    pub fn first(&self) -> Gfn {
        self.first
    }

    /// Adds a page of the piece, which is behind all that were added before.
    pub fn push(&mut self, gfn: Gfn, digest: Digest) {
        let at = gfn.0 - self.first.0;
        self.kept[(at / 64) as usize] |= 1 << (at % 64);
        self.digests.push(digest);
    }

    /// The digest of a page, if it is kept.
    pub fn of(&self, gfn: Gfn) -> Option<&Digest> {
        let at = gfn.0.checked_sub(self.first.0)?;
        let (word, bit) = ((at / 64) as usize, 1 << (at % 64));
        let before = self.kept.get(word)? & (bit - 1);
        let kept = self.kept[word] & bit != 0;
        let rank: usize =
            self.kept[..word].iter().chain([&before]).map(|word| word.count_ones() as usize).sum();
        if kept { self.digests.get(rank) } else { None }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(FIRST_BYTES + BITS_BYTES + self.digests.len() * DIGEST_BYTES);
        payload.extend_from_slice(&self.first.0.to_le_bytes());
        self.kept.iter().for_each(|word| payload.extend_from_slice(&word.to_le_bytes()));
        payload.extend_from_slice(self.digests.as_flattened());
        payload
    }

    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let (first, rest) = payload.split_first_chunk().ok_or_else(|| malformed("cut short"))?;
        let (bits, rest) = rest.split_first_chunk::<BITS_BYTES>().ok_or_else(|| malformed("cut short"))?;
        let mut kept = [0; _];
        for (word, bytes) in kept.iter_mut().zip(bits.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let count: u32 = kept.iter().map(|word| word.count_ones()).sum();
        let (digests, odd) = rest.as_chunks();
        if digests.len() != count as usize || !odd.is_empty() {
            return Err(malformed(format!("{} bytes are not {count} digests", rest.len())));
        }
        Ok(Self { first: Gfn(u64::from_le_bytes(*first)), kept, digests: digests.to_vec() })
    }
}

fn malformed(reason: impl ToString) -> WireError {
    WireError::malformed("digests", reason)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::frame::Tag;
    use super::*;

    proptest! {
        #[test]
        fn each_page_has_its_own_digest_after_the_wire_and_the_others_have_none(
            first in 0u64..1 << 40,
            pages in prop::collection::btree_map(0..PIECE_PAGES, any::<Digest>(), 0..200),
        ) {
            let mut sent = Digests::new(Gfn(first));
            pages.iter().for_each(|(at, digest)| sent.push(Gfn(first + at), *digest));
            let payload = sent.encode();
            prop_assert!(payload.len() <= Tag::Digests.payload_bytes_max());
            let came = Digests::decode(&payload).unwrap();
            prop_assert_eq!(&came, &sent);
            let back: BTreeMap<u64, Digest> = (0..PIECE_PAGES)
                .filter_map(|at| Some((at, *came.of(Gfn(first + at))?)))
                .collect();
            prop_assert_eq!(back, pages);
            prop_assert_eq!(came.of(Gfn(first + PIECE_PAGES)), None);
            prop_assert!(first == 0 || came.of(Gfn(first - 1)).is_none());
        }

        #[test]
        fn arbitrary_bytes_are_an_answer_not_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(digests) = Digests::decode(&bytes) {
                let found = (0..PIECE_PAGES).filter(|at| digests.of(Gfn(digests.first().0.saturating_add(*at))).is_some());
                prop_assert!(found.count() <= digests.digests.len());
            }
        }
    }

    #[test]
    fn a_full_piece_fits_its_frame_and_one_digest_too_few_or_too_many_is_refused() {
        let mut all = Digests::new(Gfn(0));
        (0..PIECE_PAGES).for_each(|at| all.push(Gfn(at), [at as u8; DIGEST_BYTES]));
        let payload = all.encode();
        assert_eq!(payload.len(), Tag::Digests.payload_bytes_max());
        assert!(Digests::decode(&payload).is_ok());
        assert!(Digests::decode(&payload[..payload.len() - DIGEST_BYTES]).is_err());
        assert!(Digests::decode(&payload[..payload.len() - 1]).is_err());
        assert!(Digests::decode(&[&payload[..], &[0; DIGEST_BYTES]].concat()).is_err());
    }
}
