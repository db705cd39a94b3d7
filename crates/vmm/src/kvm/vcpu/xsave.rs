//! Extended registers: x87, SSE, AVX and what came after, in the layout of the XSAVE instruction.

use std::io;

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, call};

/// Reads an area of `bytes`, the size that KVM_CAP_XSAVE2 asks for.
pub(super) fn get(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u8>, KvmError> {
    if bytes == size_of::<kvm_xsave>() {
        let xsave = vcpu.get_xsave().map_err(call("saving extended registers"))?;
        return Ok(xsave.region.iter().flat_map(|word| word.to_ne_bytes()).collect());
    }
    let mut xsave = new_area(bytes)?;
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 asked for.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(call("saving extended registers"))?;
    let legacy = xsave.as_fam_struct_ref().xsave.region;
    Ok(legacy.iter().chain(xsave.as_slice()).flat_map(|word| word.to_ne_bytes()).collect())
}

/// Writes an area into one of `bytes`.
pub(super) fn set(vcpu: &VcpuFd, bytes: usize, saved: &[u8]) -> Result<(), KvmError> {
    let mut xsave = new_area(bytes)?;
    let mut words =
        saved.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    // SAFETY: the length field of the structure is left alone.
    let legacy = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
    legacy.iter_mut().zip(&mut words).for_each(|(to, from)| *to = from);
    xsave.as_mut_slice().iter_mut().zip(words).for_each(|(to, from)| *to = from);
    // SAFETY: the buffer has the size that this kernel reads.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(call("restoring extended registers"))
}

fn new_area(bytes: usize) -> Result<Xsave, KvmError> {
    let extra = (bytes - size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::new(extra).map_err(|_| KvmError::Call {
        step: "reserving extended registers".into(),
        source: io::Error::from(io::ErrorKind::OutOfMemory),
    })
}
