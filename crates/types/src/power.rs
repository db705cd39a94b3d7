//! How hosts are switched off and on.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::Name;
use crate::vm::MacAddress;

/// Where magic packets go if nothing else is said: to everybody in the manager's own network, at the port "discard".
pub const WAKE_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::BROADCAST), 9);

/// Where controllers speak Redfish if nothing else is said.
pub const REDFISH_PORT: u16 = 443;

/// What switches a host. Secrets and programs are named, and lie in the directory `power` of the manager's state: who may
/// only use the API can neither see one nor bring one in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum PowerDriver {
    /// People alone.
    #[default]
    None,
    /// The host's management controller, by `ipmitool`.
    Ipmi {
        /// The controller's name or address.
        address: String,
        user: String,
        /// The file with its password, which nobody but its owner may read.
        password: Name,
    },
    /// The host's management controller, by Redfish.
    Redfish {
        /// The controller's name or address.
        address: String,
        #[serde(default = "redfish_port")]
        port: u16,
        user: String,
        /// The file with its password, which nobody but its owner may read.
        password: Name,
        /// The id of the computer there; not needed if the controller has one alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system: Option<String>,
        /// The SHA-256 fingerprint of its certificate; without, its certificate must be one that the manager's machine trusts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        fingerprint: Option<Fingerprint>,
        /// Whether it is switched off as if its power were cut, without the host's software being asked.
        #[serde(default)]
        force_off: bool,
    },
    /// A magic packet wakes it; its own agent switches it off.
    WakeOnLan {
        mac: MacAddress,
        #[serde(default = "wake_default")]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        to: SocketAddr,
    },
    /// A program, called with `wake`, `standby` or `state` and the host's name; for `state` it prints `on` or `off`.
    Simulated { program: Name },
}

impl PowerDriver {
    /// What is wrong with it, if anything, with what to do.
    pub fn fault(&self) -> Option<&'static str> {
        let (address, user, system) = match self {
            Self::Ipmi { address, user, .. } => (address, user, None),
            Self::Redfish { address, user, system, .. } => (address, user, system.as_deref()),
            Self::None | Self::WakeOnLan { .. } | Self::Simulated { .. } => return None,
        };
        let is_plain = |text: &str, more: &[u8]| {
            text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b':')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        if !is_plain(address, b".:-_") {
            return Some(
                "the address of a management controller is a name or an IP address, such as 10.0.0.7",
            );
        }
        if system.is_some_and(|system| !is_plain(system, b"._-")) {
            return Some("the id of a computer is of letters, digits and ._-, such as System.Embedded.1");
        }
        (!is_plain(user, b"._-@"))
            .then_some("the user of a management controller is of letters, digits and ._-@")
    }
}

/// The SHA-256 digest of a certificate, written as `openssl x509 -fingerprint -sha256` does: in hexadecimal, with colons or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

/// Why a text is not a [`Fingerprint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no SHA-256 fingerprint: write its 32 bytes in hexadecimal, as openssl x509 -noout -fingerprint -sha256 does"
)]
pub struct InvalidFingerprint(String);

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidFingerprint(text.chars().take(100).collect());
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(invalid());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            let (high, low) = digit(0).zip(digit(1)).ok_or_else(invalid)?;
            // Two digits of 4 bits each.
            *byte = (high << 4 | low) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        f.write_str(&bytes.join(":"))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = InvalidFingerprint;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

const fn redfish_port() -> u16 {
    REDFISH_PORT
}

fn wake_default() -> SocketAddr {
    WAKE_DEFAULT
}

/// Whether a host is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    On,
    Off,
    /// Nothing can tell: it is silent, and has no management controller to ask.
    Unknown,
}

/// `GET /v1/hosts/{host}/power`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PowerReport {
    pub state: PowerState,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipmi(address: &str, user: &str) -> PowerDriver {
        let password = "bmc".parse().unwrap();
        PowerDriver::Ipmi { address: address.into(), user: user.into(), password }
    }

    #[test]
    fn what_could_be_taken_for_an_option_is_no_address_and_no_user() {
        for (address, user) in [("10.0.0.7", "root"), ("fd00::7", "admin@site"), ("bmc-7.example", "op_1")] {
            assert_eq!(ipmi(address, user).fault(), None);
        }
        for (address, user) in
            [("-f", "root"), ("", "root"), ("a b", "root"), ("10.0.0.7", "-E"), ("10.0.0.7", "")]
        {
            assert!(ipmi(address, user).fault().is_some(), "{address:?} {user:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_openssl_writes_it_and_with_nothing_missing() {
        let text = "AB:".repeat(31) + "0C";
        let fingerprint: Fingerprint = text.parse().unwrap();
        assert_eq!(
            (fingerprint.0[0], fingerprint.0[31], fingerprint.to_string()),
            (0xab, 0x0c, text.clone())
        );
        assert_eq!(text.replace(':', "").to_lowercase().parse(), Ok(fingerprint));
        for bad in ["", "AB", &text[3..], "é".repeat(32).as_str(), &text.replace('C', "G")] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_controller_of_redfish_needs_a_user_and_little_else() {
        let text = r#"{"kind": "redfish", "address": "10.0.0.7", "user": "root", "password": "bmc"}"#;
        let mut driver: PowerDriver = serde_json::from_str(text).unwrap();
        assert!(
            matches!(driver, PowerDriver::Redfish { port: REDFISH_PORT, force_off: false, .. }),
            "{driver:?}"
        );
        assert_eq!(driver.fault(), None);
        let PowerDriver::Redfish { system, .. } = &mut driver else { panic!("{driver:?}") };
        *system = Some("../Managers/1".into());
        assert!(driver.fault().is_some());
    }

    #[test]
    fn a_magic_packet_goes_to_everybody_unless_told_otherwise() {
        let driver: PowerDriver =
            serde_json::from_str(r#"{"kind": "wake_on_lan", "mac": "52:54:00:00:00:01"}"#).unwrap();
        assert!(matches!(driver, PowerDriver::WakeOnLan { to: WAKE_DEFAULT, .. }), "{driver:?}");
        assert!(
            serde_json::from_str::<PowerDriver>(r#"{"kind": "simulated", "program": "lab", "mac": "x"}"#)
                .is_err()
        );
    }
}
