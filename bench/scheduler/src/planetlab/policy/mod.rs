//! Who decides where VMs run.

mod overload;
mod pabfd;
mod planner;
mod sketch;

pub(super) use overload::Overload;
pub(super) use pabfd::Pabfd;
pub(super) use planner::Planner;

use super::day::Day;
use super::world::{Migration, World};

/// A policy of the benchmark. It sees the present and the past.
pub(super) trait Policy {
    /// A host for each VM before any of them works, when all that is known of them is their size. Memory is kept, and what VMs
    /// could use at most.
    fn place(&mut self, day: &Day) -> Vec<usize>;

    /// What is to be moved in this round.
    fn plan(&mut self, world: &World<'_>) -> Vec<Migration>;
}
