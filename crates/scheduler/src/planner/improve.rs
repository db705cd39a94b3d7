//! Moves that nobody must make, but that are worth it.

use super::mandatory::MANDATORY;
use super::model::Model;
use super::priority;
use super::space::Space;
use super::work::Work;
use crate::search::{Effort, Search};

/// Most moves that one plan looks at, however many VMs there are: about two seconds.
const PROPOSALS_MAX: u64 = 4_000_000;

/// Looks for places in which the objective is less, moves and all, and takes those moves that matter enough. Units that must go
/// anyway may go elsewhere.
pub(super) fn improve(work: &mut Work<'_>, seed: u64) {
    if threshold(work) == MANDATORY && work.why.is_empty() {
        return;
    }
    let units: Vec<usize> = (0..work.model.units.len())
        .filter(|unit| work.model.place[*unit].is_some() && work.stays(*unit).is_none())
        .filter(|unit| work.why.contains_key(unit) || work.rests(*unit).is_none())
        .collect();
    let mut wanted = search(work, &units, seed);
    // What must go anyway does not ask whether it matters.
    for (unit, to) in wanted.extract_if(.., |(unit, _)| work.why.contains_key(unit)) {
        if work.model.look(unit, to).is_some_and(|dearer| dearer < 0) {
            work.model.go(unit, to);
        }
    }
    take(work, wanted);
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

/// Takes the moves that matter enough, from the one that is worth most on, as long as any is worth something. Two VMs that change
/// places go both, or none.
fn take(work: &mut Work<'_>, mut wanted: Vec<(usize, usize)>) {
    loop {
        wanted.sort_by_cached_key(|(unit, to)| (work.model.look(*unit, *to).unwrap_or(i64::MAX), *unit));
        let left = wanted.len();
        wanted.retain(|(unit, to)| {
            let worth = work.model.look(*unit, *to).is_some_and(|dearer| dearer < 0);
            if worth {
                weigh(work, &[(*unit, *to)]);
            }
            !worth
        });
        if wanted.len() < left {
            continue;
        }
        let Some((one, other)) = exchange(&work.model, &wanted) else { return };
        weigh(work, &[wanted[one], wanted[other]]);
        wanted.remove(one.max(other));
        wanted.remove(one.min(other));
    }
}

/// Makes moves that go together, if they matter enough.
fn weigh(work: &mut Work<'_>, moves: &[(usize, usize)]) {
    let reasons: Vec<_> = moves.iter().map(|(unit, to)| priority::of(&mut work.model, *unit, *to)).collect();
    let priority = reasons.iter().map(|(_, priority)| *priority).min().unwrap_or(5);
    if priority > threshold(work) {
        return;
    }
    for ((unit, to), (reason, _)) in moves.iter().zip(reasons) {
        work.model.go(*unit, *to);
        work.note(*unit, reason, priority);
    }
}

/// The places of two whose exchange is worth most; none if none is worth anything.
fn exchange(model: &Model<'_>, wanted: &[(usize, usize)]) -> Option<(usize, usize)> {
    let from = |at: usize| model.place[wanted[at].0].map(|host| host as usize);
    let worth = |(one, other): (usize, usize)| {
        let opposite = from(one) == Some(wanted[other].1) && from(other) == Some(wanted[one].1);
        let dearer = if opposite { model.look_swap(wanted[one].0, wanted[other].0) } else { None };
        Some((dearer.filter(|dearer| *dearer < 0)?, one, other))
    };
    let pairs = (0..wanted.len()).flat_map(|one| (0..one).map(move |other| (one, other)));
    pairs.filter_map(worth).min().map(|(_, one, other)| (one, other))
}

fn threshold(work: &Work<'_>) -> u8 {
    let threshold = work.case.policy.threshold;
    if (1..=5).contains(&threshold) { threshold } else { 1 }
}

fn moved_max(work: &Work<'_>) -> usize {
    let most = work.case.vms.len() as u64 * u64::from(work.case.policy.moved_max_permille) / 1000;
    most.max(1) as usize
}
