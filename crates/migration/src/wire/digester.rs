//! The digest of a page, by which it is told whether what was kept is still the same.
//!
//! ```text
//!  key --BLAKE3, extended--> words k0 .. k513
//!  page: words m0 .. m511    sum of (m[i] + k[i]) * (m[i+1] + k[i+1])      over even i, modulo 2^128
//!                            sum of (m[i] + k[i+2]) * (m[i+1] + k[i+3])    the additions modulo 2^64
//!  both sums --BLAKE3, keyed--> 16 bytes
//! ```
//!
//! The sums are NH, of UMAC (Black et al., CRYPTO 1999), with words of 64 bits as in VMAC (Dai and Krovetz, 2007), twice with the
//! keys shifted by a pair: for whoever does not know the key, two pages that differ have the same sums with a probability of
//! 2^-128 at most, whatever is in them. That is all that is asked of a digest here, and takes a few multiplications where
//! hashing the page takes rounds. BLAKE3 only makes 16 bytes of the sums, and says nothing of the key.

use godwit_types::PAGE_SIZE_BYTES;

/// Length of a digest, in bytes.
pub const DIGEST_BYTES: usize = 16;
const WORDS: usize = PAGE_SIZE_BYTES as usize / 8;
const PASSES: usize = 2;

/// Of one page.
pub type Digest = [u8; DIGEST_BYTES];

/// What makes digests that nobody can foresee who does not know it.
pub type DigestKey = [u8; 32];

/// See the module. Of one key.
pub struct Digester {
    key: DigestKey,
    words: Box<[u64; WORDS + 2 * (PASSES - 1)]>,
}

impl Digester {
    pub fn new(key: &DigestKey) -> Self {
        let mut extended = blake3::Hasher::new_keyed(key).finalize_xof();
        let mut word = || {
            let mut bytes = [0; 8];
            extended.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        Self { key: *key, words: Box::new(std::array::from_fn(|_| word())) }
    }

    /// The digest of a page's contents.
    pub fn digest(&self, page: &[u8]) -> Digest {
        debug_assert_eq!(page.len() as u64, PAGE_SIZE_BYTES);
        let mut sums = [0; 16 * PASSES];
        for (bytes, sum) in sums.as_chunks_mut().0.iter_mut().zip(self.sums(page)) {
            *bytes = sum.to_le_bytes();
        }
        let whole = blake3::keyed_hash(&self.key, &sums);
        *whole.as_bytes().first_chunk().expect("a digest is shorter than a hash")
    }

    fn sums(&self, page: &[u8]) -> [u128; PASSES] {
        let mut sums = [0u128; PASSES];
        let keys = self.words.windows(2 * PASSES).step_by(2);
        for (pair, keys) in page.as_chunks::<8>().0.as_chunks::<2>().0.iter().zip(keys) {
            let [one, other] = pair.map(u64::from_le_bytes);
            for (pass, sum) in sums.iter_mut().enumerate() {
                let one = one.wrapping_add(keys[2 * pass]);
                let other = other.wrapping_add(keys[2 * pass + 1]);
                *sum = sum.wrapping_add(u128::from(one) * u128::from(other));
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = PAGE_SIZE_BYTES as usize;

    fn digest(key: u8, page: &[u8]) -> Digest {
        Digester::new(&[key; 32]).digest(page)
    }

    #[test]
    fn a_digest_depends_on_every_byte_and_on_the_key() {
        let (page, digester) = (vec![7; PAGE], Digester::new(&[1; 32]));
        let plain = digester.digest(&page);
        assert_eq!(plain, digest(1, &page));
        assert_ne!(plain, digest(2, &page));
        for at in 0..PAGE {
            let mut other = page.clone();
            other[at] ^= 1;
            assert_ne!(plain, digester.digest(&other), "{at}");
        }
    }

    #[test]
    fn the_sums_are_those_of_the_definition() {
        let mut digester = Digester::new(&[1; 32]);
        *digester.words = std::array::from_fn(|word| word as u64);
        let mut page = vec![0; PAGE];
        page[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let zeros = |shift: u128| -> u128 {
            (0..WORDS as u128).step_by(2).map(|at| (at + shift) * (at + 1 + shift)).sum()
        };
        // The first word and its key are 2^64 - 1 and 0, and the next key is 1; in the second pass they come to 1, times 3.
        assert_eq!(digester.sums(&page), [zeros(0) + u128::from(u64::MAX), zeros(2) - 2 * 3 + 3]);
    }

    /// A page is what it is on both hosts, whichever release they run.
    #[test]
    fn digests_stay_what_they_are() {
        let page: Vec<u8> = (0..PAGE).map(|at| (at * at / 7) as u8).collect();
        assert_eq!(u128::from_be_bytes(digest(1, &page)), 0xbf26_5cd4_5a2b_0e79_e1b1_4964_9f78_bf13);
    }

    proptest! {
        #[test]
        fn what_changes_places_changes_the_digest(
            words in prop::collection::vec(any::<u64>(), WORDS),
            (one, other) in (0..WORDS, 0..WORDS),
        ) {
            let bytes = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
            let mut moved = words.clone();
            moved.swap(one, other);
            prop_assert_eq!(digest(1, &bytes(&words)) == digest(1, &bytes(&moved)), words == moved);
        }
    }
}
