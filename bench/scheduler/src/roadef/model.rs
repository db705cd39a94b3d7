//! An assignment that is changed process by process, as the search sees it: processes are VMs, machines are hosts.
//!
//! A move costs the resources and balances of two machines, and what it does to the rules of the services that move. Rules are kept,
//! or may be broken at a price.

use godwit_scheduler::cluster::Move;
use godwit_scheduler::search::{Model, Reach};

use super::instance::Instance;
use super::machines::{Exchange, Frame, Machines};
use super::services::{Broken, Services, Shift};

/// Rules that may be broken at a price: no more held than the capacity, and the three of services.
pub(super) const RULES: usize = 4;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Reassignment<'a> {
    instance: &'a Instance,
    frame: &'a Frame,
    services: Services<'a>,
    machines: Machines<'a>,
    host: Vec<u32>,
    slot: Vec<u32>,
    guests: Vec<Vec<u32>>,
    /// None may be broken if none.
    prices: Option<[f64; RULES]>,
    /// Of each machine, load, balance, and what is beyond its capacity.
    costs: Vec<f64>,
    over_full: usize,
    moves: f64,
    cost: f64,
}

impl<'a> Reassignment<'a> {
    /// Everybody at home.
    pub(super) fn new(instance: &'a Instance, frame: &'a Frame) -> Self {
        let count = instance.machines.len();
        let mut model = Self {
            instance,
            frame,
            services: Services::new(instance),
            machines: Machines::new(instance, frame),
            host: frame.home.clone(),
            slot: vec![0; frame.home.len()],
            guests: vec![Vec::new(); count],
            prices: None,
            costs: Vec::new(),
            over_full: 0,
            moves: 0.0,
            cost: 0.0,
        };
        for (process, machine) in instance.assignment.iter().enumerate() {
            model.slot[process] = model.guests[*machine].len() as u32;
            model.guests[*machine].push(process as u32);
        }
        model.count();
        model
    }

    /// Lets rules be broken at such prices, or no longer lets them: for what a process needs on average of a resource, beyond the
    /// capacity, and for each time that one of the rules of services is broken.
    pub(super) fn price(&mut self, prices: Option<[f64; RULES]>) {
        // Whole, so that sums stay exact.
        self.prices = prices.map(|prices| prices.map(f64::round));
        self.machines.price(prices.map_or(0.0, |prices| prices[0]));
        self.count();
    }

    /// Makes it dearer to exceed a capacity where it is exceeded now, from the next [`price`](Self::price) on.
    pub(super) fn press(&mut self) {
        self.machines.press();
    }

    /// How many machines are over full, and how often each rule of services is broken.
    pub(super) fn broken(&self) -> [usize; RULES] {
        let [crowded, gathered, stranded] = self.services.broken().map(|broken| broken as usize);
        [self.over_full, crowded, gathered, stranded]
    }

    /// From what each machine bears.
    fn count(&mut self) {
        let machines = 0..self.guests.len();
        self.costs = machines.clone().map(|machine| self.machines.cost(machine)).collect();
        self.over_full = machines.filter(|machine| self.machines.is_over_full(*machine)).count();
        self.cost = self.costs.iter().sum::<f64>() + self.moves;
    }

    /// What rules of services cost, if they are broken so much more often; at least 0.
    fn fines(&self, broken: Broken) -> Option<f64> {
        let Some([_, prices @ ..]) = &self.prices else { return (broken == [0; 3]).then_some(0.0) };
        let now = self.services.broken();
        Some((0..3).map(|rule| prices[rule] * f64::from(now[rule] + broken[rule])).sum())
    }

