//! Moves that nobody must make, but that are worth it.

use super::model::Model;
use super::priority;
use super::work::Work;

/// Looks for places in which the objective is less, moves and all, and takes those moves that matter enough.
pub(super) fn improve(work: &mut Work<'_>, _seed: u64) {
    let units: Vec<usize> = (0..work.model.units.len())
        .filter(|unit| work.model.place[*unit].is_some() && !work.why.contains_key(unit))
        .filter(|unit| work.rests(*unit).is_none())
        .collect();
    let moved_max = moved_max(work);
    let mut found = work.model.clone();
    climb(&mut found, &units, moved_max);
    let mut wanted: Vec<(usize, usize)> = units
        .into_iter()
        .filter(|unit| found.place[*unit] != work.model.place[*unit])
        .filter_map(|unit| Some((unit, found.place[unit]? as usize)))
        .collect();
    while let Some(at) = next(&work.model, &wanted) {
        let (unit, to) = wanted.swap_remove(at);
        let (reason, priority) = priority::of(&work.model, unit, to);
        if priority <= threshold(work) {
            work.model.go(unit, to);
            work.note(unit, reason, priority);
        }
    }
}

/// The place of the move that is worth most now; none if none is worth anything.
fn next(model: &Model<'_>, wanted: &[(usize, usize)]) -> Option<usize> {
    let each = wanted.iter().enumerate();
    let worth = each.filter_map(|(at, (unit, to))| Some((model.look(*unit, *to)?, *unit, at)));
    worth.filter(|(dearer, ..)| *dearer < 0).min().map(|(_, _, at)| at)
}

fn threshold(work: &Work<'_>) -> u8 {
    let threshold = work.case.policy.threshold;
    if (1..=5).contains(&threshold) { threshold } else { 1 }
}

fn moved_max(work: &Work<'_>) -> usize {
    let most = work.case.vms.len() as u64 * u64::from(work.case.policy.moved_max_permille) / 1000;
    most.max(1) as usize
}

/// The best of all moves, again and again, until none helps or so many have moved.
fn climb(model: &mut Model<'_>, units: &[usize], moved_max: usize) {
    for _ in 0..moved_max {
        let hosts = 0..model.case.hosts.len();
        let look = |unit: usize, host: usize| Some((model.look(unit, host)?, unit, host));
        let all = units.iter().flat_map(|unit| hosts.clone().filter_map(move |host| look(*unit, host)));
        match all.min() {
            Some((dearer, unit, host)) if dearer < 0 => model.go(unit, host),
            _ => return,
        }
    }
}
