//! Few hosts, well used, and a VM moves only if that pays.
//!
//! What a VM will want is forecast from the last hour: halfway between what it wants now and its mean, give or take a deviation.
//! VMs of a host vary apart, so deviations add up as squares, and many VMs together need little room to spare.
//!
//! ```text
//!   relieve   a host whose forecast and 1.0 deviations are more than it has gives away the smallest VM that is enough
//!   fill      a VM goes to the fullest host on which the forecast and 1.6 deviations fit; G5 before G4
//!   empty     a host of no more than 12 VMs, used by no more than 60 %, is emptied if all of them fit on others; it goes off
//! ```
//!
//! The gap between the two deviations keeps VMs from going to and fro. This is the benchmark's own policy: the scheduler plans for
//! entitlements and several resources, of which there are none here.

use std::collections::BTreeSet;

use super::Policy;
use super::sketch::place_by;
use crate::planetlab::day::Day;
use crate::planetlab::kinds::HostKind;
use crate::planetlab::world::{HOSTS, Migration, Vm, World};

/// Deviations that a host must have room for, and that it must have room for after it was given a VM.
const DEVIATIONS_KEPT: f64 = 1.0;
const DEVIATIONS_FILLED: f64 = 1.6;
/// Most VMs that are moved to switch a host off: it saves 94 W, and whoever moves is slower meanwhile.
const EMPTIED_MAX: usize = 12;
/// How much such a host may be used: what a fuller one gives back elsewhere is soon wanted again.
const EMPTIED_USED_MAX: f64 = 0.6;
/// Rounds that are looked at: an hour.
const WINDOW: usize = 12;
/// What is taken for a VM's deviation, as a part of its CPU, and how many rounds that counts as much as.
const DEVIATION: f64 = 0.1;
const DEVIATION_ROUNDS: f64 = 4.0;

/// See the module.
#[derive(Debug)]
pub(in crate::planetlab) struct Ours;

impl Policy for Ours {
    /// The first host that has room, G5 before G4: what VMs really want shows only later.
    fn place(&mut self, day: &Day) -> Vec<usize> {
        place_by(day, |host, _, _| preference(host) as f64)
    }

    fn plan(&mut self, world: &World<'_>) -> Vec<Migration> {
        let mut round = Round::new(world);
        round.relieve();
        round.empty();
        round.migrations
    }
}

/// The order in which hosts are used: the better kind first.
fn preference(host: usize) -> usize {
    if host.is_multiple_of(2) { HOSTS + host } else { host }
}

/// What is expected of a VM, in MIPS.
#[derive(Debug, Clone, Copy, Default)]
struct Forecast {
    mean: f64,
    variance: f64,
}

impl Forecast {
    fn new(vm: &Vm) -> Self {
        let past = &vm.history[..vm.history.len().min(WINDOW)];
        let Some(now) = past.first().filter(|_| vm.alive) else { return Self::default() };
        let rounds = past.len() as f64;
        let mean = past.iter().sum::<f64>() / rounds;
        let squares: f64 = past.iter().map(|used| (used - mean).powi(2)).sum();
        let variance = (squares + DEVIATION_ROUNDS * DEVIATION.powi(2)) / (rounds + DEVIATION_ROUNDS);
        Self { mean: (now + mean) / 2.0 * vm.kind.mips, variance: variance * vm.kind.mips.powi(2) }
    }
}

/// A host with the VMs that it would have.
#[derive(Debug)]
struct Room {
    kind: &'static HostKind,
    vms: Vec<usize>,
    forecast: Forecast,
    now: f64,
    memory_mb: u32,
}

impl Room {
    /// What it must have, as a part of what it has.
    fn needs(&self, more: Forecast, deviations: f64) -> f64 {
        let deviation = (self.forecast.variance + more.variance).max(0.0).sqrt();
        (self.forecast.mean + more.mean + deviations * deviation) / self.kind.mips()
    }

