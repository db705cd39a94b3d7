//! The rules of services: their processes apart, spread over locations, beside those that they depend on; and how many of them moved.

use super::instance::Instance;

/// A process that goes to another machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shift {
    pub(super) process: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// How often each rule is broken: processes too many of a service on a machine, locations too few, services missing in
/// neighbourhoods.
pub(super) type Broken = [i32; 3];

/// Counts that answer in O(dependencies) what a move does to the rules.
#[derive(Debug, Clone)]
pub(super) struct Services<'a> {
    instance: &'a Instance,
    /// Services that depend on each.
    dependants: Vec<Vec<u32>>,
    service: Vec<u32>,
    /// Neighbourhood and location of each machine.
    places: Vec<(u32, u32)>,
    neighbourhoods: usize,
    locations: usize,
    /// A row for each service: its processes on each machine, in each neighbourhood, in each location.
    on_machine: Vec<u16>,
    in_neighbourhood: Vec<u16>,
    in_location: Vec<u16>,
    /// Locations that it is in, less those that it should be in at least.
    spare: Vec<i32>,
    /// Its processes that are away from home, how many services have so many away, and the most.
    moved: Vec<u32>,
    with_moved: Vec<u32>,
    most: usize,
    broken: Broken,
}

impl<'a> Services<'a> {
    pub(super) fn new(instance: &'a Instance) -> Self {
        let services = instance.services.len();
        let places = instance.machines.iter().map(|m| (m.neighbourhood as u32, m.location as u32));
        let places: Vec<(u32, u32)> = places.collect();
        let neighbourhoods = 1 + places.iter().map(|place| place.0 as usize).max().unwrap_or(0);
        let locations = 1 + places.iter().map(|place| place.1 as usize).max().unwrap_or(0);
        let mut dependants = vec![Vec::new(); services];
        for (service, rules) in instance.services.iter().enumerate() {
            rules.depends_on.iter().for_each(|needed| dependants[*needed].push(service as u32));
        }
        let mut with_moved = vec![0; instance.processes.len() + 1];
        with_moved[0] = services as u32;
        let mut counts = Self {
            instance,
            dependants,
            service: instance.processes.iter().map(|process| process.service as u32).collect(),
            places,
            neighbourhoods,
            locations,
            on_machine: vec![0; services * instance.machines.len()],
            in_neighbourhood: vec![0; services * neighbourhoods],
            in_location: vec![0; services * locations],
            spare: instance.services.iter().map(|rules| -(rules.spread_min as i32)).collect(),
            moved: vec![0; services],
            with_moved,
            most: 0,
            broken: [0; 3],
        };
        for (process, machine) in instance.assignment.iter().enumerate() {
            counts.enter(instance.processes[process].service, *machine);
        }
        counts
    }

    /// What the service that moves most costs.
    pub(super) fn cost(&self) -> i64 {
        self.instance.service_move_weight * self.most as i64
    }

    /// How often each rule is broken now. It is not at the beginning, which is allowed.
    pub(super) fn broken(&self) -> Broken {
        self.broken
    }

    pub(super) fn cost_after(&self, shifts: &[Shift]) -> i64 {
        let change = |shift: &Shift| {
            let home = self.instance.assignment[shift.process];
            i32::from(shift.to != home) - i32::from(shift.from != home)
        };
        let most = match shifts {
            [one, other] if self.are_alike(one.process, other.process) => {
                self.most_after(&[(self.service(one), change(one) + change(other))])
            }
            [one, other] => {
                self.most_after(&[(self.service(one), change(one)), (self.service(other), change(other))])
            }
            _ => {
                let one = &shifts[0];
                self.most_after(&[(self.service(one), change(one))])
            }
        };
        self.instance.service_move_weight * most as i64
    }

    /// Whether two processes are of one service.
    pub(super) fn are_alike(&self, one: usize, other: usize) -> bool {
        self.service[one] == self.service[other]
    }

    /// By how much more each rule is broken if a process goes.
    pub(super) fn breaks(&self, shift: &Shift) -> Broken {
        [self.crowds(shift), self.gathers(shift), self.strands(shift, None)]
    }

    /// The same of two that go at once.
    pub(super) fn both_break(&self, one: &Shift, other: &Shift) -> Broken {
        if self.are_alike(one.process, other.process) {
            return [0; 3];
        }
        [
            self.crowds(one) + self.crowds(other),
            self.gathers(one) + self.gathers(other),
            self.strands(one, None) + self.strands(other, Some(one)),
        ]
    }

