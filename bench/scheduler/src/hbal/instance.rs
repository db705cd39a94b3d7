//! Instances of Ganeti's balancer: a cluster in its text format (`hbal -t`), and the loads of its VMs (`-U`).
//!
//! Sections are separated by blank lines: groups, hosts, VMs, tags, policies. A host's fields: name, memory, its own memory, free
//! memory, disk, free disk, cores, ...; a VM's: name, memory, disk, virtual CPUs, state, balanced, host, ... Memory is in MiB. Loads
//! are of CPU, memory, disk and network, parts of a host.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use godwit_scheduler::cluster::{Cluster, Guest, Room};

use crate::chance::Chance;
use crate::error::{BenchError, Result};
use crate::system::read;

/// Of memory, virtual CPUs, and the four loads: what `hbal` gives them on shared storage.
pub(crate) const WEIGHTS: [f64; 6] = [1.0; 6];
/// A load of 1, as it is counted.
const LOAD: f64 = 1e6;
/// Virtual CPUs for each core, at most, where no policy says otherwise.
const VCPU_RATIO: f64 = 4.0;
const GROUP: &str = "group|11111111-1111-1111-1111-111111111111";

/// See the module.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    /// As `hbal` reads them.
    pub(crate) data: String,
    pub(crate) loads: String,
}

/// Whether these are the fields of a VM.
pub(crate) fn is_vm(fields: &[&str]) -> bool {
    fields.len() >= 11
        && fields.get(4).is_some_and(|state| state.parse::<u64>().is_err())
        && fields[1].parse::<u64>().is_ok()
}

fn is_host(fields: &[&str]) -> bool {
    fields.len() >= 9 && (1..7).all(|index| fields[index].parse::<u64>().is_ok())
}

impl Instance {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let loads = path.with_extension("dynu");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, data: read(path)?, loads: read(&loads)? })
    }

    /// Hosts of 256 GiB and 64 cores; two of three VMs are in the first half of them.
    pub(crate) fn generate(hosts: usize, vms: usize, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let mut below = |limit: u64| chance.below(limit);
        let mut free = vec![258_048; hosts];
        let (mut lines, mut loads) = (String::new(), String::new());
        for vm in 0..vms {
            let memory = 2048 << below(4);
            let part = if below(3) == 0 { hosts } else { hosts.div_ceil(2) };
            let first = below(part as u64) as usize;
            let Some(host) = (first..hosts).chain(0..first).find(|host| free[*host] >= memory) else {
                continue;
            };
            free[host] -= memory;
            let vcpus = 1 << below(4);
            let _ = writeln!(lines, "vm{vm:05}|{memory}|8192|{vcpus}|running|Y|node{host:04}||ext||1|-");
            let cpu = below(vcpus * 200) as f64 / 1e4;
            let _ = writeln!(loads, "vm{vm:05} {cpu:.4} {:.4} 0.0001 0.0001", memory as f64 / 262_144.0);
        }
        let hosts_text: String = (0..hosts)
            .map(|host| {
                let (free, group) = (free[host], &GROUP[6..]);
                format!("node{host:04}|262144|4096|{free}|4000000|4000000|64|N|{group}|1||N|1|1|1.0\n")
            })
            .collect();
        let policy = "128,1,1024,1,1,1|128,1,1024,1,1,1;65536,32,4194304,16,8,12|ext|4.0|64.0";
        let data = format!("{GROUP}|preferred||\n\n{hosts_text}\n{lines}\n\n|{policy}\ngroup|{policy}\n");
        Self { name: format!("generated-{hosts}-{vms}-{seed}"), data, loads }
    }

    /// What each VM has of memory, in the order of the file.
    pub(crate) fn memory_mib(&self) -> Vec<u64> {
        self.rows(is_vm).map(|fields| fields[1].parse().unwrap_or(0)).collect()
    }

    /// As the scheduler knows it.
    pub(crate) fn cluster(&self) -> Result<Cluster> {
        let wrong = |what: &str| BenchError::Instance(format!("{}: {what}", self.name));
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong(&format!("'{text}' is no number")));
        let loads: HashMap<&str, Vec<u64>> = self.loads.lines().filter_map(load).collect();
        let (mut places, mut rooms) = (HashMap::new(), Vec::new());
        for fields in self.rows(is_host) {
            places.insert(fields[0], rooms.len());
            let (memory, own, cores) = (number(fields[1])?, number(fields[2])?, number(fields[6])?);
            let load = Room { whole: LOAD as u64, own: 0, most: u64::MAX };
            rooms.push(vec![
                Room { whole: memory, own, most: memory },
                Room { whole: cores, own: 0, most: (cores as f64 * VCPU_RATIO) as u64 },
                load,
                load,
                load,
                load,
            ]);
        }
        let guest = |fields: Vec<&str>| {
            let host = *places.get(fields[6]).ok_or_else(|| wrong(&format!("no host '{}'", fields[6])))?;
            let load = loads.get(fields[0]).ok_or_else(|| wrong(&format!("no loads of {}", fields[0])))?;
            Ok(Guest { host, loads: [vec![number(fields[1])?, number(fields[3])?], load.clone()].concat() })
        };
        let guests: Vec<Guest> = self.rows(is_vm).map(guest).collect::<Result<_>>()?;
        Cluster::new(&rooms, &guests).map_err(|error| wrong(&error.to_string()))
    }

    fn rows(&self, is_wanted: fn(&[&str]) -> bool) -> impl Iterator<Item = Vec<&str>> {
        self.data
            .lines()
            .map(|line| line.split('|').collect::<Vec<_>>())
            .filter(move |fields| is_wanted(fields))
    }
}

/// `vm0000 0.0206 0.2500 0.0001 0.0001`
fn load(line: &str) -> Option<(&str, Vec<u64>)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let loads = words.map(|word| word.parse::<f64>().ok().map(|load| (load * LOAD).round() as u64));
    let loads: Vec<u64> = loads.collect::<Option<_>>()?;
    (loads.len() == 4).then_some((name, loads))
}

#[cfg(test)]
mod tests {
    use godwit_scheduler::balance::Balance;

    use super::*;

    #[test]
    fn a_generated_instance_is_read_as_it_was_meant_and_the_same_every_time() {
        let instance = Instance::generate(10, 120, 7);
        let cluster = instance.cluster().unwrap();
        assert_eq!((cluster.hosts(), cluster.vms(), cluster.dimensions()), (10, 120, 6));
        assert_eq!(instance.data, Instance::generate(10, 120, 7).data);
        assert_ne!(instance.data, Instance::generate(10, 120, 8).data);
        assert!(Balance::new(&cluster, &WEIGHTS).unwrap().score() > 0.5);
        let used: u64 = (0..10).map(|host| cluster.used(host, 0).0 - 4096).sum();
        assert_eq!(used, instance.memory_mib().iter().sum::<u64>());
    }

    #[test]
    fn what_is_missing_is_named() {
        let whole = Instance::generate(3, 6, 1);
        let without = |data: &str, loads: &str| {
            let instance = Instance { name: "x".into(), data: data.into(), loads: loads.into() };
            instance.cluster().unwrap_err().to_string()
        };
        assert!(without(&whole.data, "").contains("no loads of vm00000"));
        let no_hosts = whole.data.replace("|262144|", "|much|");
        assert!(without(&no_hosts, &whole.loads).contains("no host"));
    }
}
