//! Traces, hosts and policies from files.

use std::fs;
use std::path::Path;
use std::process::Command;

use godwit_scheduler::policy::Policy;
use godwit_simulator::Trace;
use godwit_simulator::format::{self, Bitbrains};
use godwit_simulator::trace::HostRecord;
use godwit_types::{ApiError, Bytes, ErrorCode};

use crate::cli::simulate::{Simulate, TraceFormat};

/// To what part hosts are filled whose number nobody has said, in per cent.
const FILLED_PERCENT: u64 = 70;

/// The trace that the options describe.
pub(super) fn trace(options: &Simulate) -> Result<Trace, ApiError> {
    let path = &options.trace;
    let format = options.format.unwrap_or_else(|| guess(path));
    let mut trace = match format {
        TraceFormat::Own => format::own(&text(path)?).map_err(|error| invalid(path, &error))?,
        TraceFormat::Planetlab => format::planetlab(&text(path)?).map_err(|error| invalid(path, &error))?,
        TraceFormat::Bitbrains => bitbrains(path)?,
    };
    trace = trace.copied(options.copies.into()).map_err(|error| invalid(path, &error))?;
    let ms = |time: Option<crate::parse::Duration>| time.map(|time| time.ms);
    trace = trace
        .between(ms(options.from).unwrap_or(0), ms(options.until).unwrap_or(u64::MAX))
        .ok_or_else(|| invalid(path, &"there is nothing between --from and --until"))?;
    if let Some(path) = &options.hosts_file {
        trace.hosts = format::own(&text(path)?).map_err(|error| invalid(path, &error))?.hosts;
        forget_unknown_hosts(&mut trace);
    } else if options.hosts.is_some() || trace.hosts.is_empty() {
        let count = options.hosts.map_or_else(|| enough(&trace, options), u64::from);
        trace.hosts = alike(count, options)?;
        forget_unknown_hosts(&mut trace);
    }
    Ok(trace)
}

/// The policy in that file.
pub(super) fn policy(path: &Path) -> Result<Policy, ApiError> {
    serde_json::from_str(&text(path)?).map_err(|error| invalid(path, &error))
}

fn guess(path: &Path) -> TraceFormat {
    let name = path.to_string_lossy();
    if path.is_dir() {
        TraceFormat::Bitbrains
    } else if name.ends_with(".csv") || name.ends_with(".csv.gz") {
        TraceFormat::Planetlab
    } else {
        TraceFormat::Own
    }
}

fn bitbrains(folder: &Path) -> Result<Trace, ApiError> {
    let read = |name: &str| text(&folder.join(name));
    let (meta, cpu) = (read("vm_meta.csv")?, read("cpu_usage_mhz_5min.csv.gz")?);
    let (memory, disk) = (read("mem_usage_kb_5min.csv.gz")?, read("disk_rd_wr_kbps_5min.csv.gz")?);
    let network = read("net_rx_tx_kbps_5min.csv.gz")?;
    let texts = Bitbrains { meta: &meta, cpu: &cpu, memory: &memory, disk: &disk, network: &network };
    format::bitbrains(&texts)
        .map_err(|(which, error)| invalid(folder, &format_args!("{which} series, {error}")))
}

/// So many hosts as the options say.
fn alike(count: u64, options: &Simulate) -> Result<Vec<HostRecord>, ApiError> {
    let digits = count.max(1).ilog10() as usize + 1;
    let host = |number: u64| {
        let name =
            format!("host-{number:0digits$}").parse().map_err(|error| invalid(&options.trace, &error))?;
        let mut host = HostRecord::new(name, options.host_cpu_mhz, options.host_memory.0);
        host.watts.clone_from(&options.host_watts);
        Ok(host)
    };
    (1..=count).map(host).collect()
}

