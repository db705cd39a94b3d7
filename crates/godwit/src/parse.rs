//! Texts of the command line that stand for more than a name or a number.

mod rulebook;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use godwit_types::migration::{OnDeadline, SLOWDOWN_PERCENT_MAX};
use godwit_types::vm::{CpuProfile, DatastorePath, DiskFormat, DiskSpec, MachineType, NicSpec};
use godwit_types::{Bytes, Name};

pub(crate) use rulebook::{
    HostOption, Limit, Switch, WattsOption, automation, bits_limit, bytes_limit, count_limit, mhz, mhz_limit,
};

/// A time span, written `50ms`, `10s`, `5m` or `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Duration {
    pub ms: u64,
}

/// Bytes per second, written as a size; none of them is no rate.
pub(crate) fn rate(text: &str) -> Result<Bytes, String> {
    match text.parse() {
        Ok(Bytes(0)) => {
            Err("a bandwidth of 0 lets nothing through: leave it out, or allow at least some".into())
        }
        Ok(rate) => Ok(rate),
        Err(error) => Err(display(error)),
    }
}

/// A part of a guest's speed in percent, with or without the sign.
pub(crate) fn slowdown(text: &str) -> Result<u8, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).parse().ok();
    percent.filter(|percent| *percent <= SLOWDOWN_PERCENT_MAX).ok_or_else(|| {
        format!("'{text}' is no part of a guest's speed: write 0% to {SLOWDOWN_PERCENT_MAX}%, such as 40%")
    })
}

/// A rate as above, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateOption(pub Option<Bytes>);

impl FromStr for RateOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self(None)) } else { rate(text).map(Some).map(Self) }
    }
}

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let factor = DURATION_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
        number
            .parse::<u64>()
            .ok()
            .zip(factor)
            .and_then(|(number, factor)| number.checked_mul(*factor))
            .map(|ms| Self { ms })
            .ok_or_else(|| {
                format!(
                    "'{text}' is not a time span: write a whole number with ms, s, m, h or d, such as 50ms"
                )
            })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.ms >= *factor && self.ms.is_multiple_of(*factor);
        let (unit, factor) = DURATION_UNITS.iter().rev().find(fits).unwrap_or(&DURATION_UNITS[0]);
        write!(f, "{}{unit}", self.ms / factor)
    }
}

/// `FIRST-LAST`: numbers of users, neither root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserRange(pub RangeInclusive<u32>);

impl FromStr for UserRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range =
            text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
        // The highest number means "no user" to the kernel.
        let range = range.filter(|range| *range.start() > 0 && !range.is_empty() && *range.end() < u32::MAX);
        range.map(Self).ok_or_else(|| {
            format!(
                "'{text}' is not a range of users: write two numbers above 0, such as 1900000000-1900004095"
            )
        })
    }
}

/// `DATASTORE/PATH[,format=raw|qcow2][,readonly]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskOption(pub DiskSpec);

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let image: DatastorePath = parts.next().unwrap_or_default().parse().map_err(display)?;
        let mut disk = DiskSpec { image, format: DiskFormat::Raw, read_only: false };
        for part in parts {
            match part {
                "format=raw" => disk.format = DiskFormat::Raw,
                "format=qcow2" => disk.format = DiskFormat::Qcow2,
                "readonly" => disk.read_only = true,
                other => return Err(unknown("disk", other, "format=raw, format=qcow2 or readonly")),
            }
        }
        Ok(Self(disk))
    }
}

/// `network=NAME[,mac=MAC]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicOption(pub NicSpec);

impl FromStr for NicOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut network, mut mac) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("network", name)) => network = Some(name.parse::<Name>().map_err(display)?),
                Some(("mac", address)) => mac = Some(address.parse().map_err(display)?),
                _ => return Err(unknown("network card", part, "network=NAME or mac=MAC")),
            }
        }
        let network =
            network.ok_or("a network card needs network=NAME, the guest network it is plugged into")?;
        Ok(Self(NicSpec { network, mac }))
    }
}

/// `NAME=BRIDGE[,uplink=INTERFACE]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkOption {
    pub name: Name,
    pub bridge: String,
    pub uplink: Option<String>,
}

impl FromStr for NetworkOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let (name, bridge) = parts
            .next()
            .and_then(|part| part.split_once('='))
            .ok_or_else(|| format!("'{text}' is not a network: write NAME=BRIDGE, such as guests=br0"))?;
        let name = name.parse().map_err(display)?;
        let bridge = interface(bridge)?;
        let mut uplink = None;
        for part in parts {
            match part.split_once('=') {
                Some(("uplink", name)) => uplink = Some(interface(name)?),
                _ => return Err(unknown("network", part, "uplink=INTERFACE")),
            }
        }
        Ok(Self { name, bridge, uplink })
    }
}