    fn is_over(&self) -> bool {
        self.needs(Forecast::default(), DEVIATIONS_KEPT) > 1.0
    }
}

/// One round's plan in the making.
struct Round<'a, 'w> {
    world: &'a World<'w>,
    forecasts: Vec<Forecast>,
    rooms: Vec<Room>,
    /// Hosts that were given a VM, or are to be empty. Nobody leaves the former or comes to the latter.
    filled: BTreeSet<usize>,
    closed: BTreeSet<usize>,
    migrations: Vec<Migration>,
}

impl<'a, 'w> Round<'a, 'w> {
    fn new(world: &'a World<'w>) -> Self {
        let room =
            |kind| Room { kind, vms: Vec::new(), forecast: Forecast::default(), now: 0.0, memory_mb: 0 };
        let mut round = Self {
            world,
            forecasts: world.vms.iter().map(Forecast::new).collect(),
            rooms: world.hosts.iter().map(|host| room(host.kind)).collect(),
            filled: BTreeSet::new(),
            closed: BTreeSet::new(),
            migrations: Vec::new(),
        };
        for (host, vms) in world.hosts.iter().map(|host| &host.vms).enumerate() {
            vms.iter().for_each(|vm| round.add(*vm, host));
        }
        round
    }

    fn relieve(&mut self) {
        for host in 0..self.rooms.len() {
            while self.rooms[host].is_over() && !self.filled.contains(&host) {
                let Some(vm) = self.relief(host) else { break };
                let occupied = self.fullest(vm, |round, to| to != host && !round.rooms[to].vms.is_empty());
                let Some(to) = occupied.or_else(|| self.first_empty(vm)) else { break };
                self.remove(vm, host);
                self.add(vm, to);
                self.filled.insert(to);
                self.migrations.push((vm, to));
            }
        }
    }

    /// The smallest VM without which a host is not overloaded, or else the largest. None if it is alone.
    fn relief(&self, host: usize) -> Option<usize> {
        let room = &self.rooms[host];
        let mean = |vm: &usize| self.forecasts[*vm].mean;
        let excess = (room.needs(Forecast::default(), DEVIATIONS_KEPT) - 1.0) * room.kind.mips();
        let vms = || room.vms.iter().copied().filter(|_| room.vms.len() > 1);
        let enough = vms().filter(|vm| mean(vm) >= excess).min_by(|a, b| mean(a).total_cmp(&mean(b)));
        enough.or_else(|| vms().max_by(|a, b| mean(a).total_cmp(&mean(b))))
    }

    fn empty(&mut self) {
        let pays = |room: &Room| {
            (1..=EMPTIED_MAX).contains(&room.vms.len())
                && room.needs(Forecast::default(), 0.0) <= EMPTIED_USED_MAX
        };
        let mut hosts: Vec<usize> = (0..self.rooms.len()).filter(|host| pays(&self.rooms[*host])).collect();
        let size = |room: &Room| (room.vms.len(), room.forecast.mean);
        hosts.sort_by(|a, b| {
            let ((few, light), (other_few, other_light)) = (size(&self.rooms[*a]), size(&self.rooms[*b]));
            few.cmp(&other_few).then(light.total_cmp(&other_light))
        });
        for host in hosts {
            if !self.filled.contains(&host) {
                self.try_to_empty(host);
            }
        }
    }

    /// Moves all VMs of a host elsewhere, or none.
    fn try_to_empty(&mut self, host: usize) {
        let mut vms = self.rooms[host].vms.clone();
        vms.sort_by(|a, b| self.forecasts[*b].mean.total_cmp(&self.forecasts[*a].mean));
        self.closed.insert(host);
        let mut found: Vec<Migration> = Vec::new();
        for vm in vms {
            let open =
                |round: &Self, to: usize| !round.closed.contains(&to) && !round.rooms[to].vms.is_empty();
            let Some(to) = self.fullest(vm, open) else {
                found.into_iter().for_each(|(vm, to)| self.remove(vm, to));
                self.closed.remove(&host);
                return;
            };
            self.add(vm, to);
            found.push((vm, to));
        }
        self.filled.extend(found.iter().map(|(_, to)| *to));
        self.rooms[host].vms.clear();
        self.migrations.extend(found);
    }

