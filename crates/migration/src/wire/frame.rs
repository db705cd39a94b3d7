//! Frames: a tag, a bounded length, a checksum, a payload.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::digests::DIGESTS_BYTES_MAX;
use super::error::WireError;
use super::missing::MISSING_BYTES_MAX;
use super::pages::{ROUND_END_BYTES, TABLE_BYTES_MAX};

/// Length of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 16;
/// Longest HELLO, which carries the manifest, in bytes.
const HELLO_BYTES_MAX: usize = 1 << 20;
/// Longest control message, in bytes.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Longest device state, in bytes: ten times what 64 vCPUs with all registers and all devices take. It is read piece by
/// piece, so that a claimed length alone costs nothing.
pub(super) const STATE_BYTES_MAX: usize = 16 << 20;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// The first frame of a connection: which migration, which role.
    Hello = 1,
    /// A control message.
    Control = 2,
    /// All device state.
    State = 3,
    /// Page runs of one round. The contents of the pages follow the frame.
    Pages = 4,
    /// The end of a round on one stream.
    RoundEnd = 5,
    /// Some of the pages that the destination does not have.
    Missing = 6,
    /// What the destination has kept of some pages.
    Digests = 7,
}

impl Tag {
    const fn decode(byte: u8) -> Result<Self, WireError> {
        Ok(match byte {
            1 => Self::Hello,
            2 => Self::Control,
            3 => Self::State,
            4 => Self::Pages,
            5 => Self::RoundEnd,
            6 => Self::Missing,
            7 => Self::Digests,
            _ => return Err(WireError::Tag(byte)),
        })
    }

    /// Longest payload accepted, in bytes.
    pub const fn payload_bytes_max(self) -> usize {
        match self {
            Self::Hello => HELLO_BYTES_MAX,
            Self::Control => CONTROL_BYTES_MAX,
            Self::State => STATE_BYTES_MAX,
            Self::Pages => TABLE_BYTES_MAX,
            Self::RoundEnd => ROUND_END_BYTES,
            Self::Missing => MISSING_BYTES_MAX,
            Self::Digests => DIGESTS_BYTES_MAX,
        }
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub tag: Tag,
    /// Of the payload, in bytes; within the tag's limit.
    pub length: usize,
    check: u64,
}

impl Header {
    /// The encoded header of a payload.
    pub fn encode(tag: Tag, payload: &[u8]) -> Result<[u8; HEADER_BYTES], WireError> {
        let length = payload.len();
        let max = tag.payload_bytes_max();
        if length > max {
            return Err(WireError::TooLong { tag, length, max });
        }
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = tag as u8;
        bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        let check = xxh3_64_with_seed(payload, seed(&bytes));
        bytes[8..].copy_from_slice(&check.to_le_bytes());
        Ok(bytes)
    }

    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let tag = Tag::decode(bytes[0])?;
        if bytes[1..4] != [0; 3] {
            return Err(WireError::Reserved);
        }
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let max = tag.payload_bytes_max();
        if length > max {
            return Err(WireError::TooLong { tag, length, max });
        }
        let (_, check) = bytes.split_last_chunk().expect("a header is longer than its check");
        Ok(Self { tag, length, check: u64::from_le_bytes(*check) })
    }

    /// Whether `payload` is what was sent.
    pub fn verify(&self, payload: &[u8]) -> Result<(), WireError> {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.tag as u8;
        bytes[4..8].copy_from_slice(&(self.length as u32).to_le_bytes());
        if xxh3_64_with_seed(payload, seed(&bytes)) == self.check {
            Ok(())
        } else {
            Err(WireError::Checksum { tag: self.tag })
        }
    }
}

/// The header's tag and length, so that the checksum covers them too.
fn seed(header: &[u8; HEADER_BYTES]) -> u64 {
    let (first, _) = header.split_first_chunk().expect("a header is longer than its seed");
    u64::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frame_survives_and_one_flipped_bit_does_not(
            payload in prop::collection::vec(any::<u8>(), 1..600),
            flip in any::<prop::sample::Index>(),
        ) {
            let header = Header::encode(Tag::Control, &payload).unwrap();
            let decoded = Header::decode(&header).unwrap();
            prop_assert_eq!(decoded.verify(&payload), Ok(()));
            let mut whole = [&header[..], &payload].concat();
            let bit = flip.index(whole.len() * 8);
            whole[bit / 8] ^= 1 << (bit % 8);
            let header = Header::decode(whole[..HEADER_BYTES].try_into().unwrap());
            prop_assert!(header.is_err() || header.unwrap().verify(&whole[HEADER_BYTES..]).is_err());
        }

        #[test]
        fn arbitrary_headers_never_claim_more_than_the_limit(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.length <= header.tag.payload_bytes_max());
            }
        }
    }
}
