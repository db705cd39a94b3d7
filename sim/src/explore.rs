//! Every order of steps from the moment before the guest is stopped, within a budget of faults.
//!
//! A search in depth that never goes twice through states with the same fingerprint. Time is a choice: the next
//! deadline of a host may fire whenever it is set, or all of them at once, whatever else is under way. From every state
//! the undisturbed rest is played to its end, too.

use std::collections::HashMap;

use serde::Serialize;

use crate::rules::Rules;
use crate::shrink::{self, Failure};
use crate::world::{Choice, Fault, Side, Violation, World};

const PAGES: usize = 2;
/// Steps in which a migration comes to its switchover, at the latest by its deadline.
const STEPS_BEFORE_MAX: usize = 10_000;

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Faults on one path.
    pub faults: u8,
    /// States after which it stops, unfinished.
    pub states_max: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explored {
    /// States that differ, counting those that differ only in the faults left.
    pub states: usize,
    pub transitions: usize,
    /// Steps of the longest path without a state twice.
    pub longest_path: usize,
    /// Nothing within the bounds was left out.
    pub complete: bool,
    pub failure: Option<Failure>,
}

struct Frame {
    world: World,
    open: Vec<Choice>,
    faults: u8,
}

/// Goes through all states; `progress` is told their number now and then.
pub fn explore(rules: Rules, bounds: Bounds, mut progress: impl FnMut(usize)) -> Explored {
    let begin = before_the_stop(rules);
    let mut explored = Explored { states: 0, transitions: 0, longest_path: 0, complete: true, failure: None };
    // With how many faults left a state has been gone through.
    let mut visited: HashMap<u64, u8> = HashMap::new();
    let mut path: Vec<Choice> = Vec::new();
    visited.insert(begin.fingerprint(), bounds.faults);
    let mut stack = vec![frame(begin.clone(), bounds.faults)];
    while let Some(top) = stack.last_mut() {
        let Some(choice) = top.open.pop() else {
            stack.pop();
            path.pop();
            continue;
        };
        if explored.states >= bounds.states_max {
            explored.complete = false;
            return explored;
        }
        let faults = top.faults - u8::from(matches!(choice, Choice::Fault(_)));
        let mut world = top.world.clone();
        explored.transitions += 1;
        path.push(choice);
        if let Err(violation) = world.apply(choice) {
            (explored.complete, explored.failure) = (false, Some(fewest(&begin, &path, violation)));
            return explored;
        }
        // Gone through before with as many faults to spare, it has nothing new to show.
        let print = world.fingerprint();
        if visited.get(&print).is_some_and(|left| *left >= faults) {
            path.pop();
            continue;
        }
        visited.insert(print, faults);
        explored.states += 1;
        if explored.states.is_multiple_of(4096) {
            progress(explored.states);
        }
        explored.longest_path = explored.longest_path.max(path.len());
        if let Err(violation) = world.clone().finish(|_, _| ()) {
            (explored.complete, explored.failure) = (false, Some(fewest(&begin, &path, violation)));
            return explored;
        }
        stack.push(frame(world, faults));
    }
    explored
}

fn fewest(begin: &World, path: &[Choice], violation: Violation) -> Failure {
    shrink::shrink(begin, path, violation)
}

fn frame(world: World, faults: u8) -> Frame {
    let mut open = world.choices();
    open.extend(world.times());
    if faults > 0 {
        open.extend(world.faults().into_iter().filter(|fault| is_explored(*fault)).map(Choice::Fault));
    }
    Frame { world, open, faults }
}

/// The faults that no order of other steps makes up for.
fn is_explored(fault: Fault) -> bool {
    match fault {
        Fault::Cut { .. }
        | Fault::CrashVmm { .. }
        | Fault::PowerCut
        | Fault::CrashManager
        | Fault::AskTimesOut(_)
        | Fault::LosePoll { late: true }
        | Fault::CrashAgent(_)
        | Fault::Cancel => true,
        // A crash of the VMM beside one of the agent; silence is what deadlines make of it; the rest is for the seeds.
        _ => false,
    }
}

/// A migration in which the source is about to stop the guest, always the same.
fn before_the_stop(rules: Rules) -> World {
    let mut world = World::new(rules, PAGES);
    let mut step = 0;
    while !world.is_about_to_stop() {
        let open: Vec<Choice> =
            world.choices().into_iter().filter(|choice| !matches!(choice, Choice::Poll { .. })).collect();
        let choice = match open.first() {
            Some(choice) => *choice,
            // Before post-copy is chosen the destination has nothing to wait for but more rounds.
            None if rules.post_copy => Choice::Deadline(Side::Source),
            None => Choice::Deadline(if step % 2 == 0 { Side::Source } else { Side::Destination }),
        };
        step += 1;
        assert!(step < STEPS_BEFORE_MAX, "an undisturbed pre-copy comes to its end");
        // Nothing has gone wrong yet.
        let _ = world.apply(choice);
    }
    world
}
