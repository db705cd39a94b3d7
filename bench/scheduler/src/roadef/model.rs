//! An assignment that is changed process by process, as the search sees it: processes are VMs, machines are hosts.
//!
//! A move costs the resources and balances of two machines, and the rules of the services that move.

use std::ops::{AddAssign, Range, SubAssign};

use godwit_scheduler::cluster::Move;
use godwit_scheduler::search::Model;

use super::instance::Instance;
use super::services::{Services, Shift};

/// What never changes, in rows side by side.
#[derive(Debug)]
pub(super) struct Frame {
    resources: usize,
    machines: usize,
    weights: Vec<i64>,
    /// (first, second, target, weight).
    balances: Vec<(usize, usize, i64, i64)>,
    /// A row of resources for each machine.
    capacity: Vec<i64>,
    safety: Vec<i64>,
    /// A row of resources for each process; and the same with 0 for transient ones, which a process holds at home while it is away.
    needs: Vec<i64>,
    lasting: Vec<i64>,
    home: Vec<u32>,
    /// What it costs that a process is away, and that it is on this machine instead of its home (a row of machines for each).
    leaving: Vec<i64>,
    distances: Vec<i64>,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Reassignment<'a> {
    frame: &'a Frame,
    services: Services<'a>,
    host: Vec<u32>,
    slot: Vec<u32>,
    guests: Vec<Vec<u32>>,
    /// A row of resources for each machine: in use, and in use or held for processes that have left.
    used: Vec<i64>,
    held: Vec<i64>,
    /// What is held beyond the capacity costs so much of its resource; none may be if none.
    prices: Option<Vec<i64>>,
    /// Of each machine, load and balance.
    costs: Vec<i64>,
    cost: i64,
}

impl Frame {
    pub(super) fn new(instance: &Instance) -> Self {
        let lasting = |needs: &[i64]| -> Vec<i64> {
            let kinds = needs.iter().zip(&instance.resources);
            kinds.map(|(needs, kind)| if kind.is_transient { 0 } else { *needs }).collect()
        };
        let weight = instance.machine_move_weight;
        Self {
            resources: instance.resources.len(),
            machines: instance.machines.len(),
            weights: instance.resources.iter().map(|resource| resource.weight).collect(),
            balances: instance.balances.iter().map(|b| (b.first, b.second, b.target, b.weight)).collect(),
            capacity: instance.machines.iter().flat_map(|machine| machine.capacity.clone()).collect(),
            safety: instance.machines.iter().flat_map(|machine| machine.safety.clone()).collect(),
            needs: instance.processes.iter().flat_map(|process| process.needs.clone()).collect(),
            lasting: instance.processes.iter().flat_map(|process| lasting(&process.needs)).collect(),
            home: instance.assignment.iter().map(|machine| *machine as u32).collect(),
            leaving: instance
                .processes
                .iter()
                .map(|process| process.move_cost * instance.process_move_weight)
                .collect(),
            distances: instance
                .machines
                .iter()
                .flat_map(|machine| machine.move_costs.iter().map(|cost| cost * weight))
                .collect(),
        }
    }

    fn row(&self, index: usize) -> Range<usize> {
        index * self.resources..(index + 1) * self.resources
    }

    /// What a process takes of its machine when it comes, and gives back when it goes.
    fn takes(&self, process: usize, machine: usize) -> &[i64] {
        let needs = if self.home[process] as usize == machine { &self.lasting } else { &self.needs };
        &needs[self.row(process)]
    }

    /// What it costs that a process is there.
    fn moved(&self, process: usize, machine: usize) -> i64 {
        let home = self.home[process] as usize;
        if home == machine {
            0
        } else {
            self.leaving[process] + self.distances[home * self.machines + machine]
        }
    }

    /// Load and balance of a machine that uses this.
    fn machine_cost(&self, machine: usize, used: impl Fn(usize) -> i64) -> i64 {
        let (capacity, safety) = (&self.capacity[self.row(machine)], &self.safety[self.row(machine)]);
        let resources = self.weights.iter().zip(safety).enumerate();
        let load: i64 = resources.map(|(r, (weight, safe))| weight * (used(r) - safe).max(0)).sum();
        let free = |r: usize| capacity[r] - used(r);
        let balances = self.balances.iter();
        load + balances
            .map(|(first, second, target, weight)| weight * (target * free(*first) - free(*second)).max(0))
            .sum::<i64>()
    }
}

