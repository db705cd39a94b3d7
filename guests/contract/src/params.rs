//! Parameters on the kernel's command line: `godwit.KEY=VALUE`, separated by blanks, in any order; the last one counts.
//!
//! | parameter | value | default |
//! | --- | --- | --- |
//! | `godwit.ip` | static IPv4 address and prefix length of the first network card, `10.77.0.10/24` | none: no network |
//! | `godwit.ws` | working set in bytes, with `KiB`, `MiB` or `GiB` | `64MiB` |
//! | `godwit.hot` | how much of the working set is rewritten, after its first pass | all of it |
//! | `godwit.rate` | pages rewritten a second; `0`: as fast as possible; `idle`: never | `1000` |
//! | `godwit.burst` | what of the rate is caught up with by who was kept from it, in microseconds of work (reference guest) | `50000` |
//! | `godwit.writers` | how many vCPUs rewrite their share after its first pass, while the others only check theirs (reference guest) | all of them |
//! | `godwit.content` | `zero`, `compressible` or `random` | `random` |
//! | `godwit.disk` | `on` or `off` | `on` |
//! | `godwit.service` | `on` or `off`: what is on the second disk runs (Linux guest) | `off` |
//! | `godwit.pulse` | `on` or `off`: the [pulse](crate::pulse) on the serial console (reference guest) | `off` |
//! | `godwit.seed` | number that sets this run's pages apart from others' | `1` |

use core::fmt;
use core::net::Ipv4Addr;

use crate::pacer::BURST_US;
use crate::page::Content;

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Address and prefix length.
    pub ip: Option<(Ipv4Addr, u8)>,
    /// Working set in bytes.
    pub working_set: u64,
    /// How much of the working set is rewritten once all of it has its content, in bytes.
    pub hot: Option<u64>,
    pub rate: Rate,
    /// What of the rate is caught up with, in microseconds of work.
    pub burst_us: u64,
    /// How many vCPUs go on writing once all pages have their content.
    pub writers: Option<u64>,
    pub content: Content,
    /// Whether records are written to the first disk.
    pub disk: bool,
    /// Whether the second disk holds a system of its own, whose program is to run.
    pub service: bool,
    /// Whether the pulse is printed.
    pub pulse: bool,
    pub seed: u64,
}

/// How fast the working set is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    Idle,
    PagesPerSecond(u64),
    Unlimited,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            ip: None,
            working_set: 64 << 20,
            hot: None,
            rate: Rate::PagesPerSecond(1000),
            burst_us: BURST_US,
            writers: None,
            content: Content::Random,
            disk: true,
            service: false,
            pulse: false,
            seed: 1,
        }
    }
}

impl Parameters {
    /// Reads a command line. Words that do not begin with `godwit.` are left to others.
    pub fn parse(command_line: &str) -> Result<Self, BadParameter<'_>> {
        let mut parameters = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some(word) = word.strip_prefix("godwit.") else { continue };
            let (key, value) = word.split_once('=').ok_or(BadParameter { word })?;
            parameters.set(key, value).ok_or(BadParameter { word })?;
        }
        Ok(parameters)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "ip" => self.ip = Some(cidr(value)?),
            "ws" => self.working_set = size(value)?,
            "hot" => self.hot = Some(size(value)?),
            "rate" => self.rate = rate(value)?,
            "burst" => self.burst_us = value.parse().ok()?,
            "writers" => self.writers = Some(value.parse().ok()?),
            "content" => self.content = content(value)?,
            "disk" => self.disk = switch(value)?,
            "service" => self.service = switch(value)?,
            "pulse" => self.pulse = switch(value)?,
            "seed" => self.seed = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

fn cidr(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = value.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some((address.parse().ok()?, prefix))
}

fn size(value: &str) -> Option<u64> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &value[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn rate(value: &str) -> Option<Rate> {
    Some(match value {
        "idle" => Rate::Idle,
        "0" => Rate::Unlimited,
        number => Rate::PagesPerSecond(number.parse().ok()?),
    })
}

fn content(value: &str) -> Option<Content> {
    Some(match value {
        "zero" => Content::Zero,
        "compressible" => Content::Compressible,
        "random" => Content::Random,
        _ => return None,
    })
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// A parameter that the guest does not know, or a value that it does not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadParameter<'a> {
    word: &'a str,
}

impl fmt::Display for BadParameter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command line: `godwit.{}` is not understood", self.word)
    }
}

impl core::error::Error for BadParameter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::string::ToString;

    #[test]
    fn every_parameter_is_read_among_foreign_words() {
        let line = "console=ttyS0 godwit.ip=10.77.0.10/24  godwit.ws=256MiB godwit.hot=32MiB godwit.rate=0 godwit.burst=900 godwit.writers=1 godwit.content=zero \
                    godwit.disk=off godwit.service=on godwit.pulse=on godwit.seed=7 quiet";
        let expected = Parameters {
            ip: Some((Ipv4Addr::new(10, 77, 0, 10), 24)),
            working_set: 256 << 20,
            hot: Some(32 << 20),
            burst_us: 900,
            writers: Some(1),
            rate: Rate::Unlimited,
            content: Content::Zero,
            disk: false,
            service: true,
            pulse: true,
            seed: 7,
        };
        assert_eq!(Parameters::parse(line), Ok(expected));
        assert_eq!(Parameters::parse(""), Ok(Parameters::default()));
        assert_eq!(Parameters::parse("godwit.rate=idle").unwrap().rate, Rate::Idle);
        assert_eq!(Parameters::parse("godwit.rate=500").unwrap().rate, Rate::PagesPerSecond(500));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for word in [
            "ip=10.77.0.10",
            "ip=10.77.0.10/33",
            "ip=10.77.0/24",
            "ws=",
            "ws=1TiB",
            "ws=99999999999GiB",
            "ws=-1",
            "hot=most",
            "pulse=fast",
            "rate=fast",
            "rate=",
            "content=",
            "disk=idle",
            "seed=x",
            "color=red",
            "ip",
        ] {
            let line = std::format!("a godwit.{word} b");
            let error = Parameters::parse(&line).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
