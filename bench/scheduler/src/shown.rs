//! Hosts and VMs as the manager would show them to the planner, where a bench has nothing more to say of them.

use godwit_scheduler::PerResource;
use godwit_scheduler::policy::Automation;
use godwit_scheduler::snapshot::{Host, HostState, MigrationRoom, Needs, Vm, Writes};
use godwit_types::{HostName, VmName};

/// When benches begin.
pub(crate) const BEGINNING_UNIX_MS: u64 = 1_700_000_000_000;
pub(crate) const MEBIBYTE: u64 = 1 << 20;

/// A host that is on, and was just heard of.
pub(crate) fn host(name: HostName, capacity: PerResource<u64>, migration: MigrationRoom, now: u64) -> Host {
    Host {
        name,
        state: HostState::On,
        since_unix_ms: 0,
        seen_unix_ms: now,
        capacity,
        cpu_class: None,
        networks: Default::default(),
        datastores: Default::default(),
        rooms: Default::default(),
        move_disks: false,
        domain: None,
        labels: Default::default(),
        migration,
        power: None,
    }
}

/// A VM that runs, was just measured, and writes no memory; in bytes of memory.
pub(crate) fn vm(name: VmName, on: HostName, demand: PerResource<u64>, memory: u64, now: u64) -> Vm {
    Vm {
        name,
        host: Some(on),
        pool: None,
        controls: PerResource::default(),
        demand,
        expected: PerResource::default(),
        demand_long: demand,
        recent_mhz: Vec::new(),
        ahead_mhz: Vec::new(),
        measured_unix_ms: Some(now),
        vcpus: 1,
        memory,
        needs: Needs::default(),
        disks: Vec::new(),
        pinned: None,
        automation: Automation::Inherit,
        writes: Writes { used: demand.memory, hot: 0, bytes_per_s: 0 },
        moved_unix_ms: Vec::new(),
    }
}