impl<'a> Reassignment<'a> {
    /// Everybody at home.
    pub(super) fn new(instance: &'a Instance, frame: &'a Frame) -> Self {
        let machines = instance.machines.len();
        let mut model = Self {
            frame,
            services: Services::new(instance),
            host: frame.home.clone(),
            slot: vec![0; frame.home.len()],
            guests: vec![Vec::new(); machines],
            used: vec![0; machines * frame.resources],
            held: vec![0; machines * frame.resources],
            prices: None,
            costs: Vec::new(),
            cost: 0,
        };
        for (process, machine) in instance.assignment.iter().enumerate() {
            model.slot[process] = model.guests[*machine].len() as u32;
            model.guests[*machine].push(process as u32);
            add(&mut model.used[frame.row(*machine)], &frame.needs[frame.row(process)]);
        }
        model.held.clone_from(&model.used);
        model.costs = (0..machines).map(|machine| model.machine_cost(machine)).collect();
        model.cost = model.costs.iter().sum::<i64>()
            + (0..frame.home.len()).map(|process| frame.moved(process, model.host_of(process))).sum::<i64>();
        model
    }

    /// The whole of it.
    pub(super) fn total(&self) -> i64 {
        self.cost + self.services.cost()
    }

    fn machine_cost(&self, machine: usize) -> i64 {
        let used = &self.used[self.frame.row(machine)];
        let excess = self.excess(machine, |_| 0);
        self.frame.machine_cost(machine, |r| used[r]) + excess
    }

    /// What it costs that a machine holds so much more than it does, beyond its capacity.
    fn excess(&self, machine: usize, more: impl Fn(usize) -> i64) -> i64 {
        let Some(prices) = &self.prices else { return 0 };
        let (held, capacity) =
            (&self.held[self.frame.row(machine)], &self.frame.capacity[self.frame.row(machine)]);
        let resources = prices.iter().enumerate();
        resources.map(|(r, price)| price * (held[r] + more(r) - capacity[r]).max(0)).sum()
    }

    /// Lets machines hold more than their capacity, at such prices, or no longer lets them.
    pub(super) fn price(&mut self, prices: Option<Vec<i64>>) {
        self.prices = prices;
        for machine in 0..self.costs.len() {
            let cost = self.machine_cost(machine);
            self.cost += cost - self.costs[machine];
            self.costs[machine] = cost;
        }
    }

    /// Machines that hold more than their capacity.
    pub(super) fn over_full(&self) -> usize {
        let rows =
            self.held.chunks(self.frame.resources).zip(self.frame.capacity.chunks(self.frame.resources));
        rows.filter(|(held, capacity)| held.iter().zip(*capacity).any(|(held, capacity)| held > capacity))
            .count()
    }

    /// Whether a machine has the room if one comes and another goes, or nobody.
    fn fits(&self, machine: usize, comes: usize, goes: Option<usize>) -> bool {
        let frame = self.frame;
        let (held, capacity) = (&self.held[frame.row(machine)], &frame.capacity[frame.row(machine)]);
        let comes = frame.takes(comes, machine);
        match goes {
            None => (0..frame.resources).all(|r| held[r] + comes[r] <= capacity[r]),
            Some(goes) => {
                let goes = frame.takes(goes, machine);
                (0..frame.resources).all(|r| held[r] + comes[r] - goes[r] <= capacity[r])
            }
        }
    }

    fn relocated(&self, process: usize, to: usize) -> Option<i64> {
        let from = self.host_of(process);
        let shift = Shift { process, from, to };
        if from == to
            || !self.services.free_of(shift)
            || self.prices.is_none() && !self.fits(to, process, None)
        {
            return None;
        }
        self.services.allow(&[shift]).then(|| {
            let frame = self.frame;
            let needs = &frame.needs[frame.row(process)];
            let (gives, takes) = (frame.takes(process, from), frame.takes(process, to));
            let (at_from, at_to) = (&self.used[frame.row(from)], &self.used[frame.row(to)]);
            self.cost - self.costs[from] - self.costs[to]
                + frame.machine_cost(from, |r| at_from[r] - needs[r])
                + frame.machine_cost(to, |r| at_to[r] + needs[r])
                + self.excess(from, |r| -gives[r])
                + self.excess(to, |r| takes[r])
                + (frame.moved(process, to) - frame.moved(process, from))
                + self.services.cost_after(&[shift])
        })
    }

