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
    limit(text, mhz)
}

/// `none`, or what is read.
fn limit(text: &str, read: impl Fn(&str) -> Result<u64, String>) -> Result<Limit, String> {
    if text == "none" { Ok(Limit(None)) } else { read(text).map(|amount| Limit(Some(amount))) }
}

/// How fast a network is in bits per second, written `10Gbit` or `800Mbit`; or `none`.
pub(crate) fn bits_limit(text: &str) -> Result<Limit, String> {
    limit(text, bits)
}

fn bits(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000)];
    let read =
        |(unit, factor): &(&str, u64)| lower.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*factor);
    let bits = units.iter().find_map(read).filter(|bits| *bits > 0);
    bits.ok_or_else(|| {
        format!("'{text}' is no speed of a network: write a whole number with Mbit or Gbit, such as 10Gbit")
    })
}

/// A number above 0, or `none`.
pub(crate) fn count_limit(text: &str) -> Result<Limit, String> {
    let count = |text: &str| {
        let count = text.parse().ok().filter(|count| *count > 0);
        count.ok_or_else(|| format!("'{text}' is neither a number above 0 nor 'none'"))
    };
    limit(text, count)
}

/// A size, or `none`.
pub(crate) fn bytes_limit(text: &str) -> Result<Limit, String> {
    limit(text, |text| text.parse::<Bytes>().map(|bytes| bytes.0).map_err(display))
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
        assert_eq!(bits_limit("none"), Ok(Limit(None)));
        assert_eq!(count_limit("none"), Ok(Limit(None)));
    }

    #[test]
    fn what_a_network_and_disks_can_do_is_above_nothing() {
        assert_eq!(bits_limit("10Gbit"), Ok(Limit(Some(10_000_000_000))));
        assert_eq!(bits_limit("800Mbit"), Ok(Limit(Some(800_000_000))));
        assert_eq!(count_limit("50000"), Ok(Limit(Some(50_000))));
        for bad in ["", "10", "0Gbit", "10GB", "-1Gbit", "99999999999Gbit"] {
            assert!(bits_limit(bad).unwrap_err().contains("such as 10Gbit"), "{bad:?}");
        }
        assert!(count_limit("0").is_err() && count_limit("many").is_err());
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