/// As many hosts as the VMs' memory and their highest load fill to a part.
fn enough(trace: &Trace, options: &Simulate) -> u64 {
    let memory: u64 = trace.vms.iter().map(|vm| vm.memory).sum();
    let load = |step: usize| trace.vms.iter().map(|vm| vm.demand(step).cpu).sum::<u64>();
    let peak = (0..trace.steps()).map(load).max().unwrap_or(0);
    let hosts = |wanted: u64, each: u64| (wanted / FILLED_PERCENT * 100).div_ceil(each.max(1));
    hosts(memory, options.host_memory.0).max(hosts(peak, options.host_cpu_mhz)).max(1)
}

/// VMs start anew where other hosts are put in the place of the trace's.
fn forget_unknown_hosts(trace: &mut Trace) {
    for vm in &mut trace.vms {
        vm.host = vm.host.take().filter(|host| trace.hosts.iter().any(|known| known.name == *host));
    }
}

/// A file's text, unpacked by gzip if its name says so.
fn text(path: &Path) -> Result<String, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Failed, format!("cannot read {}: {error}", path.display()))
    };
    if path.extension().is_none_or(|extension| extension != "gz") {
        return fs::read_to_string(path).map_err(|error| failed(&error));
    }
    // It says better what is wrong with a file that cannot be opened.
    fs::File::open(path).map_err(|error| failed(&error))?;
    let unpacked = Command::new("gzip").arg("-dc").arg("--").arg(path).output();
    let unpacked = unpacked.map_err(|error| failed(&format_args!("gzip does not run: {error}")))?;
    if !unpacked.status.success() {
        return Err(failed(&String::from_utf8_lossy(&unpacked.stderr).trim()));
    }
    String::from_utf8(unpacked.stdout).map_err(|_| invalid(path, &"it is not text"))
}

fn invalid(path: &Path, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Invalid, format!("{}: {error}", path.display()))
}

/// A size as people read it.
pub(super) fn gib(gib: f64) -> String {
    Bytes((gib * f64::from(1 << 30)) as u64).to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    const TRACE: &str = "{\"trace\":1,\"interval_s\":300}\n{\"host\":\"a\",\"cpu_mhz\":1000,\"memory\":1024}\n\
                         {\"vm\":\"x\",\"host\":\"a\",\"vcpus\":1,\"memory\":512,\"cpu_mhz\":[100,200]}\n";

    /// What is read of such a file with such options.
    fn read(name: &str, contents: &str, more: &[&str]) -> Result<Trace, ApiError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, contents).unwrap();
        let path = path.display().to_string();
        let words = ["godwit", "simulate", "--trace", &path].into_iter().chain(more.iter().copied());
        let Verb::Simulate(options) = Cli::try_parse_from(words).unwrap().verb else { unreachable!() };
        trace(&options)
    }

    #[test]
    fn hosts_are_the_traces_unless_others_are_asked_for() {
        let own = read("t.jsonl", TRACE, &[]).unwrap();
        assert_eq!((own.hosts.len(), own.vms[0].host.as_ref().unwrap().as_str()), (1, "a"));
        let other = read("t.jsonl", TRACE, &["--hosts", "12", "--host-cpu-mhz", "500"]).unwrap();
        assert_eq!((other.hosts.len(), other.hosts[0].name.as_str()), (12, "host-01"));
        assert_eq!((other.hosts[0].cpu_mhz, &other.vms[0].host), (500, &None));
    }

    #[test]
    fn a_trace_without_hosts_gets_as_many_as_it_fills_to_a_part() {
        // Four VMs of 2500, 2000, 1000 and 500 MHz, at 70 %.
        let csv = "a,100\nb,100\nc,100\nd,100\n";
        let trace = read("day.csv", csv, &["--host-cpu-mhz", "3000", "--copies", "2"]).unwrap();
        assert_eq!((trace.vms.len(), trace.hosts.len()), (8, 6));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_the_line() {
        let error = read("t.jsonl", "{}", &[]).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(error.message.contains("t.jsonl: line 1: neither"), "{}", error.message);
        let error = read("t.csv.gz", "not packed", &[]).unwrap_err();
        assert!(error.message.contains("not in gzip format"), "{}", error.message);
        let error = read("t.jsonl", TRACE, &["--from", "1h"]).unwrap_err();
        assert!(error.message.contains("nothing between --from and --until"), "{}", error.message);
    }
}
