//! `simulate` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use godwit_types::Bytes;

use crate::parse::Duration;

/// What is to be simulated.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  godwit export --out cluster.jsonl
  godwit simulate --trace cluster.jsonl --report report
  godwit simulate --trace 20110303.csv.gz --hosts 8 --host-cpu-mhz 20000 --host-memory 256GiB
  godwit simulate --trace bitbrains_rnd --copies 3 --hosts 300 --until 24h --policy policy.json --json

A trace is JSON, one document a line; memory is in bytes, and a series that ends goes on with its last value:
  {\"trace\":1,\"interval_s\":300}
  {\"host\":\"h1\",\"cpu_mhz\":166400,\"memory\":549755813888,\"watts\":[150,400]}
  {\"vm\":\"web1\",\"host\":\"h1\",\"vcpus\":2,\"memory\":4294967296,\"cpu_mhz\":[800,950,700]}
A policy is a JSON document with what differs from the default, such as {\"threshold\":4,\"proposals_per_vm\":500}.")]
pub(crate) struct Simulate {
    /// The trace: a file, or a folder for Bitbrains. Files that end with .gz are unpacked by gzip.
    #[arg(long, value_name = "PATH")]
    pub trace: PathBuf,
    /// [default: Bitbrains for a folder, PlanetLab for .csv and .csv.gz, else Godwit's own].
    #[arg(long, value_enum)]
    pub format: Option<TraceFormat>,
    /// So many hosts of one kind, instead of the trace's [default: as many as memory and the highest load fill to 70 %].
    #[arg(long, value_name = "COUNT", conflicts_with = "hosts_file")]
    pub hosts: Option<u32>,
    /// What such a host has: all its cores together.
    #[arg(long, value_name = "MHZ", default_value_t = 166_400, conflicts_with = "hosts_file")]
    pub host_cpu_mhz: u64,
    #[arg(long, value_name = "SIZE", default_value = "512GiB", conflicts_with = "hosts_file")]
    pub host_memory: Bytes,
    /// What such a host draws, from idle to full, evenly spaced.
    #[arg(
        long,
        value_name = "WATTS,...",
        value_delimiter = ',',
        default_value = "150,400",
        conflicts_with = "hosts_file"
    )]
    pub host_watts: Vec<u32>,
    /// The hosts, as a trace has them, one a line.
    #[arg(long, value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
    /// Has each VM so many times, each copy a day later in the trace.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub copies: u16,
    /// The scheduler's policy, as JSON [default: the scheduler's own].
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Begin so far into the trace.
    #[arg(long, value_name = "TIME")]
    pub from: Option<Duration>,
    /// End so far into the trace.
    #[arg(long, value_name = "TIME")]
    pub until: Option<Duration>,
    /// Chance follows from it: the same seed gives the same report.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Write report.json and report.html there; the folder is made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
}

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceFormat {
    /// JSON, one document a line.
    Own,
    /// NAME,s0,s1,... in per cent of a VM's CPU, every five minutes.
    Planetlab,
    /// A folder with vm_meta.csv and the four series of GWA-T-12 on a grid of five minutes.
    Bitbrains,
}

/// Where the cluster is written to.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  godwit export --out cluster.jsonl && godwit simulate --trace cluster.jsonl")]
pub(crate) struct Export {
    /// The file; standard output if none.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
