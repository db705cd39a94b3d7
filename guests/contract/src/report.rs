//! What `GET /report` answers.

use core::fmt;

/// The guest's account of itself; its `Display` is the JSON document.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report<'a> {
    /// `linux` or `reference`.
    pub guest: &'a str,
    pub uptime_us: u64,
    /// Heartbeats so far, one about every millisecond.
    pub beats: u64,
    /// Largest gap between two heartbeats since the last reset, by the guest's own clock.
    pub max_gap_us: u64,
    pub vcpus: u64,
    pub memory: MemoryReport<'a>,
    pub disk: DiskReport<'a>,
    /// Timer interrupts of each vCPU; empty if the guest does not count them.
    pub ticks: &'a [u64],
    /// Inter-processor interrupts received by each vCPU; empty if the guest does not count them.
    pub ipis: &'a [u64],
    /// How often one of its clocks was seen to have gone back.
    pub clock_steps_back: u64,
    /// The disruption marker of its VMClock; none if it has none, or does not look.
    pub disruptions: Option<u64>,
}

/// The memory workload.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryReport<'a> {
    pub working_set_bytes: u64,
    /// How often the whole working set has been rewritten.
    pub passes: u64,
    pub pages_checked: u64,
    pub errors: u64,
    pub first_error: Option<&'a str>,
}

/// The records on the disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskReport<'a> {
    /// Number of the last record that was written and flushed.
    pub acked: u64,
    /// Records read back and verified.
    pub read_back: u64,
    pub errors: u64,
    pub first_error: Option<&'a str>,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            guest,
            uptime_us,
            beats,
            max_gap_us,
            vcpus,
            memory,
            disk,
            ticks,
            ipis,
            clock_steps_back,
            disruptions,
        } = *self;
        write!(f, "{{\"guest\":{},\"uptime_us\":{uptime_us},\"beats\":{beats}", Text(Some(guest)))?;
        write!(f, ",\"max_gap_us\":{max_gap_us},\"vcpus\":{vcpus}")?;
        let MemoryReport { working_set_bytes, passes, pages_checked, errors, first_error } = memory;
        write!(f, ",\"memory\":{{\"working_set_bytes\":{working_set_bytes},\"passes\":{passes}")?;
        write!(f, ",\"pages_checked\":{pages_checked},\"errors\":{errors}")?;
        write!(f, ",\"first_error\":{}}}", Text(first_error))?;
        let DiskReport { acked, read_back, errors, first_error } = disk;
        write!(f, ",\"disk\":{{\"acked\":{acked},\"read_back\":{read_back},\"errors\":{errors}")?;
        write!(f, ",\"first_error\":{}}}", Text(first_error))?;
        write!(f, ",\"ticks\":{},\"ipis\":{}", Numbers(ticks), Numbers(ipis))?;
        write!(f, ",\"clock_steps_back\":{clock_steps_back}")?;
        match disruptions {
            Some(count) => write!(f, ",\"disruptions\":{count}}}"),
            None => f.write_str(",\"disruptions\":null}"),
        }
    }
}

/// A JSON string, or null.
struct Text<'a>(Option<&'a str>);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("null") };
        f.write_str("\"")?;
        for c in text.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}

/// A JSON array of numbers.
struct Numbers<'a>(&'a [u64]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, number) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{number}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::string::ToString;

    #[test]
    fn the_report_is_the_promised_json() {
        let report = Report {
            guest: "reference",
            uptime_us: 1,
            beats: 2,
            max_gap_us: 3,
            vcpus: 2,
            memory: MemoryReport {
                working_set_bytes: 4,
                passes: 5,
                pages_checked: 6,
                errors: 7,
                first_error: Some("a \"quoted\" \\ text\n"),
            },
            disk: DiskReport { acked: 8, read_back: 9, errors: 10, first_error: None },
            ticks: &[11, 12],
            ipis: &[],
            clock_steps_back: 14,
            disruptions: Some(13),
        };
        let parsed: serde_json::Value = serde_json::from_str(&report.to_string()).unwrap();
        let expected = serde_json::json!({
            "guest": "reference", "uptime_us": 1, "beats": 2, "max_gap_us": 3, "vcpus": 2,
            "memory": {"working_set_bytes": 4, "passes": 5, "pages_checked": 6, "errors": 7,
                       "first_error": "a \"quoted\" \\ text\n"},
            "disk": {"acked": 8, "read_back": 9, "errors": 10, "first_error": null},
            "ticks": [11, 12], "ipis": [], "clock_steps_back": 14, "disruptions": 13,
        });
        assert_eq!(parsed, expected);
    }
}
