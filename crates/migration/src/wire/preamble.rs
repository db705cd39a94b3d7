//! The first bytes of every connection, the same in all versions for ever.

use std::fmt;

use super::error::WireError;

/// What every connection begins with.
pub const MAGIC: [u8; 8] = *b"GODWITMV";
/// Length of an encoded [`Preamble`], in bytes.
pub const PREAMBLE_BYTES: usize = 16;
/// The oldest protocol version that this release speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest protocol version that this release speaks.
pub const VERSION_MAX: u16 = 1;

/// Which protocol versions a side speaks: the magic, two 16-bit numbers, four zero bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    pub min: u16,
    pub max: u16,
}

impl Preamble {
    /// What this release speaks.
    pub const OURS: Self = Self { min: VERSION_MIN, max: VERSION_MAX };

    pub fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.min.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.max.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, WireError> {
        let min = u16::from_le_bytes([bytes[8], bytes[9]]);
        let max = u16::from_le_bytes([bytes[10], bytes[11]]);
        if bytes[..8] != MAGIC || min > max { Err(WireError::Magic) } else { Ok(Self { min, max }) }
    }

    /// The highest version that both sides speak. Both compute the same.
    pub fn agree(self, theirs: Self) -> Result<u16, WireError> {
        let version = self.max.min(theirs.max);
        if version < self.min.max(theirs.min) {
            return Err(WireError::Version { ours: self, theirs });
        }
        Ok(version)
    }
}

impl fmt::Display for Preamble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_on_the_highest_common_version_or_name_both_ranges() {
        let ours = Preamble { min: 2, max: 4 };
        for (theirs, agreed) in [((3, 9), 4), ((1, 3), 3), ((1, 2), 2), ((4, 4), 4)] {
            let theirs = Preamble { min: theirs.0, max: theirs.1 };
            assert_eq!(ours.agree(theirs), Ok(agreed));
            assert_eq!(theirs.agree(ours), Ok(agreed));
        }
        let error = ours.agree(Preamble { min: 5, max: 6 }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no common protocol version: this side speaks 2 to 4, the peer speaks 5 to 6"
        );
    }

    #[test]
    fn other_protocols_are_told_apart() {
        assert_eq!(Preamble::decode(&Preamble::OURS.encode()), Ok(Preamble::OURS));
        assert_eq!(Preamble::decode(b"GET / HTTP/1.1\r\n"), Err(WireError::Magic));
        assert_eq!(Preamble::decode(&Preamble { min: 3, max: 2 }.encode()), Err(WireError::Magic));
    }
}
