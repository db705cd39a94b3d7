//! The rules of services: their processes apart, spread over locations, beside those that they depend on; and how many of them moved.

use super::instance::Instance;

/// A process that goes to another machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shift {
    pub(super) process: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Counts that answer in O(dependencies) whether a move keeps the rules.
#[derive(Debug, Clone)]
pub(super) struct Services<'a> {
    instance: &'a Instance,
    /// Services that depend on each.
    dependants: Vec<Vec<u32>>,
    neighbourhoods: usize,
    locations: usize,
    /// A row for each service: its processes on each machine, in each neighbourhood, in each location.
    on_machine: Vec<u16>,
    in_neighbourhood: Vec<u16>,
    in_location: Vec<u16>,
    /// Locations that it is in.
    spread: Vec<u32>,
    /// Its processes that are away from home, how many services have so many away, and the most.
    moved: Vec<u32>,
    with_moved: Vec<u32>,
    most: usize,
}

impl<'a> Services<'a> {
    pub(super) fn new(instance: &'a Instance) -> Self {
        let services = instance.services.len();
        let neighbourhoods =
            1 + instance.machines.iter().map(|machine| machine.neighbourhood).max().unwrap_or(0);
        let locations = 1 + instance.machines.iter().map(|machine| machine.location).max().unwrap_or(0);
        let mut dependants = vec![Vec::new(); services];
        for (service, rules) in instance.services.iter().enumerate() {
            rules.depends_on.iter().for_each(|needed| dependants[*needed].push(service as u32));
        }
        let mut with_moved = vec![0; instance.processes.len() + 1];
        with_moved[0] = services as u32;
        let mut counts = Self {
            instance,
            dependants,
            neighbourhoods,
            locations,
            on_machine: vec![0; services * instance.machines.len()],
            in_neighbourhood: vec![0; services * neighbourhoods],
            in_location: vec![0; services * locations],
            spread: vec![0; services],
            moved: vec![0; services],
            with_moved,
            most: 0,
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
        self.instance.processes[one].service == self.instance.processes[other].service
    }

    /// Whether no other process of its service is where it goes.
    pub(super) fn free_of(&self, shift: Shift) -> bool {
        self.on_machine[self.service(&shift) * self.instance.machines.len() + shift.to] == 0
    }

    /// Whether moves that happen at once keep services spread and beside those that they depend on.
    pub(super) fn allow(&self, shifts: &[Shift]) -> bool {
        if let [one, other] = shifts
            && self.are_alike(one.process, other.process)
        {
            return true;
        }
        shifts.iter().all(|shift| self.stays_spread(shift) && self.stays_beside(shift, shifts))
    }

    /// A process goes, whether that is allowed or not.
    pub(super) fn shift(&mut self, shift: Shift) {
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
        self.instance.processes[shift.process].service
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

    fn stays_spread(&self, shift: &Shift) -> bool {
        let service = self.service(shift);
        let location = |machine: usize| self.instance.machines[machine].location;
        let (from, to) = (location(shift.from), location(shift.to));
        let count = |location: usize| self.in_location[service * self.locations + location];
        from == to
            || count(from) > 1
            || count(to) == 0
            || self.spread[service] as usize > self.instance.services[service].spread_min
    }

    fn stays_beside(&self, shift: &Shift, all: &[Shift]) -> bool {
        let service = self.service(shift);
        let neighbourhood = |machine: usize| self.instance.machines[machine].neighbourhood;
        let (from, to) = (neighbourhood(shift.from), neighbourhood(shift.to));
        if from == to {
            return true;
        }
        let after = |of: usize, place: usize| {
            let mut count = i32::from(self.in_neighbourhood[of * self.neighbourhoods + place]);
            for shift in all.iter().filter(|shift| self.service(shift) == of) {
                count += i32::from(neighbourhood(shift.to) == place)
                    - i32::from(neighbourhood(shift.from) == place);
            }
            count
        };
        self.instance.services[service].depends_on.iter().all(|needed| after(*needed, to) > 0)
            && (self.dependants[service].is_empty()
                || after(service, from) > 0
                || self.dependants[service].iter().all(|dependant| after(*dependant as usize, from) == 0))
    }

    fn enter(&mut self, service: usize, machine: usize) {
        let place = &self.instance.machines[machine];
        self.on_machine[service * self.instance.machines.len() + machine] += 1;
        self.in_neighbourhood[service * self.neighbourhoods + place.neighbourhood] += 1;
        let there = &mut self.in_location[service * self.locations + place.location];
        self.spread[service] += u32::from(*there == 0);
        *there += 1;
    }

    fn leave(&mut self, service: usize, machine: usize) {
        let place = &self.instance.machines[machine];
        self.on_machine[service * self.instance.machines.len() + machine] -= 1;
        self.in_neighbourhood[service * self.neighbourhoods + place.neighbourhood] -= 1;
        let there = &mut self.in_location[service * self.locations + place.location];
        *there -= 1;
        self.spread[service] -= u32::from(*there == 0);
    }
}
