//! Who runs where, what that costs, and what a change would cost: the planner's own state, cheap to change.
//!
//! What moves is a *unit*: a VM, or VMs that must be on one host and are.

mod bursts;
mod look;
mod units;

pub(crate) use self::bursts::Bursts;
pub(crate) use self::units::Unit;

use super::brought::Brought;
use super::case::Case;
use super::objective::{Objective, row};
use crate::rules::tally::Tally;

/// Deviations to spare where a host is to get VMs.
pub(crate) const BURST_DEVIATIONS: f64 = 2.0;

/// See the module.
#[derive(Clone)]
pub(crate) struct Model<'a> {
    pub(crate) case: &'a Case<'a>,
    pub(crate) objective: Objective,
    pub(crate) units: Vec<Unit>,
    pub(crate) unit_of: Vec<u32>,
    pub(crate) place: Vec<Option<u32>>,
    guests: Vec<Vec<u32>>,
    slot: Vec<u32>,
    classes: Vec<Vec<bool>>,
    capacity: Vec<[u64; 4]>,
    pub(crate) need: Vec<[u64; 4]>,
    pub(crate) load: Vec<[u64; 4]>,
    brought: Brought,
    /// Where power is managed.
    pub(crate) bursts: Option<Bursts>,
    terms: Vec<i64>,
    tally: Tally,
    hosts_cost: i64,
    soft_cost: i64,
    moved_cost: i64,
}

impl<'a> Model<'a> {
    /// Everybody where the snapshot has them.
    pub(crate) fn new(case: &'a Case<'a>) -> Self {
        let objective = Objective::new(case);
        let (units, unit_of, classes) = units::units(case, &objective);
        let hosts = case.hosts.len();
        let mut model = Self {
            tally: Tally::new(&case.table),
            place: vec![None; units.len()],
            slot: vec![0; units.len()],
            guests: vec![Vec::new(); hosts],
            capacity: case.hosts.iter().map(|host| row(&host.capacity)).collect(),
            need: vec![[0; 4]; hosts],
            load: vec![[0; 4]; hosts],
            brought: Brought::new(case),
            bursts: case.saves.then(|| Bursts::new(case, &units)),
            terms: vec![0; hosts],
            case,
            objective,
            units,
            unit_of,
            classes,
            hosts_cost: 0,
            soft_cost: 0,
            moved_cost: 0,
        };
        for unit in 0..model.units.len() {
            if let Some(home) = model.units[unit].home {
                model.enter(unit, home);
            }
        }
        model.soft_cost = model.soft();
        model
    }

    /// The objective, moves and all.
    pub(crate) fn cost(&self) -> i64 {
        self.hosts_cost + self.soft_cost + self.moved_cost
    }

    /// The objective without what the moves cost: how good the places are.
    pub(crate) fn score(&self) -> i64 {
        self.hosts_cost + self.soft_cost
    }

    pub(crate) fn guests(&self, host: usize) -> &[u32] {
        &self.guests[host]
    }

    /// How far a rule is broken.
    pub(crate) fn broken(&self, rule: usize) -> u64 {
        self.tally.broken(&self.case.table, rule as u32)
    }

    /// Moves the unit, whether it may or not.
    pub(crate) fn go(&mut self, unit: usize, to: usize) {
        self.soft_cost += self.softer(unit, to);
        self.moved_cost += self.away(unit, Some(to as u32)) - self.away(unit, self.place[unit]);
        self.leave(unit);
        self.enter(unit, to as u32);
    }

    fn leave(&mut self, unit: usize) {
        let Some(from) = self.place[unit].take() else { return };
        let host = from as usize;
        for at in 0..4 {
            self.need[host][at] -= self.units[unit].need[at];
            self.load[host][at] -= self.units[unit].load[at];
        }
        if self.units[unit].has_disks {
            self.brought.remove(self.case, &self.units[unit].vms, host);
        }
        if let Some(bursts) = &mut self.bursts {
            bursts.leave(unit, host);
        }
        self.settle(host);
        let slot = self.slot[unit] as usize;
        self.guests[host].swap_remove(slot);
        if let Some(last) = self.guests[host].get(slot) {
            self.slot[*last as usize] = slot as u32;
        }
        for (rule, vms) in &self.units[unit].rules {
            self.tally.remove(&self.case.table, *rule, from, *vms);
        }
    }

    fn enter(&mut self, unit: usize, to: u32) {
        let host = to as usize;
        for at in 0..4 {
            self.need[host][at] += self.units[unit].need[at];
            self.load[host][at] += self.units[unit].load[at];
        }
        if self.units[unit].has_disks {
            self.brought.add(self.case, &self.units[unit].vms, host);
        }
        if let Some(bursts) = &mut self.bursts {
            bursts.enter(unit, host);
        }
        self.settle(host);
        self.place[unit] = Some(to);
        self.slot[unit] = self.guests[host].len() as u32;
        self.guests[host].push(unit as u32);
        for (rule, vms) in &self.units[unit].rules {
            self.tally.add(&self.case.table, *rule, to, *vms);
        }
    }

    fn settle(&mut self, host: usize) {
        let term = self.objective.host(host, &self.load[host]);
        self.hosts_cost += term - self.terms[host];
        self.terms[host] = term;
    }

    fn soft(&self) -> i64 {
        let entries = self.case.table.entries.iter().enumerate().filter(|(_, entry)| !entry.must);
        let broken: u64 = entries.map(|(at, _)| self.broken(at)).sum();
        self.objective.soft(i64::try_from(broken).unwrap_or(i64::MAX))
    }

    /// What part of a host's CPU would be used in bursts with the unit there, in thousandths; 0 where power is not managed.
    pub(crate) fn crowded(&self, unit: usize, host: usize) -> u64 {
        let Some(bursts) = &self.bursts else { return 0 };
        // A float that is too large becomes the largest number.
        (bursts.with(host, unit, BURST_DEVIATIONS) * 1000.0 / self.capacity[host][0].max(1) as f64) as u64
    }

    fn away(&self, unit: usize, place: Option<u32>) -> i64 {
        let Unit { home, moved, .. } = &self.units[unit];
        if home.is_none() || place == *home { 0 } else { *moved }
    }
}
