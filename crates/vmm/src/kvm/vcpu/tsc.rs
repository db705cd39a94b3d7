//! The frequency of the time stamp counter.

use godwit_types::cpu::{tsc_drift_ppm, tsc_near_enough};
use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, call};

/// Makes the TSC run at the source's frequency: by scaling, or, if it is near enough, by taking it as it is.
///
/// Linux guests read time from kvmclock, which knows the true frequency; only their timers drift by as much.
pub(super) fn set_khz(vcpu: &VcpuFd, khz: u32) -> Result<(), KvmError> {
    let host = vcpu.get_tsc_khz().unwrap_or(0);
    if host == khz {
        return Ok(());
    }
    let Err(error) = vcpu.set_tsc_khz(khz) else { return Ok(()) };
    if tsc_near_enough(khz, host) {
        let drift = tsc_drift_ppm(khz, host);
        tracing::warn!("the guest's TSC was {khz} kHz and is {host} kHz here, {drift} ppm off");
        return Ok(());
    }
    Err(call(format!("running the TSC at {khz} kHz on a host with {host} kHz and no TSC scaling"))(error))
}
