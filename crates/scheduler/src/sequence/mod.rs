//! In which order VMs move, so that every step can be done when it begins.
//!
//! A VM needs room at its destination while it still has it at its source, and no must-rule may be broken in between either, but that
//! VMs be together: those move one after the other. Each host takes part in so many moves at a time, and its bandwidth is divided
//! among them.
//!
//! ```text
//!   begin whatever can begin, the longest way that hangs on it first  ->  wait for the next end  ->  again
//!                       | nothing can, and nothing moves
//!                       v
//!   somebody goes by way of a third host, the one that moves fastest  ->  from the beginning
//!                       | there is no such host
//!                       v
//!   somebody stays, the one that matters least  ->  from the beginning
//! ```

pub(crate) mod cost;
mod cycle;
mod ground;
mod run;

use crate::planner::case::Case;
use crate::planner::{Cost, Reason};

/// A VM that is to go somewhere.
#[derive(Debug, Clone)]
pub(crate) struct Going {
    pub(crate) vm: usize,
    /// VMs of one unit go all, or none.
    pub(crate) unit: usize,
    /// None if it starts there.
    pub(crate) from: Option<usize>,
    pub(crate) to: usize,
    pub(crate) reason: Reason,
    pub(crate) priority: u8,
}

/// When it goes.
#[derive(Debug, Clone)]
pub(crate) struct Timed {
    pub(crate) going: Going,
    pub(crate) cost: Cost,
    pub(crate) begins_ms: u64,
    pub(crate) ends_ms: u64,
    /// Places in the order of those that must have ended.
    pub(crate) after: Vec<usize>,
}

/// An order.
pub(crate) struct Order {
    pub(crate) steps: Vec<Timed>,
    /// Units for which there is no place in the order.
    pub(crate) dropped: Vec<usize>,
}

/// Orders moves. Those to a host that is not there yet begin when it is, `ready_ms` after the plan's beginning.
pub(crate) fn order(case: &Case<'_>, going: Vec<Going>, ready_ms: &[u64]) -> Order {
    let mut going = going;
    let mut dropped = Vec::new();
    let mut detours = 0;
    loop {
        match run::run(case, &going, ready_ms) {
            Ok(steps) => return Order { steps, dropped },
            Err(stuck) => {
                // Each detour is of another VM, and each drop makes the list shorter.
                if detours < going.len() && cycle::detour(case, &mut going, &stuck) {
                    detours += 1;
                } else {
                    let unit = cycle::least(&going, &stuck);
                    going.retain(|going| going.unit != unit);
                    dropped.push(unit);
                }
            }
        }
    }
}
