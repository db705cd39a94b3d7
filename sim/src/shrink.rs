//! The fewest steps that still break the promise, and what they are called.

use std::mem::discriminant;

use serde::Serialize;

use crate::world::{Choice, Violation, World};

/// A promise that was broken, with the steps that lead to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    pub violation: String,
    /// The steps that were drawn and cannot be left out.
    pub steps: Vec<Choice>,
    /// All steps up to the violation in the protocol's words.
    pub trace: Vec<String>,
}

/// Leaves out steps of `steps`, which lead from `begin` to `violation`, for as long as what is left still leads to the
/// same kind of violation.
pub fn shrink(begin: &World, steps: &[Choice], violation: Violation) -> Failure {
    let same = |steps: &[Choice]| {
        let (found, taken) = replay(begin, steps, &mut |_, _| ());
        found.filter(|found| discriminant(found) == discriminant(&violation)).map(|_| taken)
    };
    let mut steps = same(steps).unwrap_or_else(|| steps.to_vec());
    let mut chunk = steps.len().div_ceil(2);
    while chunk > 0 {
        let (mut start, before) = (0, steps.len());
        while start < steps.len() {
            let end = (start + chunk).min(steps.len());
            let fewer = [&steps[..start], &steps[end..]].concat();
            match same(&fewer) {
                Some(taken) if taken.len() < steps.len() => steps = taken,
                _ => start = end,
            }
        }
        // Single steps are tried again until none can go.
        chunk = if chunk == 1 && steps.len() < before { 1 } else { chunk / 2 };
    }
    let mut trace = Vec::new();
    let (found, _) = replay(begin, &steps, &mut |world, choice| trace.push(world.describe(choice)));
    Failure { violation: found.unwrap_or(violation).to_string(), steps, trace }
}

/// Takes those of `steps` that are open when their turn comes, then lets everybody go on. Returns what went wrong, and
/// the steps that were taken.
pub fn replay(
    begin: &World,
    steps: &[Choice],
    seen: &mut impl FnMut(&World, Choice),
) -> (Option<Violation>, Vec<Choice>) {
    let mut world = begin.clone();
    let mut taken = Vec::with_capacity(steps.len());
    for choice in steps {
        if !is_open(&world, *choice) {
            continue;
        }
        seen(&world, *choice);
        taken.push(*choice);
        if let Err(violation) = world.apply(*choice) {
            return (Some(violation), taken);
        }
    }
    (world.finish(seen).err(), taken)
}

fn is_open(world: &World, choice: Choice) -> bool {
    match choice {
        Choice::Tick { .. } => true,
        Choice::Fault(fault) => world.faults().contains(&fault),
        Choice::Deadline(_) | Choice::Minute(_) => world.times().contains(&choice),
        Choice::Report(_) | Choice::Reported(_) => world.reports().any(|open| open == choice),
        Choice::GuestWrites { .. } | Choice::GuestStores | Choice::DiskDone => {
            world.guest_choices().contains(&choice)
        }
        _ => world.choices().contains(&choice),
    }
}
