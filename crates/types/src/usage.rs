//! What VMs and hosts use, as their agents measure it: means over the last minute, or since the VM runs.

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// What a VM's process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmUsage {
    /// The time that the means are of, in milliseconds.
    pub over_ms: u32,
    /// Processor time that it got, in thousandths of one CPU.
    pub cpu_run_permille: u32,
    /// Time for which its threads were ready and got no CPU, in thousandths of one, added up over the threads.
    pub cpu_wait_permille: u32,
    /// Memory of the host that it holds now.
    pub memory: Bytes,
    /// By its network cards, both ways together.
    pub network_bytes_per_s: u64,
    /// Reads and writes of its disks.
    pub storage_ops_per_s: u64,
}

/// What all that runs on a host uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostUsage {
    /// The time that the means are of, in milliseconds.
    pub over_ms: u32,
    /// Processor time, in thousandths of one CPU.
    pub cpu_permille: u32,
    /// Time for which some task waited for a CPU, in thousandths (PSI).
    pub cpu_pressure_permille: u32,
    /// Time for which some task waited for memory, in thousandths (PSI).
    pub memory_pressure_permille: u32,
    /// How fast one of its CPUs is, in MHz.
    pub cpu_mhz: u32,
}
