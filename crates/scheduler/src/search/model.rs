//! What a search needs to know of whatever it makes better.

use super::reach::Reach;
use crate::cluster::Move;

/// VMs on hosts, and what it costs to have them there. Hosts and VMs are called by numbers from 0 on.
///
/// A search clones it and tries it in many places, so what a move does should cost the terms of two hosts and no more.
pub trait Model: Clone {
    fn hosts(&self) -> usize;

    fn vms(&self) -> usize;

    /// Where the VM is.
    fn host_of(&self, vm: usize) -> usize;

    /// The VMs of a host, in an order that follows from the moves that were made and nothing else.
    fn guests(&self, host: usize) -> &[u32];

    /// What is to be made less; at least 0.
    fn cost(&self) -> f64;

    /// What [`cost`](Self::cost) would say after the move, to the bit; none if the move is not allowed or changes nothing.
    fn look(&self, change: Move) -> Option<f64>;

    /// The same, or none if it would be above the limit: a model that sees so early need not go on.
    fn look_below(&self, change: Move, limit: f64) -> Option<f64> {
        self.look(change).filter(|cost| *cost <= limit)
    }

    /// Whether everybody may be where they are. A model that lets rules be broken at a price says no while any is, and then asks
    /// the same for places that are allowed, whatever the price.
    fn is_allowed(&self) -> bool {
        true
    }

    /// On which hosts each VM can be at all, wherever the others are. It is only a hint, which spares a walk proposals that can never
    /// be allowed.
    fn reach(&self) -> Option<&Reach> {
        None
    }

    /// How much it can cost where a VM is, compared with temperatures.
    fn size(&self, _vm: usize) -> Option<f64> {
        None
    }

    /// Makes the move, whether it is allowed or not.
    fn apply(&mut self, change: Move);

    /// How much a host has to bear, compared with others: those that bear more should rather lose VMs to those that bear less. It
    /// is only a hint, which spares a search most of the moves that are not worth a look. A model gives it for all hosts or for none.
    fn strain(&self, _host: usize) -> Option<f64> {
        None
    }
}

/// The two hosts that a move changes: the one that loses the VM, or the first VM, and the one that gets it.
pub(super) fn ends(model: &impl Model, change: Move) -> (usize, usize) {
    match change {
        Move::Relocate { vm, to } => (model.host_of(vm), to),
        Move::Swap { one, other } => (model.host_of(one), model.host_of(other)),
    }
}
