//! The places that a search has found, without the moves that are not worth it.

use serde::{Deserialize, Serialize};

use super::model::Model;
use super::placement::Placement;
use crate::cluster::Move;

/// Which VMs to move, in no order that means anything: what must leave before what can come is another question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub score_before: f64,
    pub score_after: f64,
    /// By VM; no VM twice.
    pub steps: Vec<Step>,
}

/// One VM that moves, by the places of VM and hosts in the caller's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub vm: usize,
    pub from: usize,
    pub to: usize,
}

impl Plan {
    /// From everybody at home to these places, which are no worse. Nobody moves if the moves are not worth `gain_min` of the score
    /// each, taken together; else those stay without whom the score is less than that above what it is with them. So what is left
    /// is worth it too, and never worse than to do nothing.
    pub(super) fn new<M: Model>(mut placement: Placement<M>, places: &[(u32, u32)], gain_min: f64) -> Self {
        let score_before = placement.model.cost();
        let at_home = placement.clone();
        placement.take(places);
        if score_before - placement.model.cost() < gain_min * places.len() as f64 {
            placement = at_home;
        }
        while keep_home(&mut placement, gain_min) {}
        let step = |(vm, to): (u32, u32)| {
            let vm = vm as usize;
            Step { vm, from: placement.home(vm), to: to as usize }
        };
        let steps = placement.places().into_iter().map(step).collect();
        Self { score_before, score_after: placement.model.cost(), steps }
    }
}

/// Lets those stay that are not missed, from the one that is missed least on. Whether anybody stays.
fn keep_home<M: Model>(placement: &mut Placement<M>, gain_min: f64) -> bool {
    let stay = |placement: &Placement<M>, vm: usize| Move::Relocate { vm, to: placement.home(vm) };
    let mut missed: Vec<(f64, usize)> = placement
        .places()
        .into_iter()
        .map(|(vm, _)| vm as usize)
        .filter_map(|vm| Some((placement.model.look(stay(placement, vm))?, vm)))
        .collect();
    missed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut any = false;
    for (_, vm) in missed {
        let change = stay(placement, vm);
        let with = placement.model.cost();
        let is_missed = |without: f64| without > with && without >= with + gain_min;
        if placement.model.look(change).is_some_and(|without| !is_missed(without)) {
            placement.apply(change);
            any = true;
        }
    }
    any
}