    fn swapped(&self, one: usize, other: usize) -> Option<i64> {
        let (from, to) = (self.host_of(one), self.host_of(other));
        let shifts = [Shift { process: one, from, to }, Shift { process: other, from: to, to: from }];
        let free = || {
            self.services.are_alike(one, other) || shifts.iter().all(|shift| self.services.free_of(*shift))
        };
        if from == to
            || !free()
            || self.prices.is_none()
                && (!self.fits(to, one, Some(other)) || !self.fits(from, other, Some(one)))
        {
            return None;
        }
        self.services.allow(&shifts).then(|| {
            let frame = self.frame;
            let (leaves, comes) = (&frame.needs[frame.row(one)], &frame.needs[frame.row(other)]);
            let (gives, takes) = (frame.takes(one, from), frame.takes(other, from));
            let (given, taken) = (frame.takes(other, to), frame.takes(one, to));
            let (at_from, at_to) = (&self.used[frame.row(from)], &self.used[frame.row(to)]);
            self.cost - self.costs[from] - self.costs[to]
                + frame.machine_cost(from, |r| at_from[r] - leaves[r] + comes[r])
                + frame.machine_cost(to, |r| at_to[r] + leaves[r] - comes[r])
                + self.excess(from, |r| takes[r] - gives[r])
                + self.excess(to, |r| taken[r] - given[r])
                + (frame.moved(one, to) - frame.moved(one, from))
                + (frame.moved(other, from) - frame.moved(other, to))
                + self.services.cost_after(&shifts)
        })
    }

    fn shift(&mut self, process: usize, to: usize) {
        let (frame, from) = (self.frame, self.host_of(process));
        if from == to {
            return;
        }
        self.services.shift(Shift { process, from, to });
        let needs = &frame.needs[frame.row(process)];
        subtract(&mut self.used[frame.row(from)], needs);
        add(&mut self.used[frame.row(to)], needs);
        subtract(&mut self.held[frame.row(from)], frame.takes(process, from));
        add(&mut self.held[frame.row(to)], frame.takes(process, to));
        self.cost += frame.moved(process, to) - frame.moved(process, from);
        for machine in [from, to] {
            let cost = self.machine_cost(machine);
            self.cost += cost - self.costs[machine];
            self.costs[machine] = cost;
        }
        let slot = self.slot[process] as usize;
        self.guests[from].swap_remove(slot);
        if let Some(last) = self.guests[from].get(slot) {
            self.slot[*last as usize] = slot as u32;
        }
        self.host[process] = to as u32;
        self.slot[process] = self.guests[to].len() as u32;
        self.guests[to].push(process as u32);
    }
}

impl Model for Reassignment<'_> {
    fn hosts(&self) -> usize {
        self.guests.len()
    }

    fn vms(&self) -> usize {
        self.host.len()
    }

    fn host_of(&self, vm: usize) -> usize {
        self.host[vm] as usize
    }

    fn guests(&self, host: usize) -> &[u32] {
        &self.guests[host]
    }

    /// Costs are far below 2^53, so they are exact.
    fn cost(&self) -> f64 {
        self.total() as f64
    }

    fn look(&self, change: Move) -> Option<f64> {
        let cost = match change {
            Move::Relocate { vm, to } => self.relocated(vm, to),
            Move::Swap { one, other } => self.swapped(one, other),
        };
        cost.map(|cost| cost as f64)
    }

    /// Load and balance.
    fn strain(&self, host: usize) -> Option<f64> {
        Some(self.costs[host] as f64)
    }

    fn apply(&mut self, change: Move) {
        match change {
            Move::Relocate { vm, to } => self.shift(vm, to),
            Move::Swap { one, other } => {
                let (from, to) = (self.host_of(one), self.host_of(other));
                self.shift(one, to);
                self.shift(other, from);
            }
        }
    }
}

fn add(sums: &mut [i64], row: &[i64]) {
    sums.iter_mut().zip(row).for_each(|(sum, of)| sum.add_assign(of));
}

fn subtract(sums: &mut [i64], row: &[i64]) {
    sums.iter_mut().zip(row).for_each(|(sum, of)| sum.sub_assign(of));
}
