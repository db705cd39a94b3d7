//! In which order VMs move, so that every step can be done when it begins.
//!
//! A VM needs room at its destination while it still has it at its source, and no must-rule may be broken in between either, but that
//! VMs be together: those move one after the other. Each host takes part in so many moves at a time, and its bandwidth is divided
//! among those that are under way, anew with each that begins or ends.
//!
//! ```text
//!   begin whatever can begin, the longest way that hangs on it first  ->  wait for the next end  ->  again
//!                       | nothing can, and nothing moves
//!                       v
//!   somebody goes by way of a third host, the one that moves fastest  ->  from the beginning
//!                       | there is no such host, so nobody who waits can ever go
//!                       v
//!   they stay, and those that go with them or not at all  ->  from the beginning
//! ```

pub(crate) mod cost;
mod cycle;
mod flow;
mod ground;
mod run;

use std::collections::BTreeSet;

use crate::planner::case::Case;
use crate::planner::{Cost, Reason};

/// A VM that is to go somewhere.
#[derive(Debug, Clone)]
pub(crate) struct Going {
    pub(crate) vm: usize,
    pub(crate) unit: usize,
    /// Those of one group go all, or none.
    pub(crate) group: usize,
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
    /// Those for whom there is no place in it.
    pub(crate) dropped: Vec<Going>,
}

/// Orders moves.
pub(crate) fn order(case: &Case<'_>, mut going: Vec<Going>) -> Order {
    let mut dropped = Vec::new();
    let mut detours = 0;
    loop {
        match run::run(case, &going) {
            Ok(steps) => return Order { steps, dropped },
            Err(stuck) => {
                // Each detour is of another VM, and whoever waits and is dropped makes the list shorter.
                if detours < going.len() && cycle::detour(case, &mut going, &stuck) {
                    detours += 1;
                } else {
                    let groups: BTreeSet<usize> = stuck.pending.iter().map(|at| going[*at].group).collect();
                    dropped.extend(going.extract_if(.., |going| groups.contains(&going.group)));
                }
            }
        }
    }
}
