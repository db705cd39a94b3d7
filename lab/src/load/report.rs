//! What a guest says about itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;

use super::http::Connection;
use super::web;
use crate::namespace::Namespace;
use crate::{LabError, Result};

/// How long a guest may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The document at `GET /report`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GuestReport {
    /// `linux` or `reference`.
    pub guest: String,
    pub uptime_us: u64,
    /// Turns of the guest's own loop, about one a millisecond.
    pub beats: u64,
    /// The longest time between two beats since the last reset, by the guest's own clock.
    pub max_gap_us: u64,
    pub vcpus: u32,
    pub memory: MemoryReport,
    pub disk: DiskReport,
    /// Timer ticks of each vCPU; empty where the guest does not count them.
    #[serde(default)]
    pub ticks: Vec<u64>,
    /// Interrupts from each other vCPU; empty where the guest does not count them.
    #[serde(default)]
    pub ipis: Vec<u64>,
    /// How often one of the guest's clocks was seen to have gone back.
    pub clock_steps_back: u64,
}

/// The guest's memory, as it checks it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemoryReport {
    pub working_set_bytes: u64,
    /// Times that the whole working set was rewritten.
    pub passes: u64,
    pub pages_checked: u64,
    pub errors: u64,
    pub first_error: Option<String>,
}

/// The guest's disk, as it checks it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DiskReport {
    /// The newest record that was written and flushed.
    pub acked: u64,
    /// Records read back and compared.
    pub read_back: u64,
    pub errors: u64,
    pub first_error: Option<String>,
}

/// Asks a guest for its report.
pub fn fetch(client: &Namespace, guest: Ipv4Addr) -> Result<GuestReport> {
    let body = ask(client, guest, "GET", "/report", 200)?;
    serde_json::from_str(&body).map_err(|source| LabError::Document {
        what: format!("the report of the guest at {guest}"),
        found: body,
        source,
    })
}

/// Starts the guest's longest gap afresh.
pub fn reset_gap(client: &Namespace, guest: Ipv4Addr) -> Result<()> {
    ask(client, guest, "POST", "/gap/reset", 204).map(drop)
}

fn ask(client: &Namespace, guest: Ipv4Addr, method: &str, path: &str, expected: u16) -> Result<String> {
    let asked = client.within(|| Connection::open(web(guest), ANSWER_LIMIT)?.request(method, path))?;
    let (status, body) = asked.map_err(LabError::io(format!("{method} http://{guest}{path}")))?;
    if status == expected {
        Ok(body)
    } else {
        Err(LabError::Broken(format!("{method} http://{guest}{path} was answered with status {status}")))
    }
}
