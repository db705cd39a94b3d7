//! The machine: KVM, memory, devices, boot. One process runs one VM.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod control;
pub mod copier;
pub mod cpu;
pub mod device;
pub mod devices;
#[cfg(test)]
mod golden_tests;
pub mod interrupt;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod offer;
pub mod sandbox;
pub mod supervisor;
