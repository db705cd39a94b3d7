//! What the cluster's resources are worth to each VM, as pure functions.
//!
//! [`entitlement`] divides what the cluster has among resource pools and their VMs, by reservations, limits, shares and
//! demand, says which reservations cannot be honoured, and how content a VM is with what it gets.
//!
//! No clock, no I/O, no randomness. Amounts are whole numbers in the units of [`Resource`], sums are exact, and the
//! order in which pools and VMs are listed changes nothing.

pub mod entitlement;
pub mod resource;

pub use resource::{PerResource, Resource};
