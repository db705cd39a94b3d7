//! What the cluster's resources are worth to each VM, and where each VM should be, as pure functions.
//!
//! [`entitlement`] divides what the cluster has among resource pools and their VMs, by reservations, limits, shares and
//! demand, says which reservations cannot be honoured, and how content a VM is with what it gets. [`cluster`] is which VM is on
//! which host, and what room that leaves; [`balance`] how evenly the hosts are used, before and after any move; [`search`] looks
//! for places that cost less, within a budget of moves.
//!
//! [`planner`] goes from a [`snapshot`] to a plan; [`decision`] keeps what a plan followed from, computes it again, and explains
//! it; [`what_if`] changes a snapshot.
//!
//! [`policy`], [`rules`] and [`settings`] are what people have laid down, in the words of the API.
//!
//! No clock and no I/O, and chance follows from a seed: the same input gives the same bytes. Amounts are whole numbers, in the
//! units of [`Resource`] where they are of one; sums are exact, and the order in which pools and VMs are listed changes nothing in
//! what they are entitled to.

pub mod balance;
pub mod cluster;
pub mod decision;
pub mod entitlement;
pub mod planner;
pub mod policy;
pub mod random;
pub mod record;
pub mod resource;
pub mod rules;
pub mod search;
mod sequence;
pub mod settings;
pub mod snapshot;
pub mod what_if;

pub use resource::{PerResource, Resource};