    /// None too if it is seen early that it would be above the limit.
    fn relocated(&self, process: usize, to: usize, limit: f64) -> Option<f64> {
        let from = self.host_of(process);
        let comes = Exchange { machine: to, comes: Some(process), goes: None };
        if from == to || self.prices.is_none() && !self.machines.fits(comes) {
            return None;
        }
        let shift = Shift { process, from, to };
        let moves = self.frame.moved(process, to) - self.frame.moved(process, from);
        let goes = Exchange { machine: from, comes: None, goes: Some(process) };
        self.after(moves, [comes, goes], || self.services.breaks(&shift), &[shift], limit)
    }

    fn swapped(&self, one: usize, other: usize, limit: f64) -> Option<f64> {
        let (from, to) = (self.host_of(one), self.host_of(other));
        let there = Exchange { machine: to, comes: Some(one), goes: Some(other) };
        let here = Exchange { machine: from, comes: Some(other), goes: Some(one) };
        if from == to || self.prices.is_none() && !(self.machines.fits(there) && self.machines.fits(here)) {
            return None;
        }
        let shifts = [Shift { process: one, from, to }, Shift { process: other, from: to, to: from }];
        let moves = (self.frame.moved(one, to) - self.frame.moved(one, from))
            + (self.frame.moved(other, from) - self.frame.moved(other, to));
        self.after(moves, [there, here], || self.services.both_break(&shifts[0], &shifts[1]), &shifts, limit)
    }

    /// The cost once two machines have exchanged processes, which costs so much by itself. What is left to be added is never less
    /// than 0, so what is above the limit stays there; what rejects most moves for least work comes first.
    #[inline]
    fn after(
        &self,
        by_itself: f64,
        exchanges: [Exchange; 2],
        breaks: impl FnOnce() -> Broken,
        shifts: &[Shift],
        limit: f64,
    ) -> Option<f64> {
        let [one, other] = exchanges;
        let mut cost = self.cost - self.costs[one.machine] - self.costs[other.machine] + by_itself;
        for exchange in [one, other] {
            if cost > limit {
                return None;
            }
            cost += self.machines.cost_after(exchange);
        }
        if cost > limit {
            return None;
        }
        Some(cost + self.fines(breaks())? + self.services.cost_after(shifts) as f64)
    }

    fn shift(&mut self, process: usize, to: usize) {
        let from = self.host_of(process);
        if from == to {
            return;
        }
        self.services.shift(Shift { process, from, to });
        let moves = self.frame.moved(process, to) - self.frame.moved(process, from);
        self.moves += moves;
        self.cost += moves;
        for change in [
            Exchange { machine: from, comes: None, goes: Some(process) },
            Exchange { machine: to, comes: Some(process), goes: None },
        ] {
            let machine = change.machine;
            self.over_full -= usize::from(self.machines.is_over_full(machine));
            self.machines.exchange(change);
            self.over_full += usize::from(self.machines.is_over_full(machine));
            let cost = self.machines.cost(machine);
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

    fn cost(&self) -> f64 {
        self.cost + self.fines([0; 3]).unwrap_or(0.0) + self.services.cost() as f64
    }

    fn look(&self, change: Move) -> Option<f64> {
        self.look_below(change, f64::INFINITY)
    }

    fn look_below(&self, change: Move, limit: f64) -> Option<f64> {
        let cost = match change {
            Move::Relocate { vm, to } => self.relocated(vm, to, limit),
            Move::Swap { one, other } => self.swapped(one, other, limit),
        };
        cost.filter(|cost| *cost <= limit)
    }

    fn reach(&self) -> Option<&Reach> {
        Some(&self.frame.reach)
    }

    fn is_allowed(&self) -> bool {
        self.broken() == [0; RULES]
    }

    /// What all that it needs weighs.
    fn size(&self, vm: usize) -> Option<f64> {
        let needs = self.instance.processes[vm].needs.iter().zip(&self.instance.resources);
        Some(needs.map(|(needs, resource)| needs * resource.weight).sum::<i64>() as f64)
    }

    /// Load and balance.
    fn strain(&self, host: usize) -> Option<f64> {
        Some(self.costs[host])
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
