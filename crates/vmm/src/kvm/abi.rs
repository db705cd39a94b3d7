//! Kernel structures as bytes, the form in which they travel in saved state.

use kvm_bindings::{
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs,
};

/// A structure of the KVM ABI, whose layout the kernel never changes.
///
/// # Safety
/// The type must be valid for every bit pattern.
pub unsafe trait Abi: Copy {
    /// The structure's bytes. Padding was zeroed by [`Abi::zeroed`] before the kernel filled it in.
    fn to_bytes(&self) -> Vec<u8> {
        // SAFETY: the type has no uninitialised bytes, see `zeroed`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }.to_vec()
    }

    /// Reads a structure, if the length is right.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: the length is checked, the read unaligned, and every bit pattern valid.
        (bytes.len() == size_of::<Self>()).then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// A structure of zeros.
    fn zeroed() -> Self {
        // SAFETY: every bit pattern is valid.
        unsafe { std::mem::zeroed() }
    }
}

// SAFETY: plain integers, arrays and unions of them, as are all of the following.
unsafe impl Abi for kvm_regs {}
// SAFETY: as above.
unsafe impl Abi for kvm_sregs {}
// SAFETY: as above.
unsafe impl Abi for kvm_xcrs {}
// SAFETY: as above.
unsafe impl Abi for kvm_debugregs {}
// SAFETY: as above.
unsafe impl Abi for kvm_lapic_state {}
// SAFETY: as above.
unsafe impl Abi for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Abi for kvm_irqchip {}
// SAFETY: as above.
unsafe impl Abi for kvm_pit_state2 {}
