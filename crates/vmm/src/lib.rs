//! The machine: KVM, memory, devices, boot. One process runs one VM.

pub mod bus;
pub mod device;
pub mod devices;
pub mod interrupt;
pub mod memory;
