//! Hosts, VMs, and what the VMs want over time.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use godwit_scheduler::entitlement::{Controls, Pool};
use godwit_scheduler::rules::Rule;
use godwit_scheduler::snapshot::{PowerModel, RECENT_SLOTS, SLOT_MS};
use godwit_scheduler::{PerResource, Resource};
use godwit_types::ids::InvalidName;
use godwit_types::{HostName, Name, VmName};
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// Between two values of a series, in milliseconds.
    pub interval_ms: u64,
    pub hosts: Vec<HostRecord>,
    pub vms: Vec<VmRecord>,
    pub rules: Vec<Rule>,
    pub pools: Vec<Pool>,
}

/// A host, as the trace's own format has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    #[serde(rename = "host")]
    pub name: HostName,
    /// All its cores together.
    pub cpu_mhz: u64,
    /// For VMs, in bytes.
    pub memory: u64,
    #[serde(default = "default_network")]
    pub network_bytes_per_s: u64,
    #[serde(default = "default_storage")]
    pub storage_ops_per_s: u64,
    /// Migrations at once, each way.
    #[serde(default = "default_moves")]
    pub moves_max: u32,
    /// What all of them send, and as much arrives.
    #[serde(default = "default_migration")]
    pub migration_bytes_per_s: u64,
    /// Drawn at 0 % of its CPU, evenly on to 100 %; none if it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watts: Vec<u32>,
    #[serde(default)]
    pub standby_watts: u32,
    #[serde(default = "default_wake")]
    pub wake_s: u32,
    /// With which other hosts it would be lost at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Name>,
    /// Names that rules may give to several hosts.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<Name>,
}

/// 10 Gbit/s, both ways together.
fn default_network() -> u64 {
    2_500_000_000
}

fn default_storage() -> u64 {
    100_000
}

fn default_moves() -> u32 {
    4
}

/// Most of 10 Gbit/s.
fn default_migration() -> u64 {
    1_100_000_000
}

fn default_wake() -> u32 {
    180
}

impl HostRecord {
    /// One of which no more is known.
    pub fn new(name: HostName, cpu_mhz: u64, memory: u64) -> Self {
        Self {
            name,
            cpu_mhz,
            memory,
            network_bytes_per_s: default_network(),
            storage_ops_per_s: default_storage(),
            moves_max: default_moves(),
            migration_bytes_per_s: default_migration(),
            watts: Vec::new(),
            standby_watts: 0,
            wake_s: default_wake(),
            domain: None,
            labels: BTreeSet::new(),
        }
    }

    pub(crate) fn capacity(&self) -> PerResource<u64> {
        PerResource {
            cpu: self.cpu_mhz,
            memory: self.memory,
            network: self.network_bytes_per_s,
            storage: self.storage_ops_per_s,
        }
    }

    pub(crate) fn power(&self) -> Option<PowerModel> {
        (self.watts.len() >= 2).then(|| PowerModel {
            watts: self.watts.clone(),
            standby_watts: self.standby_watts,
            wake_ms: u64::from(self.wake_s) * 1000,
        })
    }
}

/// A VM, as the trace's own format has it. A series that ends goes on with its last value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    #[serde(rename = "vm")]
    pub name: VmName,
    /// Where it begins; the scheduler chooses if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    pub vcpus: u32,
    /// Of the VM, in bytes; a host must have so much free.
    pub memory: u64,
    pub cpu_mhz: Vec<u64>,
    /// In use, in bytes; all of it if none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_used: Vec<u64>,
    /// Both ways together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_bytes_per_s: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage_ops_per_s: Vec<u64>,
    /// Memory that it writes anew each second, which makes migrations longer.
    #[serde(default)]
    pub memory_written_bytes_per_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub controls: PerResource<Controls>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VmRecord {
    /// One that wants so much CPU, and all its memory.
    pub fn new(name: VmName, vcpus: u32, memory: u64, cpu_mhz: Vec<u64>) -> Self {
        Self {
            name,
            host: None,
            vcpus,
            memory,
            cpu_mhz,
            memory_used: Vec::new(),
            network_bytes_per_s: Vec::new(),
            storage_ops_per_s: Vec::new(),
            memory_written_bytes_per_s: 0,
            pool: None,
            controls: PerResource::default(),
        }
    }

    /// What it wants at a step, no more than its limits and its memory.
    pub fn demand(&self, step: usize) -> PerResource<u64> {
        let at = |series: &[u64]| series.get(step).or(series.last()).copied();
        PerResource::from_fn(|resource| {
            let wanted = match resource {
                Resource::Cpu => at(&self.cpu_mhz).unwrap_or(0),
                Resource::Memory => at(&self.memory_used).unwrap_or(self.memory).min(self.memory),
                Resource::Network => at(&self.network_bytes_per_s).unwrap_or(0),
                Resource::Storage => at(&self.storage_ops_per_s).unwrap_or(0),
            };
            self.controls[resource].limit.map_or(wanted, |limit| wanted.min(limit))
        })
    }

    /// The most of each resource that it wants at any of these steps.
    pub(crate) fn peak(&self, steps: RangeInclusive<usize>) -> PerResource<u64> {
        let wanted = steps.map(|step| self.demand(step));
        wanted.fold(PerResource::default(), |most, now| {
            PerResource::from_fn(|resource| most[resource].max(now[resource]))
        })
    }

    /// What it has wanted of CPU until a step, as the scheduler is told it: the most of each slot, the newest last.
    pub(crate) fn recent_mhz(&self, step: usize, interval_ms: u64) -> Vec<u64> {
        let each = (SLOT_MS / interval_ms.max(1)).max(1) as usize;
        let ends = (0..RECENT_SLOTS).rev().filter_map(|slot| step.checked_sub(slot * each));
        ends.map(|end| self.peak((end + 1).saturating_sub(each)..=end).cpu).collect()
    }

    /// Its series, each to be changed alike.
    fn series(&mut self) -> [&mut Vec<u64>; 4] {
        [&mut self.cpu_mhz, &mut self.memory_used, &mut self.network_bytes_per_s, &mut self.storage_ops_per_s]
    }
}

