//! Moves that nobody must make, but that are worth it.

use super::mandatory::MANDATORY;
use super::model::Model;
use super::priority;
use super::space::Space;
use super::work::Work;
use crate::search::{Effort, Search};

/// Most moves that one plan looks at, however many VMs there are: about a second.
const PROPOSALS_MAX: u64 = 2_000_000;

/// Looks for places in which the objective is less, moves and all, and takes those moves that matter enough. Units that must go
/// anyway may go elsewhere.
pub(super) fn improve(work: &mut Work<'_>, seed: u64) {
    let only_what_must = threshold(work) == MANDATORY;
    // Where power is managed, hosts need not be even, and with nothing wrong there is nothing to look for.
    let is_well = work.case.saves && work.model.score() == 0;
    if (only_what_must || is_well) && work.why.is_empty() {
        return;
    }
    let units: Vec<usize> = (0..work.model.units.len())
        .filter(|unit| work.model.place[*unit].is_some() && work.stays(*unit).is_none())
        .filter(|unit| work.why.contains_key(unit) || !only_what_must && work.rests(*unit).is_none())
        .collect();
    for (unit, to) in search(work, &units, seed) {
        work.model.go(unit, to);
    }
    let units: Vec<usize> = units.into_iter().filter(|unit| !work.why.contains_key(unit)).collect();
    while send_home(work, &units) {}
    label(work, units);
}

/// Notes why each goes, one after the other from the one that is worth most on: the first may feed VMs that starve, and the last
/// but make hosts more even.
fn label(work: &mut Work<'_>, mut units: Vec<usize>) {
    units.retain(|unit| is_away(work, *unit));
    let mut model = work.model.clone();
    for unit in &units {
        model.units[*unit].home.into_iter().for_each(|home| model.go(*unit, home as usize));
    }
    let to = |unit: usize| work.model.place[unit].map_or(0, |to| to as usize);
    units.sort_by_cached_key(|unit| (model.dearer(*unit, to(*unit)), *unit));
    let places: Vec<(usize, usize)> = units.iter().map(|unit| (*unit, to(*unit))).collect();
    for (unit, to) in places {
        let Some(home) = model.place[unit].map(|home| home as usize) else { continue };
        let (reason, priority) = priority::of(&mut model, unit, home, to);
        model.go(unit, to);
        work.note(unit, reason, priority.min(threshold(work)));
    }
}

/// Units and where they would better be.
fn search(work: &Work<'_>, units: &[usize], seed: u64) -> Vec<(usize, usize)> {
    let proposals = u64::from(work.case.policy.proposals_per_vm).saturating_mul(units.len() as u64);
    let effort = Effort { moved_max: moved_max(work), proposals: proposals.min(PROPOSALS_MAX), seed };
    let space = Space::new(work.model.clone(), units);
    let mut search = Search::new(space.clone(), effort);
    while search.advance(proposals.max(1)) {}
    search.plan(0.0).steps.into_iter().map(|step| (space.unit(step.vm), step.to)).collect()
}

/// Sends those home that are not missed, or do not matter enough, from the one that is worth least on. Whether anybody went.
fn send_home(work: &mut Work<'_>, units: &[usize]) -> bool {
    let mut away: Vec<usize> = units.iter().copied().filter(|unit| is_away(work, *unit)).collect();
    away.sort_by_cached_key(|unit| (missed(&work.model, *unit), *unit));
    let mut any = false;
    for unit in away {
        if !is_away(work, unit) || matters(work, unit) {
            continue;
        }
        let Some(home) = work.model.units[unit].home.map(|home| home as usize) else { continue };
        if work.model.look(unit, home).is_some() {
            work.model.go(unit, home);
            any = true;
        } else if let Some(other) = partner(work, units, unit).filter(|other| !matters(work, *other)) {
            let here = work.model.place[unit];
            work.model.go(unit, home);
            here.into_iter().for_each(|here| work.model.go(other, here as usize));
            any = true;
        }
    }
    any
}

/// Whether a unit's move is worth it, and matters enough.
fn matters(work: &mut Work<'_>, unit: usize) -> bool {
    let (Some(home), Some(here)) = (work.model.units[unit].home, work.model.place[unit]) else { return true };
    missed(&work.model, unit) > 0
        && priority::of(&mut work.model, unit, home as usize, here as usize).1 <= threshold(work)
}

/// By how much the objective would be more if it were at home.
fn missed(model: &Model<'_>, unit: usize) -> i64 {
    model.units[unit].home.map_or(0, |home| model.dearer(unit, home as usize))
}

/// One that has taken its place, as it has taken the other's: they can only go home together.
fn partner(work: &Work<'_>, units: &[usize], unit: usize) -> Option<usize> {
    let (home, here) = (work.model.units[unit].home, work.model.place[unit]);
    let has = |other: &usize| work.model.units[*other].home == here && work.model.place[*other] == home;
    let mut others = units.iter().copied().filter(has);
    others.find(|other| work.model.look_swap(unit, *other).is_some())
}

fn is_away(work: &Work<'_>, unit: usize) -> bool {
    work.model.place[unit] != work.model.units[unit].home
}

/// Under a policy that makes no sense, only what must be.
fn threshold(work: &Work<'_>) -> u8 {
    if work.case.policy.findings().is_empty() { work.case.policy.threshold } else { MANDATORY }
}

fn moved_max(work: &Work<'_>) -> usize {
    let most = work.case.vms.len() as u64 * u64::from(work.case.policy.moved_max_permille) / 1000;
    most.max(1) as usize
}
