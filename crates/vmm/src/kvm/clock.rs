//! The guest's clocks: kvmclock, one for the VM, and the TSC offset of each vCPU.
//!
//! The recipe is the one in the kernel's documentation of `KVM_VCPU_TSC_OFFSET`: kvmclock goes on by the real time that
//! has passed, and each guest TSC by the same time at the guest's frequency. What the hosts' real-time
//! clocks differ by would become an error of the guest's: so the source says what the destination's was when it saved. A KVM that does not know `KVM_CLOCK_REALTIME` is told the same by
//! ourselves; without `KVM_CLOCK_HOST_TSC` on both hosts the TSCs go on from where they stopped.

use std::os::fd::AsRawFd;
use std::time::SystemTime;

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clock_data,
    kvm_device_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::{KvmError, call, last_error};
use crate::device::State;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// A state that is older than this, in nanoseconds, is not believed to be: a switchover takes seconds at most, so that one host's
/// clock is wrong. The guest's clock then goes on from where it stopped.
const GAP_NS_MAX: u64 = 60_000_000_000;

/// A reading of kvmclock.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ClockState {
    /// kvmclock in nanoseconds.
    #[prost(uint64, tag = "1")]
    guest_ns: u64,
    /// The host's `CLOCK_REALTIME` at the same moment, in nanoseconds since 1970.
    #[prost(uint64, optional, tag = "2")]
    realtime_ns: Option<u64>,
    /// The host's TSC at the same moment.
    #[prost(uint64, optional, tag = "3")]
    host_tsc: Option<u64>,
}

impl State for ClockState {
    const KIND: &'static str = "kvm-clock";
    const VERSION: u16 = 1;
}

impl ClockState {
    /// Reads the clock.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let data = vm.get_clock().map_err(call("reading the clock"))?;
        let given = |flag, value| (data.flags & flag != 0).then_some(value);
        Ok(Self {
            guest_ns: data.clock,
            // KVM gives both of the same moment only while the vCPUs' TSCs agree; a microsecond later is as well.
            realtime_ns: Some(given(KVM_CLOCK_REALTIME, data.realtime).unwrap_or_else(realtime_ns)),
            host_tsc: given(KVM_CLOCK_HOST_TSC, data.host_tsc),
        })
    }

    /// The same, with its real time as it is by a clock that is so many nanoseconds ahead.
    #[must_use]
    pub fn seen_from(self, ahead_ns: i64) -> Self {
        let there = self.realtime_ns.and_then(|here| here.checked_add_signed(ahead_ns));
        // None beyond what such a clock can show: then the guest's goes on from where it stopped.
        Self { realtime_ns: there, ..self }
    }

    /// Sets the clock, advanced by the real time since it was saved, if that is known and can be.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        let set = |data: kvm_clock_data| vm.set_clock(&data);
        let stood = kvm_clock_data { clock: self.guest_ns, ..Default::default() };
        let done = match self.realtime_ns.and_then(|saved| Some((saved, gap_ns(saved, realtime_ns())?))) {
            Some((realtime, gap)) => set(kvm_clock_data { realtime, flags: KVM_CLOCK_REALTIME, ..stood })
                .or_else(|_| set(kvm_clock_data { clock: self.guest_ns + gap, ..stood })),
            None => set(stood),
        };
        done.map_err(call("setting the clock"))
    }

    /// How far this clock is ahead of where it should be by real time, if it read `source` when it was saved, in nanoseconds.
    pub fn error_ns(&self, source: &Self) -> Option<i64> {
        let went = i128::from(self.guest_ns) - i128::from(source.guest_ns);
        let passed = i128::from(self.realtime_ns?) - i128::from(source.realtime_ns?);
        i64::try_from(went - passed).ok()
    }

    /// The TSC offset on this host for a vCPU that had `offset` on the source, whose clock read `source` when saved;
    /// `self` is this host's clock after [`ClockState::restore`].
    ///
    /// `offset_here = offset - (guest_source - guest_here) * frequency + (tsc_source - tsc_here)`, the kernel's formula.
    pub fn tsc_offset(&self, source: &Self, offset: u64, tsc_khz: u32) -> Option<u64> {
        let elapsed_ns = i128::from(self.guest_ns) - i128::from(source.guest_ns);
        let elapsed_ticks = elapsed_ns * i128::from(tsc_khz) / 1_000_000;
        let hosts_differ = source.host_tsc?.wrapping_sub(self.host_tsc?);
        Some(offset.wrapping_add(elapsed_ticks as u64).wrapping_add(hosts_differ))
    }
}

