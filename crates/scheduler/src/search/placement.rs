//! A model that is tried in other places than those in which its VMs run.

use super::model::{Model, ends};
use crate::cluster::Move;

/// The model, and which of its VMs are not where they were at the beginning.
#[derive(Debug, Clone)]
pub(super) struct Placement<M> {
    pub(super) model: M,
    home: Vec<u32>,
    /// VMs that are away, and of each VM where it stands among them.
    away: Vec<u32>,
    slot: Vec<u32>,
}

impl<M: Model> Placement<M> {
    /// Everybody is at home.
    pub(super) fn new(model: M) -> Self {
        let vms = model.vms();
        Self {
            home: (0..vms).map(|vm| model.host_of(vm) as u32).collect(),
            away: Vec::new(),
            slot: vec![0; vms],
            model,
        }
    }

    pub(super) fn home(&self, vm: usize) -> usize {
        self.home[vm] as usize
    }

    pub(super) fn away(&self) -> &[u32] {
        &self.away
    }

    /// How many VMs would be away after the move.
    pub(super) fn away_after(&self, change: Move) -> usize {
        let (from, to) = ends(&self.model, change);
        let step =
            |vm: usize, from, to| (usize::from(self.home(vm) != to), usize::from(self.home(vm) != from));
        let (more, less) = match change {
            Move::Relocate { vm, .. } => step(vm, from, to),
            Move::Swap { one, other } => {
                let (there, back) = (step(one, from, to), step(other, to, from));
                (there.0 + back.0, there.1 + back.1)
            }
        };
        self.away.len() + more - less
    }

    pub(super) fn apply(&mut self, change: Move) {
        self.model.apply(change);
        match change {
            Move::Relocate { vm, .. } => self.note(vm),
            Move::Swap { one, other } => {
                self.note(one);
                self.note(other);
            }
        }
    }

    /// VMs that are away and where, by VM.
    pub(super) fn places(&self) -> Vec<(u32, u32)> {
        let mut away = self.away.clone();
        away.sort_unstable();
        away.into_iter().map(|vm| (vm, self.model.host_of(vm as usize) as u32)).collect()
    }

    /// From everybody at home to these places.
    pub(super) fn take(&mut self, places: &[(u32, u32)]) {
        for (vm, to) in places {
            self.apply(Move::Relocate { vm: *vm as usize, to: *to as usize });
        }
    }

    /// Puts the VM on the list of those that are away, or off it.
    fn note(&mut self, vm: usize) {
        let slot = self.slot[vm] as usize;
        let listed = self.away.get(slot).is_some_and(|at| *at as usize == vm);
        let away = self.model.host_of(vm) != self.home(vm);
        if away && !listed {
            self.slot[vm] = self.away.len() as u32;
            self.away.push(vm as u32);
        } else if !away && listed {
            self.away.swap_remove(slot);
            if let Some(last) = self.away.get(slot) {
                self.slot[*last as usize] = slot as u32;
            }
        }
    }
}
