//! What both test guests promise to whoever tests with them: the records on their disk, the stamps in their memory,
//! their parameters, their report and their pulse. Pure and without allocation, so that the reference guest's kernel, the Linux
//! guest's init program and the load harness share it.

#![no_std]

pub mod disk;
mod fnv;
mod pacer;
pub mod page;
pub mod params;
pub mod pulse;
pub mod report;

pub use fnv::fnv1a_64;
pub use pacer::{BURST_US, Pacer};
