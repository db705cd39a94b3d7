//! Which migrations may start: a pure function of those that are open and of what their hosts take at once.
//!
//! A move needs a slot at each of its places. Those that wait are looked at from the oldest on:
//!
//! ```text
//!   a slot at each place --> it starts, and its slots are taken
//!   else, the oldest ------> the slots that it can have are kept for it
//!   else ------------------> nobody behind it gets past it where it is held up; elsewhere they may
//! ```
//!
//! So moves between the same hosts start in the order in which they were asked for, a host that is full holds up nobody
//! who does not need it, and nobody starves: whoever waits becomes the oldest, and the oldest needs no more than the end of
//! moves under way, which wait for nothing.

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::HostName;

/// Something that takes part in a limited number of moves at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A host's way out.
    Out(HostName),
    /// A host's way in.
    In(HostName),
}

/// An open migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// All that it needs a slot of. (A datastore that it copies a disk to or from would be one more.)
    pub places: Vec<Place>,
    pub under_way: bool,
}

impl Move {
    /// One from host to host.
    pub fn between(from: &HostName, to: &HostName, under_way: bool) -> Self {
        Self { places: vec![Place::Out(from.clone()), Place::In(to.clone())], under_way }
    }
}

/// What becomes of a move now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It is under way, or may start.
    Now,
    Wait {
        /// Its place among those that wait for one of the same places, from 1.
        position: u32,
        /// Its places without a slot for it.
        full: Vec<Place>,
    },
}

/// Of each of `moves`, oldest first, in the same order; `slots` says how many a place takes at once.
pub fn turns(moves: &[Move], slots: impl Fn(&Place) -> u32) -> Vec<Turn> {
    let places: BTreeSet<&Place> = moves.iter().flat_map(|one| &one.places).collect();
    let mut free: BTreeMap<&Place, u32> = places.into_iter().map(|place| (place, slots(place))).collect();
    for place in moves.iter().filter(|one| one.under_way).flat_map(|one| &one.places) {
        take(&mut free, place);
    }
    let mut waiting: Vec<&Move> = Vec::new();
    let mut turns = Vec::with_capacity(moves.len());
    for one in moves {
        if one.under_way {
            turns.push(Turn::Now);
            continue;
        }
        let is_full = |place: &&Place| free.get(place).is_none_or(|free| *free == 0);
        let full: Vec<&Place> = one.places.iter().filter(is_full).collect();
        if full.is_empty() || waiting.is_empty() {
            one.places.iter().for_each(|place| take(&mut free, place));
        }
        if full.is_empty() {
            turns.push(Turn::Now);
            continue;
        }
        let before =
            waiting.iter().filter(|other| other.places.iter().any(|place| one.places.contains(place)));
        let position = before.count() as u32 + 1;
        turns.push(Turn::Wait { position, full: full.into_iter().cloned().collect() });
        waiting.push(one);
    }
    turns
}

fn take(free: &mut BTreeMap<&Place, u32>, place: &Place) {
    if let Some(free) = free.get_mut(place) {
        *free = free.saturating_sub(1);
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
