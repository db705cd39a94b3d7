//! VMs of Bitbrains, a VMware data centre (GWA-T-12; Shen, van Beek, Iosup, CCGrid 2015), on a grid of five minutes.

use std::collections::BTreeMap;

use super::{FormatError, lines, values};
use crate::trace::{Trace, VmRecord};

/// The trace counts bytes of disks, and the scheduler operations: so many KB are taken to be one.
const KB_PER_OPERATION: f64 = 64.0;
/// Memory that is written each second, as a part of what is active, which the trace does not say.
const WRITTEN_PART: f64 = 0.005;

/// The texts of a trace: one VM a line, its id first, then a value for each step.
#[derive(Debug, Clone, Copy)]
pub struct Bitbrains<'a> {
    /// `vm_id,cpu_cores,cpu_capacity_mhz,mem_capacity_kb,...`, after a header.
    pub meta: &'a str,
    /// MHz.
    pub cpu: &'a str,
    /// Active memory, in KB.
    pub memory: &'a str,
    /// `read/written`, in KB/s.
    pub disk: &'a str,
    /// `received/sent`, in KB/s.
    pub network: &'a str,
}

/// Reads a trace; the error says which of the texts it is about.
pub fn bitbrains(texts: &Bitbrains<'_>) -> Result<Trace, (&'static str, FormatError)> {
    let number = |word: &str| word.parse::<f64>().ok().filter(|value| *value >= 0.0 && value.is_finite());
    let pair = |word: &str| {
        let (one, other) = word.split_once('/')?;
        Some(number(one)? + number(other)?)
    };
    let cpu = series(texts.cpu, number).map_err(|error| ("cpu", error))?;
    let memory = series(texts.memory, number).map_err(|error| ("memory", error))?;
    let disk = series(texts.disk, pair).map_err(|error| ("disk", error))?;
    let network = series(texts.network, pair).map_err(|error| ("network", error))?;
    let mut vms = Vec::new();
    for (index, line) in lines(texts.meta).skip(1) {
        let wrong = |what: &str| ("meta", FormatError::at(index, what));
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [id, cores, _, kb, ..] = fields[..] else {
            return Err(wrong("expected vm_id,cpu_cores,cpu_capacity_mhz,mem_capacity_kb"));
        };
        let name = format!("vm-{id:0>4}").parse().map_err(|_| wrong("the id is no part of a name"))?;
        let cores: u32 = cores.parse().map_err(|_| wrong("cpu_cores is no number"))?;
        let kb: u64 = kb.parse().map_err(|_| wrong("mem_capacity_kb is no number"))?;
        let Some(used) = cpu.get(id) else { return Err(wrong("there is no CPU series of it")) };
        let scaled = |series: &BTreeMap<&str, Vec<f64>>, by: f64| -> Vec<u64> {
            series.get(id).map_or_else(Vec::new, |values| {
                values.iter().map(|value| (value * by).round() as u64).collect()
            })
        };
        let mut vm =
            VmRecord::new(name, cores, kb << 10, used.iter().map(|mhz| mhz.round() as u64).collect());
        vm.memory_used = scaled(&memory, 1024.0);
        vm.network_bytes_per_s = scaled(&network, 1024.0);
        vm.storage_ops_per_s = scaled(&disk, 1.0 / KB_PER_OPERATION);
        let active = vm.memory_used.iter().sum::<u64>() as f64 / vm.memory_used.len().max(1) as f64;
        vm.memory_written_bytes_per_s = (active * WRITTEN_PART) as u64;
        vms.push(vm);
    }
    Ok(Trace { interval_ms: 300_000, vms, ..Trace::default() })
}

fn series(text: &str, read: impl Fn(&str) -> Option<f64>) -> Result<BTreeMap<&str, Vec<f64>>, FormatError> {
    let mut all = BTreeMap::new();
    for (index, line) in lines(text) {
        let mut words = line.split(',');
        let id = words.next().unwrap_or_default().trim();
        all.insert(id, values(index, &mut words, &read)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: Bitbrains<'static> = Bitbrains {
        meta: "vm_id,cpu_cores,cpu_capacity_mhz,mem_capacity_kb\n7,2,5852.0,1024\n",
        cpu: "7,747.6,0.0\n",
        memory: "7,512,1024\n",
        disk: "7,64.0/64.0,0.0/0.0\n",
        network: "7,1.0/2.0,0.5/0.5\n",
    };

    #[test]
    fn amounts_are_in_the_schedulers_units() {
        let trace = bitbrains(&TEXTS).unwrap();
        let vm = &trace.vms[0];
        assert_eq!((vm.name.as_str(), vm.vcpus, vm.memory), ("vm-0007", 2, 1 << 20));
        let first = vm.demand(0);
        assert_eq!((first.cpu, first.memory, first.network, first.storage), (748, 512 << 10, 3072, 2));
    }

    #[test]
    fn an_error_says_which_text_and_which_line() {
        let (text, error) = bitbrains(&Bitbrains { disk: "7,1.0\n", ..TEXTS }).unwrap_err();
        assert_eq!((text, error.line), ("disk", 1));
        let (text, error) = bitbrains(&Bitbrains { cpu: "8,1.0\n", ..TEXTS }).unwrap_err();
        assert!(text == "meta" && error.to_string().contains("line 2: there is no CPU series"), "{error}");
    }
}
