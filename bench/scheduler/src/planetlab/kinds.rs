//! The hosts and VMs of the benchmark: two servers with what SPECpower measured of them, four sizes of VM.

/// A server. Amounts of CPU are MIPS, as the benchmark calls them.
#[derive(Debug)]
pub(super) struct HostKind {
    /// Of each of its two cores.
    pub(super) core_mips: f64,
    /// Drawn at 0 %, 10 %, ... 100 % of its CPU.
    watts: [f64; 11],
}

/// What each host has of memory.
pub(super) const HOST_MEMORY_MB: u32 = 4096;

/// HP ProLiant ML110 G4 and G5.
static G4: HostKind = HostKind {
    core_mips: 1860.0,
    watts: [86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0],
};
static G5: HostKind = HostKind {
    core_mips: 2660.0,
    watts: [93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0],
};

impl HostKind {
    /// Every other host is a G5, the better of the two.
    pub(super) fn of(host: usize) -> &'static Self {
        if host.is_multiple_of(2) { &G4 } else { &G5 }
    }

    pub(super) fn mips(&self) -> f64 {
        2.0 * self.core_mips
    }

    /// Linear between the points. Hosts whose load grows within the same tenth draw as much more, so it is rounding that tells them
    /// apart: the steps are the simulator's.
    pub(super) fn watts(&self, utilization: f64) -> f64 {
        let (below, above) = ((utilization * 10.0).floor(), (utilization * 10.0).ceil());
        let (from, to) = (self.watts[below as usize], self.watts[above as usize]);
        from + (to - from) / 10.0 * (utilization - below / 10.0) * 100.0
    }

    /// Of a host on which nothing runs, and which is on.
    pub(super) fn idle_watts(&self) -> f64 {
        self.watts[0]
    }

    /// The least that a MIPS costs in watts: on a G5 that is used in full.
    pub(super) fn least_watts_per_mips() -> f64 {
        G5.watts[10] / G5.mips()
    }
}

/// A size of VM, of one virtual CPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct VmKind {
    pub(super) mips: f64,
    pub(super) memory_mb: u32,
}

const VM_KINDS: [VmKind; 4] = [
    VmKind { mips: 2500.0, memory_mb: 870 },
    VmKind { mips: 2000.0, memory_mb: 1740 },
    VmKind { mips: 1000.0, memory_mb: 1740 },
    VmKind { mips: 500.0, memory_mb: 613 },
];

impl VmKind {
    /// A quarter of the VMs is of each kind, in their order.
    pub(super) fn of(vm: usize, vms: usize) -> Self {
        VM_KINDS[vm / vms.div_ceil(VM_KINDS.len()).max(1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_linear_between_what_was_measured() {
        let (g4, g5) = (HostKind::of(0), HostKind::of(1));
        assert_eq!((g4.watts(0.0), g4.watts(1.0), g5.watts(1.0)), (86.0, 117.0, 135.0));
        assert!((g5.watts(0.25) - 103.0).abs() < 1e-9, "{}", g5.watts(0.25));
        assert!((HostKind::least_watts_per_mips() - 135.0 / 5320.0).abs() < 1e-12);
    }

    #[test]
    fn a_quarter_of_the_vms_is_of_each_kind() {
        let mips: Vec<f64> = (0..6).map(|vm| VmKind::of(vm, 6).mips).collect();
        assert_eq!(mips, [2500.0, 2500.0, 2000.0, 2000.0, 1000.0, 1000.0]);
    }
}
