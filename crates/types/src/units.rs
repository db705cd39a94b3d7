//! Units: sizes and guest frame numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The page size that every table, bitmap and wire record counts in, in bytes.
pub const PAGE_SIZE_BYTES: u64 = 4096;

/// A size in bytes. Reads and prints `64MiB`, `1GiB`, `512`; JSON carries the plain number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `count` mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// Whole pages in this size, rounded up.
    pub const fn pages(self) -> u64 {
        self.0.div_ceil(PAGE_SIZE_BYTES)
    }
}

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS.iter().find(|(_, s)| self.0 >> s > 0).unwrap_or(&UNITS[4]);
        if self.0.is_multiple_of(1 << shift) {
            f.pad(&format!("{}{unit}", self.0 >> shift))
        } else {
            f.pad(&format!("{:.1}{unit}", self.0 as f64 / (1u64 << shift) as f64))
        }
    }
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: write a whole number with KiB, MiB, GiB or TiB, such as 512MiB")]
pub struct InvalidBytes(pub String);

impl FromStr for Bytes {
    type Err = InvalidBytes;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBytes(text.to_owned());
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(invalid()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(invalid)
    }
}

/// A guest frame number: a guest-physical address divided by [`PAGE_SIZE_BYTES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The guest-physical address of the frame's first byte.
    pub const fn address(self) -> u64 {
        self.0 * PAGE_SIZE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them_and_printed_back() {
        for (text, bytes, printed) in [
            ("512MiB", 512 << 20, "512MiB"),
            ("1g", 1 << 30, "1GiB"),
            ("4096", 4096, "4KiB"),
            ("0", 0, "0B"),
            ("1536MiB", 1536 << 20, "1.5GiB"),
        ] {
            let size: Bytes = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, printed));
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "12 parsecs", "99999999999TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was accepted");
        }
    }
}