impl Trace {
    /// Steps until the longest series ends.
    pub fn steps(&self) -> usize {
        let longest = |vm: &VmRecord| {
            let VmRecord { cpu_mhz, memory_used, network_bytes_per_s, storage_ops_per_s, .. } = vm;
            [cpu_mhz, memory_used, network_bytes_per_s, storage_ops_per_s].map(Vec::len).into_iter().max()
        };
        self.vms.iter().filter_map(longest).max().unwrap_or(0)
    }

    /// The part of it between two times from its beginning, in milliseconds; none if nothing is in between.
    pub fn between(mut self, from_ms: u64, until_ms: u64) -> Option<Self> {
        let step = |ms: u64| usize::try_from(ms.div_ceil(self.interval_ms.max(1))).unwrap_or(usize::MAX);
        let (from, until) = (step(from_ms), step(until_ms).min(self.steps()));
        if from >= until {
            return None;
        }
        for series in self.vms.iter_mut().flat_map(VmRecord::series) {
            series.truncate(until);
            // What it goes on with.
            let gone = from.min(series.len().saturating_sub(1));
            series.drain(..gone);
        }
        Some(self)
    }

    /// Has each VM so many times. Copies are a day later each, round the trace's end, so that they do not rise and fall as one, and
    /// keep the time of day. An error if a name becomes too long.
    pub fn copied(mut self, copies: usize) -> Result<Self, InvalidName> {
        const DAY_MS: u64 = 86_400_000;
        let day = (DAY_MS / self.interval_ms.max(1)) as usize;
        let once = self.vms.clone();
        for copy in 2..=copies {
            for vm in &once {
                let mut vm = vm.clone();
                for series in vm.series() {
                    let by = (copy - 1) * day % series.len().max(1);
                    series.rotate_left(by);
                }
                vm.name = format!("{}.{copy}", vm.name).parse()?;
                self.vms.push(vm);
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_goes_on_with_its_last_value_and_memory_without_one_is_all_wanted() {
        let mut vm = VmRecord::new("a".parse().unwrap(), 1, 100, vec![1, 2]);
        vm.controls.cpu.limit = Some(1);
        assert_eq!((vm.demand(1).cpu, vm.demand(9).memory, vm.demand(0).network), (1, 100, 0));
        vm.memory_used = vec![30, 300];
        assert_eq!([0, 1, 2].map(|step| vm.demand(step).memory), [30, 100, 100]);
    }

    #[test]
    fn a_part_of_a_trace_is_what_it_was_then() {
        let mut vm = VmRecord::new("a".parse().unwrap(), 1, 100, (0..6).collect());
        vm.memory_used = vec![5, 6];
        let trace = Trace { interval_ms: 1000, vms: vec![vm], ..Trace::default() };
        let part = trace.clone().between(2000, 5000).unwrap();
        assert_eq!(part.steps(), 3);
        for step in 0..3 {
            assert_eq!(part.vms[0].demand(step), trace.vms[0].demand(step + 2));
        }
        assert_eq!(trace.clone().between(0, u64::MAX), Some(trace.clone()));
        assert_eq!(trace.between(6000, 7000), None);
    }

    #[test]
    fn copies_are_a_day_apart() {
        let vm = VmRecord::new("a".parse().unwrap(), 1, 100, (0..6).collect());
        let trace = Trace { interval_ms: 43_200_000, vms: vec![vm], ..Trace::default() }.copied(3).unwrap();
        let first: Vec<(&str, u64)> =
            trace.vms.iter().map(|vm| (vm.name.as_str(), vm.demand(0).cpu)).collect();
        assert_eq!(first, [("a", 0), ("a.2", 2), ("a.3", 4)]);
        assert_eq!(trace.steps(), 6);
    }
}
