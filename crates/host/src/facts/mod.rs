//! Facts about this host, measured when asked for.

mod identity;
mod kvm;
mod link;
mod vmm;

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use godwit_types::Bytes;
use godwit_types::capability::VmmOffer;
use godwit_types::host::{DatastoreOffer, HostFacts, KvmFacts, MigrationLimits, NetworkOffer};
use godwit_types::usage::HostUsage;
use nix::sys::statvfs::statvfs;

use crate::config::{DatastoreConfig, HostConfig};
use crate::vm::Keep;

pub(crate) use vmm::offer as vmm_offer;

/// This build's version, which the manager compares between hosts.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Looks at everything but what may take long to answer: see [`datastores`] and [`vmm_offer`].
pub(crate) fn gather(
    config: &HostConfig,
    datastores: Vec<DatastoreOffer>,
    vmm: Option<VmmOffer>,
    keep: &Keep,
    usage: Option<HostUsage>,
) -> HostFacts {
    let cpuinfo = read("/proc/cpuinfo");
    let meminfo = read("/proc/meminfo");
    let networks = config.networks.iter().map(|network| NetworkOffer {
        name: network.name.clone(),
        bridge: network.bridge.clone(),
        uplink: network.uplink.clone(),
    });
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let available = meminfo_field(&meminfo, "MemAvailable").unwrap_or_default();
    HostFacts {
        version: VERSION.to_owned(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu_model: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
        cpus,
        memory: meminfo_field(&meminfo, "MemTotal").unwrap_or_default(),
        memory_available: Bytes(available.0.saturating_add(keep.held().0)),
        kept: keep.report(),
        kvm: kvm::look(&cpuinfo),
        vmm,
        networks: networks.collect(),
        datastores,
        migration: migration_limits(config, cpus),
        usage,
        clock_unix_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64),
    }
}

fn migration_limits(config: &HostConfig, cpus: u32) -> MigrationLimits {
    let derived = MigrationLimits::derived(link::bits_per_s(config.migration_address), cpus);
    MigrationLimits {
        moves_max: config.moves_max.unwrap_or(derived.moves_max),
        bandwidth_bytes_per_s_max: config.bandwidth_bytes_per_s_max,
        ..derived
    }
}

/// Looks at the datastores. Blocks for as long as the slowest takes to answer, which may be forever.
pub(crate) fn datastores(config: &HostConfig) -> Vec<DatastoreOffer> {
    config.datastores.iter().map(datastore).collect()
}

/// What `/dev/kvm` is now.
pub(crate) fn kvm() -> KvmFacts {
    kvm::look(&read("/proc/cpuinfo"))
}

/// All memory of this host.
pub(crate) fn memory() -> Bytes {
    meminfo_field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default()
}

/// What `MemAvailable` says now.
pub(crate) fn memory_available() -> Bytes {
    meminfo_field(&read("/proc/meminfo"), "MemAvailable").unwrap_or_default()
}

/// Memory of the process `pid` that is backed by pages now, shared memory included.
pub(crate) fn memory_resident(pid: u32) -> Bytes {
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let pages =
        read(format!("/proc/{pid}/statm")).split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    Bytes(pages.unwrap_or(0) * u64::try_from(page).unwrap_or(4096))
}

/// A file of `/proc`; empty when there is none, and the fact then shows as unknown or 0.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A datastore that is not mounted has size 0.
fn datastore(datastore: &DatastoreConfig) -> DatastoreOffer {
    let sizes = statvfs(&datastore.path).map(|fs| {
        let block = fs.fragment_size();
        (Bytes(fs.blocks() * block), Bytes(fs.blocks_available() * block))
    });
    let (size, free) = sizes.unwrap_or_else(|error| {
        tracing::debug!(
            "the datastore {} cannot be reached at {}: {error}",
            datastore.name,
            datastore.path.display()
        );
        Default::default()
    });
    // One that is not there gets no identity, and none is made where it would be mounted.
    let id = (size.0 > 0).then(|| identity::of(&datastore.path)).flatten();
    DatastoreOffer {
        name: datastore.name.clone(),
        path: datastore.path.display().to_string(),
        size,
        free,
        id,
    }
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

fn meminfo_field(meminfo: &str, name: &str) -> Option<Bytes> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let meminfo = "MemTotal:       24602 kB\nMemAvailable:   100 kB\nMemAvailableX:  7 kB\n";
        assert_eq!(meminfo_field(meminfo, "MemAvailable"), Some(Bytes(100 << 10)));
        assert_eq!(meminfo_field(meminfo, "Mem"), None);
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\n"), Some("AMD EPYC"));
    }

    #[test]
    fn this_machine_has_a_kernel_memory_and_a_clock() {
        let own = memory_resident(std::process::id());
        assert!(own.0 > 0 && own < Bytes::mib(4096), "{own}");
        assert!(memory_available().0 > 0);
        assert!(!read("/proc/sys/kernel/osrelease").is_empty());
    }
}
