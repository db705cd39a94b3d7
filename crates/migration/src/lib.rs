//! Moves a running VM's memory and device state between two processes, and hands it over so that at most one of them
//! ever runs it.

pub mod bitmap;
pub mod driver;
pub mod machine;

pub use machine::{Destination, GuestMemory, MachineError, Manifest, PageRange, Section, Source};
