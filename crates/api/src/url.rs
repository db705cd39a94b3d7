//! Addresses of API servers.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use hyper::Uri;

/// Where an API is served, written `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    /// `HOST:PORT`.
    authority: String,
}

/// Why a text is not a [`BaseUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address of an API: write http://HOST:PORT, such as http://127.0.0.1:7400")]
pub struct InvalidUrl(pub String);

impl BaseUrl {
    /// `HOST:PORT`, as it goes into the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The address of `path`, which begins with `/` and may have a query.
    pub(crate) fn join(&self, path: &str) -> Result<Uri, InvalidUrl> {
        let text = format!("{self}{path}");
        text.parse().map_err(|_| InvalidUrl(text))
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidUrl(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let plain =
            uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority =
            uri.authority().filter(|a| plain && a.port_u16().is_some() && !a.as_str().contains('@'));
        Ok(Self { authority: authority.ok_or_else(invalid)?.as_str().to_owned() })
    }
}

impl From<SocketAddr> for BaseUrl {
    fn from(address: SocketAddr) -> Self {
        Self { authority: address.to_string() }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_with_a_port_are_taken() {
        for good in ["http://127.0.0.1:7400", "http://manager.example:7400/", "http://[::1]:7400"] {
            assert_eq!(good.parse::<BaseUrl>().unwrap().to_string(), good.trim_end_matches('/'));
        }
        for bad in [
            "",
            "127.0.0.1:7400",
            "https://a:1",
            "http://a",
            "http://a:1/b",
            "http://a:1/?x",
            "http://u@a:1",
            "http://a:x",
        ] {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn paths_with_spaces_are_refused_and_not_sent() {
        let base: BaseUrl = "http://a:1".parse().unwrap();
        assert_eq!(base.join("/v1/vms?x=1").unwrap().to_string(), "http://a:1/v1/vms?x=1");
        assert!(base.join("/v1/vms/a b").is_err());
    }
}
