//! Names and identifiers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id! {
    /// One VM, for as long as it is defined.
    VmId
}
uuid_id! {
    /// One task of the manager.
    TaskId
}
uuid_id! {
    /// One attempt to move one VM; a retry has a new id.
    MigrationId
}

/// Longest [`Name`] accepted, in bytes: a host name's label.
pub const NAME_BYTES_MAX: usize = 63;

/// A name that a person types: 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
///
/// Such a name is safe in a path, a URL and a command line without quoting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The name of a host, unique in the cluster.
pub type HostName = Name;
/// The name of a VM, unique in the cluster.
pub type VmName = Name;

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a valid name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct InvalidName(pub String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid_first = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let valid_rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if valid_first && valid_rest && text.len() <= NAME_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.chars().take(NAME_BYTES_MAX + 1).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Grows by one with every change of a VM's owner. 0 means that no host has owned the VM yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next owner. There is always one: the last number, which only a hostile peer names, stays.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_epoch_that_a_peer_can_name_is_harmless() {
        assert_eq!(Epoch(u64::MAX).next(), Epoch(u64::MAX));
    }

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for bad in ["", "-a", ".hidden", "a b", "a/b", "..", "ü", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "web1", "host-b.rack_2", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_bad_name_inside_json_is_refused_with_the_rule() {
        let error = serde_json::from_str::<Name>("\"a/b\"").unwrap_err().to_string();
        assert!(error.contains("letters, digits"), "{error}");
    }
}
