//! A day of PlanetLab: what each VM used of its CPU, every five minutes.

use std::path::Path;
use std::process::Command;

use godwit_lab::LabError;

use super::kinds::{HostKind, VmKind};
use crate::error::{BenchError, Result};

/// Between two samples, in seconds.
pub(super) const INTERVAL_S: f64 = 300.0;
/// Samples of a day.
const SAMPLES: usize = 288;
/// When VMs begin to work: rounds are so long after each sample.
pub(super) const OFFSET_S: f64 = 0.1;
/// The end of the day.
pub(super) const END_S: f64 = 86_400.0;

/// See the module.
#[derive(Debug)]
pub(super) struct Day {
    pub(super) name: String,
    /// Of each VM, parts of its CPU; the last once more.
    samples: Vec<Vec<f64>>,
}

impl Day {
    /// One VM a line: `name,s0,...,s287` in per cent, in the order of the names; packed by gzip if the name ends with `.gz`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default().to_owned();
        Self::parse(name, &text)
    }

    fn parse(name: String, text: &str) -> Result<Self> {
        let wrong = |line: usize, what: &str| {
            BenchError::Instance(format!("{name}, line {}: {what}; expected NAME,s0,...,s287", line + 1))
        };
        let mut samples = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let values = line.split(',').skip(1).map(|word| word.trim().parse::<u8>().ok());
            let values: Option<Vec<u8>> = values.collect();
            let values = values.ok_or_else(|| wrong(number, "a sample is no whole number"))?;
            if values.len() != SAMPLES {
                return Err(wrong(number, &format!("{} samples", values.len())));
            }
            let last = values.last().copied();
            samples.push(values.into_iter().chain(last).map(|percent| f64::from(percent) / 100.0).collect());
        }
        Ok(Self { name, samples })
    }

    pub(super) fn vms(&self) -> usize {
        self.samples.len()
    }

    pub(super) fn kind(&self, vm: usize) -> VmKind {
        VmKind::of(vm, self.vms())
    }

    /// What the VM wants at that second, in MIPS: a straight line between samples.
    pub(super) fn demand(&self, vm: usize, at_s: f64) -> f64 {
        let samples = &self.samples[vm];
        let at = at_s / INTERVAL_S;
        let below = (at.floor() as usize).min(samples.len() - 2);
        let (from, to) = (samples[below], samples[below + 1]);
        (from + (to - from) / INTERVAL_S * (at_s - below as f64 * INTERVAL_S)) * self.kind(vm).mips
    }

    /// No policy can use less, in kWh: all that VMs want, on G5 that are used in full. Of the VMs that are there until they want
    /// nothing, if those are `removed`.
    pub(super) fn least_energy_kwh(&self, removed: bool) -> f64 {
        let rounds = (END_S / INTERVAL_S) as usize - 1;
        let joules: f64 = (0..self.vms())
            .map(|vm| {
                let at = |round: usize| round as f64 * INTERVAL_S + OFFSET_S;
                let gone = (1..=rounds).find(|round| removed && self.demand(vm, at(*round)) == 0.0);
                let work = (1..gone.unwrap_or(rounds))
                    .map(|round| (self.demand(vm, at(round)) + self.demand(vm, at(round + 1))) / 2.0);
                work.sum::<f64>() * INTERVAL_S * HostKind::least_watts_per_mips()
            })
            .sum();
        joules / 3.6e6
    }
}

/// The text of a file, which gzip unpacks if its name says so.
fn read(path: &Path) -> Result<String> {
    if path.extension().is_none_or(|extension| extension != "gz") {
        return crate::system::read(path);
    }
    let unpacked = Command::new("gzip").arg("-dc").arg("--").arg(path).output();
    let unpacked = unpacked.map_err(LabError::io("run gzip"))?;
    if !unpacked.status.success() {
        let said = String::from_utf8_lossy(&unpacked.stderr);
        return Err(BenchError::Instance(format!("gzip cannot unpack {}: {}", path.display(), said.trim())));
    }
    String::from_utf8(unpacked.stdout)
        .map_err(|_| BenchError::Instance(format!("{} is not text", path.display())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// VMs that use so much, in per cent: the samples that are given, and the last for the rest of the day.
    pub(in crate::planetlab) fn day(vms: &[&[u8]]) -> Day {
        let line = |samples: &&[u8]| {
            let last = samples.last().copied().unwrap_or(0);
            let samples = samples.iter().copied().chain(std::iter::repeat(last)).take(SAMPLES);
            format!("vm,{}\n", samples.map(|sample| sample.to_string()).collect::<Vec<_>>().join(","))
        };
        Day::parse("test".into(), &vms.iter().map(line).collect::<String>()).unwrap()
    }

    #[test]
    fn demand_is_linear_between_samples() {
        let day = day(&[&[10, 20]]);
        assert_eq!(day.demand(0, 0.0), 250.0);
        assert!((day.demand(0, 150.0) - 375.0).abs() < 1e-9);
        assert_eq!(day.demand(0, 86_100.0), 500.0);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let error = Day::parse("d".into(), "a,1,2\n").unwrap_err().to_string();
        assert!(error.contains("line 1: 2 samples"), "{error}");
        let error = Day::parse("d".into(), "\na,1,x\n").unwrap_err().to_string();
        assert!(error.contains("line 2: a sample is no whole number"), "{error}");
    }

    #[test]
    fn the_least_energy_ends_with_the_vm() {
        let works = day(&[&[100]]);
        // 2500 MIPS for 286 intervals at 135 W for 5320 MIPS.
        let least = 2500.0 * 286.0 * 300.0 * 135.0 / 5320.0 / 3.6e6;
        assert!((works.least_energy_kwh(true) - least).abs() < 1e-6);
        assert_eq!(day(&[&[100, 0, 0]]).least_energy_kwh(true), 0.0);
    }
}