/// The host's real time, in nanoseconds since 1970.
fn realtime_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// How long it is from `saved` to `now`, if that can be true.
fn gap_ns(saved: u64, now: u64) -> Option<u64> {
    now.checked_sub(saved).filter(|gap| *gap <= GAP_NS_MAX)
}

/// The offset of the vCPU's TSC from the host's, if this KVM tells.
pub fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = attribute(std::ptr::from_mut(&mut offset) as u64);
    // SAFETY: the kernel writes the 8 bytes of `offset`, which outlives the call.
    let done = unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR(), &attribute) } == 0;
    done.then_some(offset)
}

/// Sets the offset of the vCPU's TSC from the host's.
pub fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), KvmError> {
    let attribute = attribute(std::ptr::from_ref(&offset) as u64);
    // SAFETY: the kernel reads the 8 bytes of `offset`, which outlives the call.
    match unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(last_error("setting the TSC offset")),
    }
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr, flags: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_tsc_goes_on_by_the_time_that_passed_whatever_the_hosts_tscs_are() {
        let source = ClockState { guest_ns: 1_000_000_000, realtime_ns: Some(7), host_tsc: Some(50_000_000) };
        let here =
            ClockState { guest_ns: 1_005_000_000, realtime_ns: Some(8), host_tsc: Some(9_000_000_000) };
        let (offset, khz) = (300u64.wrapping_sub(50_000_000), 2_000_000);
        let moved = here.tsc_offset(&source, offset, khz).unwrap();
        let guest_before = 50_000_000u64.wrapping_add(offset);
        let guest_after = 9_000_000_000u64.wrapping_add(moved);
        assert_eq!(guest_after - guest_before, 5 * 2_000_000);
    }

    /// A VM as a destination has it: nothing has run in it.
    fn fresh() -> Option<VmFd> {
        let unless = |error: &dyn std::fmt::Display| eprintln!("SKIPPED: needs /dev/kvm: {error}");
        let kvm = super::super::open().inspect_err(|error| unless(error)).ok()?;
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        Some(vm)
    }

    #[test]
    fn a_clock_that_was_saved_elsewhere_goes_on_by_the_time_that_has_passed() {
        let (Some(there), Some(here)) = (fresh(), fresh()) else { return };
        let _vcpus = [&there, &here].map(|vm| vm.create_vcpu(0).unwrap());
        let saved = ClockState::save(&there).unwrap();
        let nap = std::time::Duration::from_millis(50);
        std::thread::sleep(nap);
        saved.restore(&here).unwrap();
        let now = ClockState::save(&here).unwrap();
        assert!(now.guest_ns - saved.guest_ns >= nap.as_nanos() as u64, "{saved:?} {now:?}");
        // Much less than the nap, by which it would be behind if it had stood.
        let error = now.error_ns(&saved).unwrap();
        assert!(error.unsigned_abs() < nap.as_nanos() as u64 / 2, "{error} ns");
    }

    #[test]
    fn a_clock_goes_on_by_the_time_that_has_passed_whatever_the_real_time_of_its_host_was() {
        let (Some(there), Some(here)) = (fresh(), fresh()) else { return };
        let _vcpus = [&there, &here].map(|vm| vm.create_vcpu(0).unwrap());
        const MINUTE_NS: i64 = 60_000_000_000;
        for ahead_ns in [-3 * MINUTE_NS, -MINUTE_NS / 20, MINUTE_NS / 20, 3 * MINUTE_NS] {
            let saved = ClockState::save(&there).unwrap();
            // As it is on a host whose clock is behind by as much, or before.
            let saved = ClockState {
                realtime_ns: saved.realtime_ns.map(|now| now.wrapping_add_signed(-ahead_ns)),
                ..saved
            };
            saved.seen_from(ahead_ns).restore(&here).unwrap();
            let now = ClockState::save(&here).unwrap();
            let error = now.error_ns(&saved.seen_from(ahead_ns)).unwrap();
            assert!(error.unsigned_abs() < 1_000_000_000, "{error} ns for {ahead_ns}");
            let went = now.guest_ns.abs_diff(saved.guest_ns);
            assert!(went < 1_000_000_000, "{went} ns for {ahead_ns}");
        }
    }

    #[test]
    fn a_gap_that_cannot_be_is_none() {
        assert_eq!(gap_ns(1_000, 1_500), Some(500));
        assert_eq!(gap_ns(1_500, 1_000), None);
        assert_eq!(gap_ns(0, GAP_NS_MAX + 1), None);
    }

    #[test]
    fn without_the_hosts_tsc_there_is_no_offset_to_compute() {
        let blind = ClockState { guest_ns: 1, realtime_ns: None, host_tsc: None };
        assert_eq!(blind.tsc_offset(&blind, 0, 1000), None);
    }
}