    /// A process goes, whether that is allowed or not.
    pub(super) fn shift(&mut self, shift: Shift) {
        let breaks = self.breaks(&shift);
        self.broken.iter_mut().zip(breaks).for_each(|(broken, more)| *broken += more);
        let service = self.service(&shift);
        self.leave(service, shift.from);
        self.enter(service, shift.to);
        let home = self.instance.assignment[shift.process];
        let before = self.moved[service] as usize;
        let after = before + usize::from(shift.to != home) - usize::from(shift.from != home);
        self.moved[service] = after as u32;
        self.with_moved[before] -= 1;
        self.with_moved[after] += 1;
        self.most = self.most.max(after);
        while self.most > 0 && self.with_moved[self.most] == 0 {
            self.most -= 1;
        }
    }

    fn service(&self, shift: &Shift) -> usize {
        self.service[shift.process] as usize
    }

    /// The most that any service has moved, if these had so many more or fewer.
    fn most_after(&self, changes: &[(usize, i32)]) -> usize {
        let after = |(service, change): &(usize, i32)| (self.moved[*service] as i32 + change) as usize;
        let raised = changes.iter().map(after).max().unwrap_or(0);
        let at_most = |change: &&(usize, i32)| self.moved[change.0] as usize == self.most && change.1 < 0;
        let fallen = changes.iter().filter(at_most).count() as u32;
        if fallen == 0 || self.with_moved[self.most] > fallen {
            return raised.max(self.most);
        }
        let below = (0..self.most).rev().find(|moved| {
            let leaving =
                changes.iter().filter(|(service, _)| self.moved[*service] as usize == *moved).count();
            self.with_moved[*moved] as usize > leaving
        });
        raised.max(below.unwrap_or(0))
    }

    /// Processes of one service on one machine.
    fn crowds(&self, shift: &Shift) -> i32 {
        let row = self.service(shift) * self.places.len();
        i32::from(self.on_machine[row + shift.to] > 0) - i32::from(self.on_machine[row + shift.from] > 1)
    }

    /// Locations that its service is in too few.
    fn gathers(&self, shift: &Shift) -> i32 {
        let service = self.service(shift);
        let (from, to) = (self.places[shift.from].1, self.places[shift.to].1);
        if from == to {
            return 0;
        }
        let count = |location: u32| self.in_location[service * self.locations + location as usize];
        let spare = self.spare[service];
        let after = spare - i32::from(count(from) == 1) + i32::from(count(to) == 0);
        spare.min(0) - after.min(0)
    }

    /// Services that miss one that they depend on, and neighbourhoods in which they do; `before` has gone already.
    fn strands(&self, shift: &Shift, before: Option<&Shift>) -> i32 {
        let (from, to) = (self.places[shift.from].0, self.places[shift.to].0);
        if from == to {
            return 0;
        }
        let service = self.service(shift);
        let count = |of: usize, place: u32| {
            let count = i32::from(self.in_neighbourhood[of * self.neighbourhoods + place as usize]);
            let moved = before.filter(|shift| self.service(shift) == of).map_or(0, |shift| {
                i32::from(self.places[shift.to].0 == place) - i32::from(self.places[shift.from].0 == place)
            });
            count + moved
        };
        let mut change = 0;
        let is_other = |of: &usize| *of != service;
        let depends_on = || self.instance.services[service].depends_on.iter().copied().filter(is_other);
        let dependants = || self.dependants[service].iter().map(|of| *of as usize).filter(is_other);
        if count(service, from) == 1 {
            change -= depends_on().filter(|needed| count(*needed, from) == 0).count() as i32;
            change += dependants().filter(|dependant| count(*dependant, from) > 0).count() as i32;
        }
        if count(service, to) == 0 {
            change += depends_on().filter(|needed| count(*needed, to) == 0).count() as i32;
            change -= dependants().filter(|dependant| count(*dependant, to) > 0).count() as i32;
        }
        change
    }

    fn enter(&mut self, service: usize, machine: usize) {
        let place = self.places[machine];
        self.on_machine[service * self.places.len() + machine] += 1;
        self.in_neighbourhood[service * self.neighbourhoods + place.0 as usize] += 1;
        let there = &mut self.in_location[service * self.locations + place.1 as usize];
        self.spare[service] += i32::from(*there == 0);
        *there += 1;
    }

    fn leave(&mut self, service: usize, machine: usize) {
        let place = self.places[machine];
        self.on_machine[service * self.places.len() + machine] -= 1;
        self.in_neighbourhood[service * self.neighbourhoods + place.0 as usize] -= 1;
        let there = &mut self.in_location[service * self.locations + place.1 as usize];
        *there -= 1;
        self.spare[service] -= i32::from(*there == 0);
    }
}
