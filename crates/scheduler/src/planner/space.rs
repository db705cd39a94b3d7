//! The planner's model as the search sees it: the units that it may move, under numbers of their own.

use super::model::Model;
use super::objective::score;
use crate::cluster::Move;
use crate::search;

#[derive(Clone)]
pub(super) struct Space<'a> {
    pub(super) model: Model<'a>,
    /// The search's VMs.
    units: Vec<u32>,
    guests: Vec<Vec<u32>>,
    slot: Vec<u32>,
}

impl<'a> Space<'a> {
    /// Units that have a host and may move.
    pub(super) fn new(model: Model<'a>, units: &[usize]) -> Self {
        let mut space = Self {
            guests: vec![Vec::new(); model.case.hosts.len()],
            units: units.iter().map(|unit| *unit as u32).collect(),
            slot: vec![0; units.len()],
            model,
        };
        for (vm, unit) in units.iter().enumerate() {
            if let Some(host) = space.model.place[*unit] {
                space.enter(vm, host as usize);
            }
        }
        space
    }

    /// The unit that a VM of the search is.
    pub(super) fn unit(&self, vm: usize) -> usize {
        self.units[vm] as usize
    }

    fn enter(&mut self, vm: usize, host: usize) {
        self.slot[vm] = self.guests[host].len() as u32;
        self.guests[host].push(vm as u32);
    }

    fn settle(&mut self, vm: usize, to: usize) {
        use search::Model as _;
        let (from, slot) = (self.host_of(vm), self.slot[vm] as usize);
        self.guests[from].swap_remove(slot);
        if let Some(last) = self.guests[from].get(slot) {
            self.slot[*last as usize] = slot as u32;
        }
        self.enter(vm, to);
        self.model.go(self.unit(vm), to);
    }
}

impl search::Model for Space<'_> {
    fn hosts(&self) -> usize {
        self.guests.len()
    }

    fn vms(&self) -> usize {
        self.units.len()
    }

    fn host_of(&self, vm: usize) -> usize {
        // Units without a host are not in here, and none loses its host.
        self.model.place[self.unit(vm)].map_or(0, |host| host as usize)
    }

    fn guests(&self, host: usize) -> &[u32] {
        &self.guests[host]
    }

    fn cost(&self) -> f64 {
        score(self.model.cost())
    }

    fn look(&self, change: Move) -> Option<f64> {
        let dearer = match change {
            Move::Relocate { vm, to } => self.model.look(self.unit(vm), to),
            Move::Swap { one, other } => self.model.look_swap(self.unit(one), self.unit(other)),
        };
        dearer.map(|dearer| score(self.model.cost() + dearer))
    }

    fn apply(&mut self, change: Move) {
        match change {
            Move::Relocate { vm, to } => {
                if self.host_of(vm) != to {
                    self.settle(vm, to);
                }
            }
            Move::Swap { one, other } => {
                let (here, there) = (self.host_of(one), self.host_of(other));
                if here != there {
                    self.settle(one, there);
                    self.settle(other, here);
                }
            }
        }
    }
}
