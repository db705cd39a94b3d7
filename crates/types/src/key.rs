//! The secret that the two sides of a migration share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of a [`MigrationKey`], in bytes.
pub const MIGRATION_KEY_BYTES: usize = 32;

/// What proves to each side of one migration that the other is the right one. The manager draws it at random for each
/// migration and gives it to the two hosts; it is used for the handshakes, which agree on keys of their own, and is worth
/// nothing afterwards.
///
/// In documents it is written in hexadecimal digits; in messages for people it is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationKey([u8; MIGRATION_KEY_BYTES]);

impl MigrationKey {
    pub const fn from_bytes(bytes: [u8; MIGRATION_KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; MIGRATION_KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for MigrationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MigrationKey(secret)")
    }
}

impl From<MigrationKey> for String {
    fn from(key: MigrationKey) -> Self {
        key.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for MigrationKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a migration's key is 64 hexadecimal digits";
        let mut key = [0; MIGRATION_KEY_BYTES];
        if text.len() != 2 * MIGRATION_KEY_BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = str::from_utf8(digits).map_err(|_| WRONG)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| WRONG)?;
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_a_document_and_is_never_shown_to_people() {
        let key = MigrationKey::from_bytes(std::array::from_fn(|index| index as u8 * 7));
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<MigrationKey>(&text).unwrap(), key);
        assert!(text.starts_with("\"00070e"), "{text}");
        assert!(!format!("{key:?}").contains("070e"));
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"é".repeat(32), &"g".repeat(64)] {
            assert!(MigrationKey::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
