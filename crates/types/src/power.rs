//! How hosts are switched off and on.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::Name;
use crate::vm::MacAddress;

/// Where magic packets go if nothing else is said: to everybody in the manager's own network, at the port "discard".
pub const WAKE_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::BROADCAST), 9);

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
        let Self::Ipmi { address, user, .. } = self else { return None };
        let is_plain = |text: &str, more: &[u8]| {
            text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b':')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        if !is_plain(address, b".:-_") {
            return Some(
                "the address of a management controller is a name or an IP address, such as 10.0.0.7",
            );
        }
        (!is_plain(user, b"._-@"))
            .then_some("the user of a management controller is of letters, digits and ._-@")
    }
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
