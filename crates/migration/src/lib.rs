//! Moves a running VM's memory and device state between two processes, and hands it over so that at most one of them
//! ever runs it.
//!
//! ```text
//!                 driver/  threads, sockets, clock
//!        source.rs  <---- wire/ ---->  destination.rs     state machines without I/O
//!   policy, throttle, meter, report
//!        machine.rs::Source            machine.rs::Destination      implemented by godwit-vmm
//! ```

pub mod bitmap;
pub mod codec;
pub mod destination;
mod disks;
pub mod driver;
mod failure;
pub mod machine;
pub mod meter;
pub mod planner;
pub mod policy;
pub mod proof;
pub mod report;
pub mod secure;
pub mod source;
pub mod throttle;
mod tuning;
pub mod wire;

pub use disks::{ArrivingDisks, DiskRange, LeavingDisks, lay_out};
pub use failure::Link;
pub use machine::{
    Absent, Destination, GuestMemory, Kept, Loaded, MachineError, Manifest, PageRange, Reclaimed, Section,
    Source, VcpuActivity, is_zero,
};
pub use tuning::Tuning;
