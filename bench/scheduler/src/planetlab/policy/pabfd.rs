//! Power-aware best fit decreasing, with minimum migration time: what CloudSim 3.0.3 does around a test for overload.

use std::collections::BTreeSet;

use super::sketch::{Place, place_by};
use super::{Overload, Policy};
use crate::planetlab::day::Day;
use crate::planetlab::kinds::HostKind;
use crate::planetlab::world::{Migration, World};

/// See the module.
#[derive(Debug)]
pub(in crate::planetlab) struct Pabfd(pub(in crate::planetlab) Overload);

impl Policy for Pabfd {
    /// No VM that fits overloads a host, since none of them works yet.
    fn place(&mut self, day: &Day) -> Vec<usize> {
        place_by(day, |host, used, more| {
            let kind = HostKind::of(host);
            kind.watts((used + more) / kind.mips()) - kind.idle_watts()
        })
    }

    fn plan(&mut self, world: &World<'_>) -> Vec<Migration> {
        let places = (0..world.hosts.len()).map(|host| Place::new(world, host)).collect();
        let off = (0..world.hosts.len()).filter(|host| world.hosts[*host].given == 0.0).collect();
        let mut round = Round { world, overload: self.0, places, off };
        let over: BTreeSet<usize> = (0..world.hosts.len()).filter(|host| round.is_over(*host)).collect();
        let mut migrations = round.relieve(&over);
        migrations.extend(round.empty(&over));
        migrations
    }
}

/// One round's plan in the making.
struct Round<'a, 'w> {
    world: &'a World<'w>,
    overload: Overload,
    places: Vec<Place>,
    off: BTreeSet<usize>,
}

impl Round<'_, '_> {
    fn is_over(&self, host: usize) -> bool {
        let place = &self.places[host];
        self.overload.is(place.wanted / place.kind.mips(), &place.history)
    }

    /// Takes VMs of little memory from overloaded hosts until they are not, and finds places for all of them. Those that find none
    /// stay.
    fn relieve(&mut self, over: &BTreeSet<usize>) -> Vec<Migration> {
        let mut leaving = Vec::new();
        for host in over {
            let memory_mb = |vm: &usize| self.world.vms[*vm].kind.memory_mb;
            while let Some(vm) = self.places[*host].vms.iter().copied().min_by_key(memory_mb) {
                leaving.push(vm);
                self.places[*host].remove(self.world, *host, vm);
                if !self.is_over(*host) {
                    break;
                }
            }
        }
        self.sort(&mut leaving);
        let mut migrations = Vec::new();
        for vm in leaving {
            if let Some(host) = self.find(vm, over) {
                self.places[host].add(self.world, vm);
                migrations.push((vm, host));
            }
        }
        migrations
    }

    /// Empties the least used hosts, each if all its VMs find places.
    fn empty(&mut self, over: &BTreeSet<usize>) -> Vec<Migration> {
        let mut migrations = Vec::new();
        let mut closed: BTreeSet<usize> = over.union(&self.off).copied().collect();
        let mut kept = closed.clone();
        while let Some(host) = self.least_used(&kept) {
            kept.insert(host);
            closed.insert(host);
            let mut leaving = self.places[host].vms.clone();
            self.sort(&mut leaving);
            let found = self.rehome(&leaving, &closed);
            kept.extend(found.iter().map(|(_, to)| *to));
            migrations.extend(found);
        }
        migrations
    }

    /// Places for all of them, or for none.
    fn rehome(&mut self, leaving: &[usize], closed: &BTreeSet<usize>) -> Vec<Migration> {
        let mut found: Vec<Migration> = Vec::new();
        for vm in leaving {
            let Some(host) = self.find(*vm, closed) else {
                for (vm, host) in found.drain(..).rev() {
                    self.places[host].remove(self.world, host, vm);
                }
                return found;
            };
            self.places[host].add(self.world, *vm);
            found.push((*vm, host));
        }
        found
    }

    /// By what they use now, the most first.
    fn sort(&self, vms: &mut [usize]) {
        vms.sort_by(|a, b| self.world.vms[*b].demand.total_cmp(&self.world.vms[*a].demand));
    }

    /// The host whose power grows least. It grows from what it was when the round began, not from what it draws with the VMs that
    /// it was given since: so the simulator has it.
    fn find(&self, vm: usize, closed: &BTreeSet<usize>) -> Option<usize> {
        let demand = self.world.vms[vm].demand;
        let mut best: Option<(f64, usize)> = None;
        for (host, place) in self.places.iter().enumerate() {
            if closed.contains(&host) || !place.suits(self.world, vm) {
                continue;
            }
            let now = &self.world.hosts[host];
            let grows = place.kind.watts((place.given + demand) / place.kind.mips())
                - now.kind.watts(now.utilization());
            if best.is_some_and(|(least, _)| grows >= least) || self.would_be_over(place, vm) {
                continue;
            }
            best = Some((grows, host));
        }
        best.map(|(_, host)| host)
    }

    fn would_be_over(&self, place: &Place, vm: usize) -> bool {
        if place.given == 0.0 {
            return false;
        }
        let guest = &self.world.vms[vm];
        let mut history = place.history;
        for (sum, used) in history.iter_mut().zip(&guest.history) {
            *sum += used * guest.kind.mips / place.kind.mips();
        }
        self.overload.is((place.wanted + guest.demand) / place.kind.mips(), &history)
    }

    fn least_used(&self, kept: &BTreeSet<usize>) -> Option<usize> {
        let used = |host: usize| self.world.hosts[host].utilization();
        (0..self.places.len())
            .filter(|host| !kept.contains(host) && !self.places[*host].vms.is_empty())
            .filter(|host| used(*host) > 0.0 && used(*host) < 1.0)
            .min_by(|a, b| used(*a).total_cmp(&used(*b)))
    }
}
