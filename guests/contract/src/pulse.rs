//! The pulse: a line that a guest prints on its serial console some ten times a second, so that a bench can watch it
//! under any hypervisor. Numbers in decimal, the check word in hexadecimal:
//!
//! ```text
//! @NUMBER NOW_US BEATS WRITTEN SWEEPS ERRORS GAP GAP GAP CHECK
//! ```
//!
//! A move may tear a line or two. The check word tells, and since each line names the gaps of the two lines before it as
//! well, none is lost.

use core::fmt::{self, Write};

use crate::fnv::{FNV_START, fnv1a_64, fnv1a_64_onto};

/// What is typed to have every page of the working set checked once, as fast as can be.
pub const SWEEP: u8 = b's';
/// Time between two lines, in microseconds of the guest's own clock.
pub const PULSE_INTERVAL_US: u64 = 100_000;
/// How many lines name the same gap.
pub const GAPS: usize = 3;
/// Longest line, in bytes, without its end.
pub const PULSE_BYTES_MAX: usize = 200;

/// What one line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    /// Counts the lines.
    pub number: u64,
    /// Since boot, by the guest's own clock, in microseconds.
    pub now_us: u64,
    /// Heartbeats so far, one about every millisecond.
    pub beats: u64,
    /// Pages that the memory workload has written so far.
    pub written: u64,
    /// How often every page has been checked because it was asked for by [`SWEEP`].
    pub sweeps: u64,
    /// Errors that the memory workload has found.
    pub errors: u64,
    /// Largest gap between two heartbeats since the line before, in microseconds, then the same of the lines before that.
    pub gaps_us: [u64; GAPS],
}

impl fmt::Display for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut summing = Summing { sink: f, sum: FNV_START };
        let Self { number, now_us, beats, written, sweeps, errors, gaps_us } = self;
        write!(summing, "@{number} {now_us} {beats} {written} {sweeps} {errors}")?;
        for gap in gaps_us {
            write!(summing, " {gap}")?;
        }
        let sum = summing.sum;
        write!(f, " {:08x}", check_word(sum))
    }
}

impl Pulse {
    /// Reads a line; `None` if it is another line, or not whole.
    pub fn parse(line: &str) -> Option<Self> {
        // What was torn off before it may stand on the same line.
        let line = &line[line.rfind('@')?..];
        let (text, check) = line.trim_end().rsplit_once(' ')?;
        if u32::from_str_radix(check, 16).ok()? != check_word(fnv1a_64(text.as_bytes())) {
            return None;
        }
        let mut numbers = text[1..].split(' ').map(|word| word.parse().ok());
        let mut next = || numbers.next().flatten();
        let (number, now_us, beats, written) = (next()?, next()?, next()?, next()?);
        let (sweeps, errors) = (next()?, next()?);
        Some(Self { number, now_us, beats, written, sweeps, errors, gaps_us: [next()?, next()?, next()?] })
    }
}

const fn check_word(sum: u64) -> u32 {
    (sum ^ (sum >> 32)) as u32
}

struct Summing<'a, 'b> {
    sink: &'a mut fmt::Formatter<'b>,
    sum: u64,
}

impl Write for Summing<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.sum = fnv1a_64_onto(self.sum, text.as_bytes());
        self.sink.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::string::ToString;

    const PULSE: Pulse = Pulse {
        number: 7,
        now_us: 812_345,
        beats: 811,
        written: 123_456,
        sweeps: 1,
        errors: 0,
        gaps_us: [1_003, 45_000, 1_010],
    };

    #[test]
    fn what_is_printed_can_be_read() {
        assert_eq!(Pulse::parse(&PULSE.to_string()), Some(PULSE));
        assert_eq!(Pulse::parse(&std::format!("{PULSE}\r\n")), Some(PULSE));
        assert_eq!(Pulse::parse(&std::format!("@6 71 23{PULSE}")), Some(PULSE));
    }

    #[test]
    fn the_longest_line_fits() {
        let most = u64::MAX;
        let longest = Pulse {
            number: most,
            now_us: most,
            beats: most,
            written: most,
            sweeps: most,
            errors: most,
            gaps_us: [most; GAPS],
        };
        assert!(longest.to_string().len() <= PULSE_BYTES_MAX);
        assert_eq!(Pulse::parse(&longest.to_string()), Some(longest));
    }

    #[test]
    fn a_torn_line_is_no_pulse() {
        let line = PULSE.to_string();
        for cut in 0..line.len() {
            assert_eq!(Pulse::parse(&line[..cut]), None, "cut at {cut}");
            let without = [&line[..cut], &line[cut + 1..]].concat();
            assert_eq!(Pulse::parse(&without), None, "without byte {cut}");
        }
        for other in ["", "@", "godwit: 2 vCPUs", "@1 2 3"] {
            assert_eq!(Pulse::parse(other), None);
        }
    }
}
