//! Which move a walk looks at next, by chance.

use super::model::Model;
use super::walk::Walk;
use crate::cluster::Move;

/// Hosts of which the one that bears most, or least, is taken.
const A_FEW: usize = 4;
/// Of so many proposals to relieve a host, one is an exchange.
const RELIEF_SWAPS: usize = 4;
/// Where VMs can be on some hosts only: so many others are tried, so many hosts, and so many VMs of a host, and so often all of it.
/// A try is a look at two bits; it takes many to find two that can change places where one pair in ten can.
const OTHER_TRIES: usize = 64;
const HOST_TRIES: usize = 8;
const GUEST_TRIES: usize = 8;
const TRIES: usize = 8;

impl<M: Model> Walk<M> {
    /// A move by chance. Half of them are of VMs that are away: once the budget is spent, nobody else may leave without one of
    /// them coming home. A roaming walk only now and then sends home one in whose stead another leaves.
    ///
    /// Where a model knows what can never be, that is not proposed: where one VM in four could be on a host, one exchange in
    /// sixteen is conceivable.
    pub(super) fn propose(&mut self) -> Option<Move> {
        if self.now.model.reach().is_none() {
            return self.propose_anything();
        }
        (0..TRIES).find_map(|_| self.propose_anything())
    }

    fn propose_anything(&mut self) -> Option<Move> {
        let (vms, away) = (self.now.model.vms(), self.now.away().len());
        if vms == 0 {
            return None;
        }
        let choice = self.random.below(8);
        let is_of_all = if self.leans_home { choice < 4 } else { choice < 7 };
        if choice == 2 && self.relieves {
            return self.propose_relief();
        }
        if is_of_all || away == 0 {
            let vm = self.any();
            return if choice.is_multiple_of(2) { self.relocation(vm) } else { self.exchange(vm, Self::any) };
        }
        let vm = self.now.away()[self.random.below(away)] as usize;
        let home = self.now.home(vm);
        match choice {
            4 => self.relocation(vm),
            5 => Some(Move::Relocate { vm, to: home }),
            6 => self.exchange(vm, |walk| walk.random.below(vms)),
            // It comes home, and one from there goes in its stead.
            _ => self.exchange_with(vm, home),
        }
    }

    fn relocation(&mut self, vm: usize) -> Option<Move> {
        Some(Move::Relocate { vm, to: self.host_for(vm)? })
    }

    /// With such another one. Where it is known who can be where, with one for which that works out.
    fn exchange(&mut self, one: usize, other: impl Fn(&mut Self) -> usize) -> Option<Move> {
        if self.now.model.reach().is_none() {
            return Some(Move::Swap { one, other: other(self) });
        }
        for _ in 0..OTHER_TRIES {
            let other = other(self);
            let (from, to) = (self.now.model.host_of(one), self.now.model.host_of(other));
            if from != to && self.can_be(one, to) && self.can_be(other, from) {
                return Some(Move::Swap { one, other });
            }
        }
        None
    }

    /// With a VM of that host.
    fn exchange_with(&mut self, one: usize, host: usize) -> Option<Move> {
        if self.now.model.reach().is_none() {
            return Some(Move::Swap { one, other: self.guest(host)? });
        }
        let from = self.now.model.host_of(one);
        for _ in 0..GUEST_TRIES {
            let other = self.guest(host)?;
            if self.can_be(other, from) && self.is_ripe(other) {
                return Some(Move::Swap { one, other });
            }
        }
        None
    }

    /// A relocation or an exchange between the host that bears most of a few and the one that bears least of as many.
    pub(super) fn propose_relief(&mut self) -> Option<Move> {
        let from = self.of_a_few(|one, other| one > other)?;
        let to = self.of_a_few(|one, other| one < other)?;
        let vm = self.guest(from)?;
        if self.random.below(RELIEF_SWAPS) > 0 {
            return Some(Move::Relocate { vm, to });
        }
        Some(Move::Swap { one: vm, other: self.guest(to)? })
    }

    /// The host that comes first of a few by chance.
    fn of_a_few(&mut self, is_before: impl Fn(f64, f64) -> bool) -> Option<usize> {
        let hosts = self.now.model.hosts();
        let mut best: Option<(f64, usize)> = None;
        for _ in 0..A_FEW {
            let host = self.random.below(hosts);
            let strain = self.now.model.strain(host)?;
            if best.is_none_or(|(least, _)| is_before(strain, least)) {
                best = Some((strain, host));
            }
        }
        best.map(|(_, host)| host)
    }

    /// A host by chance on which the VM can be, and another one than where it is if the model knows where it can be.
    fn host_for(&mut self, vm: usize) -> Option<usize> {
        let Some(reach) = self.now.model.reach() else {
            return Some(self.random.below(self.now.model.hosts()));
        };
        let (from, random) = (self.now.model.host_of(vm), &mut self.random);
        (0..HOST_TRIES).find_map(|_| reach.pick(vm, |bound| random.below(bound)).filter(|to| *to != from))
    }

    /// A VM by chance, of those that may be moved by now.
    fn any(&mut self) -> usize {
        match self.ripe {
            0 => self.random.below(self.now.model.vms()),
            ripe => self.large[self.random.below(ripe)].1 as usize,
        }
    }

    fn can_be(&self, vm: usize, host: usize) -> bool {
        self.now.model.reach().is_none_or(|reach| reach.can_be(vm, host))
    }

    fn is_ripe(&self, vm: usize) -> bool {
        self.ripe == 0 || (self.rank[vm] as usize) < self.ripe
    }

    /// A VM of a host by chance.
    fn guest(&mut self, host: usize) -> Option<usize> {
        let there = self.now.model.guests(host).len();
        let at = (there > 0).then(|| self.random.below(there))?;
        Some(self.now.model.guests(host)[at] as usize)
    }
}
