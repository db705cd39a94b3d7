//! The frequency of the time stamp counter.

use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, call};

/// How far a TSC that cannot be scaled may be off, in parts per million of the frequency that the guest knows.
const DRIFT_PPM_MAX: u64 = 10_000;

/// Whether a host whose TSC runs at `host_khz`, and cannot be scaled, is near enough for a guest that knows `guest_khz`.
pub fn near_enough(guest_khz: u32, host_khz: u32) -> bool {
    drift_ppm(guest_khz, host_khz) <= DRIFT_PPM_MAX
}

fn drift_ppm(guest_khz: u32, host_khz: u32) -> u64 {
    u64::from(host_khz.abs_diff(guest_khz)) * 1_000_000 / u64::from(guest_khz.max(1))
}

/// Makes the TSC run at the source's frequency: by scaling, or, within [`DRIFT_PPM_MAX`], by taking it as it is.
///
/// Linux guests read time from kvmclock, which knows the true frequency; only their timers drift by as much.
pub(super) fn set_khz(vcpu: &VcpuFd, khz: u32) -> Result<(), KvmError> {
    let host = vcpu.get_tsc_khz().unwrap_or(0);
    if host == khz {
        return Ok(());
    }
    let Err(error) = vcpu.set_tsc_khz(khz) else { return Ok(()) };
    if near_enough(khz, host) {
        let drift = drift_ppm(khz, host);
        tracing::warn!("the guest's TSC was {khz} kHz and is {host} kHz here, {drift} ppm off");
        return Ok(());
    }
    Err(call(format!("running the TSC at {khz} kHz on a host with {host} kHz and no TSC scaling"))(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tsc_that_is_a_percent_off_is_taken_as_it_is_and_one_further_off_is_not() {
        assert!(near_enough(2_000_000, 2_019_000) && near_enough(2_000_000, 1_981_000));
        assert!(!near_enough(2_000_000, 2_100_000) && !near_enough(2_000_000, 1_900_000));
        assert!(!near_enough(0, 1));
    }
}
