//! How fast memory moves, against what this machine can do with as many bytes: no guest, no network but the loopback.
//!
//! ```text
//!   tcp         written to one end and read at the other into the same buffer again and again
//!   tcp-memory  the same into memory that nobody has touched before: what the first touch costs on this machine
//!   rustls      as `tcp` through rustls, as it comes
//!   godwit      a whole migration of a VM that stands still: from its memory into memory that nobody has touched before
//! ```

mod peers;
mod still;

use std::sync::Arc;
use std::time::Instant;

use godwit_lab::setup::say;
use godwit_types::{Bytes, MigrationKey};
use godwit_vmm::memory::Ram;
use serde::Serialize;

use crate::error::{BenchError, Result};
use crate::stats::median;
use crate::warm::Warm;

/// What is measured, and beside what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    name: &'static str,
    encrypted: bool,
    carrier: Carrier,
    /// What carries bytes of no meaning through the same streams; none if this is it.
    peer: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// The peer alone, into a buffer.
    Buffer,
    /// The peer alone, into fresh memory.
    Memory,
    Godwit,
}

const WAYS: [Way; 5] = [
    Way { name: "tcp", encrypted: false, carrier: Carrier::Buffer, peer: None },
    Way { name: "tcp-memory", encrypted: false, carrier: Carrier::Memory, peer: Some("tcp") },
    Way { name: "godwit-plain", encrypted: false, carrier: Carrier::Godwit, peer: Some("tcp") },
    Way { name: "rustls", encrypted: true, carrier: Carrier::Buffer, peer: None },
    Way { name: "godwit", encrypted: true, carrier: Carrier::Godwit, peer: Some("rustls") },
];

/// One way with a number of streams. Medians where there were several runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Goodput {
    pub(crate) case: &'static str,
    pub(crate) engine: &'static str,
    pub(crate) streams: u32,
    pub(crate) runs: u32,
    pub(crate) goodput_bytes_per_s: f64,
    /// Processor time of both ends, in seconds for 10^9 bytes.
    pub(crate) cpu_s_per_gb: f64,
    /// Its goodput as a part of its peer's in the same round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) of_peer: Option<f64>,
}

/// Moves `memory` of random bytes each way, `repeat` times in turn.
pub(crate) fn measure(memory: Bytes, streams: &[u32], repeat: u32) -> Result<Vec<Goodput>> {
    say(format_args!("filling {memory} with random bytes"));
    let from = Arc::new(Ram::new(memory).map_err(|error| BenchError::Memory(error.to_string()))?);
    still::fill(&from);
    let mut all = Vec::new();
    for count in streams {
        let mut rounds = Vec::new();
        for round in 1..=repeat {
            say(format_args!("{count} streams, round {round} of {repeat}"));
            rounds.push(one_round(&from, memory, *count)?);
        }
        all.extend(WAYS.iter().enumerate().map(|(index, way)| {
            let of = |value: fn(&Measured) -> f64| {
                rounds.iter().map(|round| value(&round[index])).collect::<Vec<_>>()
            };
            let peer = way.peer.and_then(|peer| WAYS.iter().position(|way| way.name == peer));
            let parts = peer.map(|peer| {
                rounds.iter().map(|round| round[index].rate / round[peer].rate).collect::<Vec<_>>()
            });
            Goodput {
                case: "goodput",
                engine: way.name,
                streams: *count,
                runs: repeat,
                goodput_bytes_per_s: median(&of(|measured| measured.rate)).unwrap_or(0.0),
                cpu_s_per_gb: median(&of(|measured| measured.cpu_s_per_gb)).unwrap_or(0.0),
                of_peer: parts.and_then(|parts| median(&parts)),
            }
        }));
    }
    Ok(all)
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    rate: f64,
    cpu_s_per_gb: f64,
}

fn one_round(from: &Arc<Ram>, memory: Bytes, streams: u32) -> Result<Vec<Measured>> {
    let session = godwit_tls::Session::new(&MigrationKey::from_bytes([7; 32]))
        .map_err(|error| BenchError::Secure(error.to_string()))?;
    let session = Arc::new(session);
    WAYS.iter()
        .map(|way| {
            let secure = way.encrypted.then(|| Arc::clone(&session));
            timed(memory, || match way.carrier {
                Carrier::Buffer => peers::carry(memory, streams, secure.as_deref(), peers::Into::Buffer),
                Carrier::Memory => peers::carry(memory, streams, secure.as_deref(), peers::Into::FreshMemory),
                Carrier::Godwit => still::migrate(from, memory, streams, secure),
            })
        })
        .collect()
}

fn timed(bytes: Bytes, carry: impl FnOnce() -> Result<()>) -> Result<Measured> {
    drop(Warm::hold(bytes)?);
    let (begun, cpu) = (Instant::now(), cpu_s()?);
    carry()?;
    let (took, cpu) = (begun.elapsed().as_secs_f64(), cpu_s()? - cpu);
    Ok(Measured { rate: bytes.0 as f64 / took, cpu_s_per_gb: cpu * 1e9 / bytes.0 as f64 })
}

/// Processor time of this process so far, in seconds.
fn cpu_s() -> Result<f64> {
    /// `USER_HZ`, the same on every machine that Godwit runs on (proc(5)).
    const TICKS_PER_S: f64 = 100.0;
    let failed = || BenchError::io("read /proc/self/stat");
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(failed())?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_S)
}
