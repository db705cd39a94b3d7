//! Model-specific registers.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, call};

pub(super) const TSC: u32 = 0x10;
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// MSRs read or written by one call; KVM takes at most 256.
const PER_CALL_MAX: usize = 128;

/// One register.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Msr {
    #[prost(uint32, tag = "1")]
    pub index: u32,
    #[prost(uint64, tag = "2")]
    pub value: u64,
}

/// Reads the MSRs that exist under the vCPU's CPUID; KVM stops at each that does not.
pub(super) fn get(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, KvmError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(PER_CALL_MAX)];
        let entries: Vec<_> =
            asked.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("fewer entries than KVM's limit");
        let read = vcpu.get_msrs(&mut msrs).map_err(call("saving MSRs"))?;
        found.extend(
            msrs.as_slice()[..read].iter().map(|entry| Msr { index: entry.index, value: entry.data }),
        );
        rest = &rest[(read + usize::from(read < asked.len())).min(rest.len())..];
    }
    Ok(found)
}

/// Writes MSRs. One that KVM refuses is an error, unless it has the right value already.
pub(super) fn set<'a>(vcpu: &VcpuFd, msrs: impl IntoIterator<Item = &'a Msr>) -> Result<(), KvmError> {
    let entries: Vec<_> = msrs
        .into_iter()
        .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
        .collect();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(PER_CALL_MAX)];
        let msrs = Msrs::from_entries(asked).expect("fewer entries than KVM's limit");
        let written = vcpu.set_msrs(&msrs).map_err(call("writing MSRs"))?;
        let Some(refused) = asked.get(written) else {
            rest = &rest[written..];
            continue;
        };
        let current = get(vcpu, &[refused.index])?.first().map_or(0, |msr| msr.value);
        if current != refused.data {
            let source = io::Error::other(format!("this host's KVM refuses the value {:#x}", refused.data));
            return Err(KvmError::Call { step: format!("writing MSR {:#x}", refused.index), source });
        }
        rest = &rest[written + 1..];
    }
    Ok(())
}