    /// Of the hosts that are asked about and on which a VM fits with room to spare, the fullest, G5 before G4.
    fn fullest(&self, vm: usize, may: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let fits = (0..self.rooms.len()).filter(|to| may(self, *to) && self.fits(vm, *to));
        let needs = |host: &usize| self.rooms[*host].needs(self.forecasts[vm], DEVIATIONS_FILLED);
        fits.max_by(|a, b| {
            let good = |host: &usize| preference(*host) < HOSTS;
            // The first of those that are as full.
            good(a).cmp(&good(b)).then(needs(a).total_cmp(&needs(b))).then(b.cmp(a))
        })
    }

    fn first_empty(&self, vm: usize) -> Option<usize> {
        let empty = (0..self.rooms.len()).filter(|host| self.rooms[*host].vms.is_empty());
        empty.filter(|host| self.fits(vm, *host)).min_by_key(|host| preference(*host))
    }

    fn fits(&self, vm: usize, host: usize) -> bool {
        let (room, guest) = (&self.rooms[host], &self.world.vms[vm]);
        room.kind.core_mips >= guest.kind.mips
            && room.now + guest.demand <= room.kind.mips()
            && room.needs(self.forecasts[vm], DEVIATIONS_FILLED) <= 1.0
            && self.world.has_memory(room.memory_mb, vm)
    }

    fn add(&mut self, vm: usize, host: usize) {
        let (room, guest, forecast) = (&mut self.rooms[host], &self.world.vms[vm], self.forecasts[vm]);
        room.vms.push(vm);
        room.forecast.mean += forecast.mean;
        room.forecast.variance += forecast.variance;
        room.now += guest.demand;
        room.memory_mb += guest.kind.memory_mb;
    }

    fn remove(&mut self, vm: usize, host: usize) {
        let (room, guest, forecast) = (&mut self.rooms[host], &self.world.vms[vm], self.forecasts[vm]);
        room.vms.retain(|other| *other != vm);
        room.forecast.mean -= forecast.mean;
        room.forecast.variance -= forecast.variance;
        room.now -= guest.demand;
        room.memory_mb -= guest.kind.memory_mb;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planetlab::day::tests::day;
    use crate::planetlab::world::Rules;

    /// What is planned once every VM has wanted the same for so many rounds.
    fn planned(percents: &[u8], places: &[usize]) -> Vec<Migration> {
        let samples: Vec<Vec<u8>> = percents.iter().map(|percent| vec![*percent]).collect();
        let day = day(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut world = World::new(&day, Rules::CloudSim, places);
        let mut at_s = 0.1;
        for _ in 0..WINDOW {
            at_s += 300.0;
            world.advance(at_s);
            world.remember();
        }
        Ours.plan(&world)
    }

    #[test]
    fn a_light_host_is_emptied_onto_the_fullest_that_has_room() {
        // Four kinds: 2500, 2000, 1000 and 500 MIPS.
        assert_eq!(planned(&[100, 100, 90, 20], &[1, 3, 3, 5]), [(3, 3)]);
    }

    #[test]
    fn an_overloaded_host_gives_away_the_smallest_vm_that_is_enough() {
        // 2500 + 2000 + 800 + 450 is more than 5320, and so it is without the last, with room to spare.
        assert_eq!(planned(&[100, 100, 80, 90], &[1, 1, 1, 1]), [(2, 3)]);
    }

    #[test]
    fn nobody_moves_where_all_is_well() {
        assert_eq!(planned(&[90, 90, 80, 90], &[1, 3, 1, 3]), []);
    }
}
