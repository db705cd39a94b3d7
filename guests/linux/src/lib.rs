//! What runs as process 1 on stock Debian kernels: in the Linux test guest, which keeps the guest contract
//! ([`godwit_guest_contract`]), and in the lab's emulated hosts, which run Godwit itself.
//!
//! Both are static programs in an initramfs with nothing but the kernel's modules and busybox beside them.

pub mod boot;
pub mod guest;
pub mod remote;
