//! Texts by which people lay down rules, pools, the policy and settings.

use std::str::FromStr;

use clap::ValueEnum;
use godwit_scheduler::policy::Automation;
use godwit_types::{Bytes, HostName, Name};

use super::{display, unknown};

/// `HOST` or `label:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostOption {
    Host(HostName),
    Label(Name),
}

impl FromStr for HostOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("label:") {
            Some(label) => label.parse().map(Self::Label).map_err(display),
            None => text.parse().map(Self::Host).map_err(display),
        }
    }
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// An amount in the resource's unit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(pub Option<u64>);

/// An amount of CPU in MHz, written `500`, `500MHz` or `2GHz`.
pub(crate) fn mhz(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (number, factor) = match (lower.strip_suffix("ghz"), lower.strip_suffix("mhz")) {
        (Some(number), _) => (number, 1000),
        (None, Some(number)) => (number, 1),
        (None, None) => (lower.as_str(), 1),
    };
    let amount = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    amount.ok_or_else(|| {
        format!("'{text}' is no amount of CPU: write a whole number with MHz or GHz, such as 500MHz")
    })
}

/// An amount of CPU, or `none`.
pub(crate) fn mhz_limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit(None)) } else { mhz(text).map(|mhz| Limit(Some(mhz))) }
}

/// A size, or `none`.
pub(crate) fn bytes_limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    text.parse::<Bytes>().map(|bytes| Limit(Some(bytes.0))).map_err(display)
}

/// `manual`, `partial`, `full` or `inherit`.
pub(crate) fn automation(text: &str) -> Result<Automation, String> {
    match text {
        "manual" => Ok(Automation::Manual),
        "partial" => Ok(Automation::Partial),
        "full" => Ok(Automation::Full),
        "inherit" => Ok(Automation::Inherit),
        other => Err(unknown("automation", other, "manual, partial, full or inherit")),
    }
}

/// `IDLE,..,FULL`: at least two, in watts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WattsOption(pub Vec<u32>);

impl FromStr for WattsOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let watts: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
        let watts = watts.ok().filter(|watts| watts.len() >= 2);
        watts.map(Self).ok_or_else(|| {
            format!(
                "'{text}' does not say what a host draws: write watts from idle to fully used, such as 90,180"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_read_as_people_write_it() {
        for (text, amount) in [("500", 500), ("500MHz", 500), ("2GHz", 2000), ("0", 0)] {
            assert_eq!(mhz(text), Ok(amount));
        }
        for bad in ["", "GHz", "-1", "1.5GHz", "2 GHz", "99999999999999999999"] {
            assert!(mhz(bad).unwrap_err().contains("such as 500MHz"), "{bad:?}");
        }
    }

    #[test]
    fn a_limit_can_be_lifted() {
        assert_eq!(mhz_limit("none"), Ok(Limit(None)));
        assert_eq!(bytes_limit("1GiB"), Ok(Limit(Some(1 << 30))));
        assert!(bytes_limit("nothing").is_err());
    }

    #[test]
    fn a_host_is_named_or_labelled() {
        assert_eq!("label:ssd".parse(), Ok(HostOption::Label("ssd".parse().unwrap())));
        assert_eq!("host-a".parse(), Ok(HostOption::Host("host-a".parse().unwrap())));
        assert!("lable:ssd".parse::<HostOption>().is_err());
    }

    #[test]
    fn what_a_host_draws_has_two_ends() {
        assert_eq!("90,120,180".parse(), Ok(WattsOption(vec![90, 120, 180])));
        for bad in ["90", "", "90,", "90,-1", "90,x"] {
            assert!(bad.parse::<WattsOption>().is_err(), "{bad:?}");
        }
    }
}