/// `NAME=DIR`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatastoreOption {
    pub name: Name,
    pub path: PathBuf,
}

impl FromStr for DatastoreOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, path) =
            text.split_once('=').filter(|(_, path)| path.starts_with('/')).ok_or_else(|| {
                format!("'{text}' is not a datastore: write NAME=/DIRECTORY, such as shared=/mnt/vms")
            })?;
        Ok(Self { name: name.parse().map_err(display)?, path: path.into() })
    }
}

/// `cluster`, `host` or `x86-64-v2`.
pub(crate) fn cpu_profile(text: &str) -> Result<CpuProfile, String> {
    match text {
        "cluster" => Ok(CpuProfile::Cluster),
        "host" => Ok(CpuProfile::Host),
        "x86-64-v2" => Ok(CpuProfile::X86_64V2),
        other => Err(unknown("CPU", other, "cluster, host or x86-64-v2")),
    }
}

/// The name of a machine type.
pub(crate) fn machine(text: &str) -> Result<MachineType, String> {
    let named = MachineType::ALL.into_iter().find(|machine| machine.name() == text);
    let names = || MachineType::ALL.map(MachineType::name).join(" or ");
    named.ok_or_else(|| unknown("machine", text, &names()))
}

/// `cancel` or `switch`.
pub(crate) fn on_deadline(text: &str) -> Result<OnDeadline, String> {
    match text {
        "cancel" => Ok(OnDeadline::Cancel),
        "switch" => Ok(OnDeadline::Switch),
        other => Err(unknown("deadline", other, "cancel or switch")),
    }
}

/// Longest name of a network interface that Linux takes, in bytes.
const INTERFACE_BYTES_MAX: usize = 15;

fn interface(name: &str) -> Result<String, String> {
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if name.is_empty() || name.len() > INTERFACE_BYTES_MAX || !plain {
        return Err(format!(
            "'{name}' is not an interface name: 1 to {INTERFACE_BYTES_MAX} characters without '/' or ':'"
        ));
    }
    Ok(name.to_owned())
}

fn unknown(what: &str, part: &str, known: &str) -> String {
    format!("a {what} option '{part}' is not known: write {known}")
}

fn display(error: impl fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_are_read_and_printed_as_people_write_them() {
        for (text, ms) in [("50ms", 50), ("10s", 10_000), ("2h", 7_200_000), ("7d", 604_800_000)] {
            let span: Duration = text.parse().unwrap();
            assert_eq!((span.ms, span.to_string().as_str()), (ms, text));
        }
        for bad in ["", "50", "ms", "-1s", "1.5s", "1 day", "99999999999999999999h"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_slow_down_is_a_part_of_the_whole_in_percent() {
        assert_eq!(["0", "40%", "99%"].map(slowdown), [Ok(0), Ok(40), Ok(99)]);
        for wrong in ["", "%", "100%", "-1%", "40 %", "0.5", "256"] {
            assert!(slowdown(wrong).unwrap_err().contains("write 0% to 99%"), "{wrong}");
        }
    }

    #[test]
    fn disks_take_a_format_and_refuse_what_they_do_not_know() {
        let DiskOption(disk) = "shared/a.qcow2,format=qcow2,readonly".parse().unwrap();
        assert_eq!((disk.format, disk.read_only), (DiskFormat::Qcow2, true));
        assert!("shared/a,format=vmdk".parse::<DiskOption>().unwrap_err().contains("format=vmdk"));
        assert!("../a".parse::<DiskOption>().is_err());
    }

    #[test]
    fn a_network_card_needs_a_network() {
        assert!("mac=52:54:00:00:00:01".parse::<NicOption>().unwrap_err().contains("network=NAME"));
        let NicOption(nic) = "network=guests,mac=52:54:00:00:00:01".parse().unwrap();
        assert_eq!(nic.network.as_str(), "guests");
    }

    #[test]
    fn a_bridge_name_that_linux_would_not_take_is_refused_here() {
        assert!("guests=br0,uplink=eth1".parse::<NetworkOption>().is_ok());
        for bad in ["guests", "guests=", "guests=a-name-that-is-too-long", "guests=b/r", "guests=br0,vlan=5"]
        {
            assert!(bad.parse::<NetworkOption>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_range_of_users_has_neither_root_nor_nobody_in_it() {
        let UserRange(users) = "1000-1003".parse().unwrap();
        assert_eq!(users.count(), 4);
        for bad in ["", "7", "0-9", "9-8", "1-4294967295", "a-b"] {
            assert!(bad.parse::<UserRange>().is_err(), "{bad:?} was accepted");
        }
    }
}
