//! Who runs where, what that costs, and what a change would cost: the planner's own state, cheap to change.
//!
//! What moves is a *unit*: a VM, or VMs that must be on one host and are.

use super::case::Case;
use super::objective::{Objective, row};
use crate::resource::Resource;
use crate::rules::compatible;
use crate::rules::table::{Says, Tally};
use crate::sequence::cost;

/// One VM, or several that go together.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    /// By place in the case's list.
    pub(crate) vms: Vec<u32>,
    /// What a host must have free for it.
    pub(crate) need: [u64; 4],
    /// What it uses, by entitlement.
    pub(crate) load: [u64; 4],
    /// The rules that name its VMs, and how many.
    rules: Vec<(u32, u32)>,
    pub(crate) home: Option<u32>,
    /// What leaving home costs.
    moved: i64,
    /// The row of hosts that it may run on.
    class: u32,
}

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
        let (units, unit_of, classes) = units(case, &objective);
        let hosts = case.hosts.len();
        let mut model = Self {
            tally: Tally::new(&case.table),
            place: vec![None; units.len()],
            slot: vec![0; units.len()],
            guests: vec![Vec::new(); hosts],
            capacity: case.hosts.iter().map(|host| row(&host.capacity)).collect(),
            need: vec![[0; 4]; hosts],
            load: vec![[0; 4]; hosts],
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

    /// By how much the objective becomes more if the unit goes there; none if it may not.
    pub(crate) fn look(&self, unit: usize, to: usize) -> Option<i64> {
        let from = self.place[unit].map(|from| from as usize);
        if from == Some(to) || !self.may_run(unit, to) || !self.has_room(unit, to) || !self.keeps(unit, to) {
            return None;
        }
        Some(self.dearer(unit, to))
    }

    /// The same, whether it may or not.
    pub(crate) fn dearer(&self, unit: usize, to: usize) -> i64 {
        let load = &self.units[unit].load;
        let at_to = std::array::from_fn(|at| self.load[to][at] + load[at]);
        let mut dearer = self.objective.host(to, &at_to) - self.terms[to];
        if let Some(from) = self.place[unit] {
            let from = from as usize;
            let at_from = std::array::from_fn(|at| self.load[from][at] - load[at]);
            dearer += self.objective.host(from, &at_from) - self.terms[from];
        }
        dearer + self.softer(unit, to) + self.away(unit, Some(to as u32)) - self.away(unit, self.place[unit])
    }

    /// By how much the objective becomes more if two units change places; none if they may not.
    pub(crate) fn look_swap(&self, one: usize, other: usize) -> Option<i64> {
        let (from, to) = (self.place[one]? as usize, self.place[other]? as usize);
        if from == to || !self.may_run(one, to) || !self.may_run(other, from) {
            return None;
        }
        let (ours, theirs) = (&self.units[one], &self.units[other]);
        let fits = |host: usize, comes: &Unit, leaves: &Unit| {
            (0..4).all(|at| {
                let (comes, leaves) = (comes.need[at], leaves.need[at]);
                comes <= leaves || self.need[host][at] - leaves + comes <= self.capacity[host][at]
            })
        };
        if !fits(to, ours, theirs) || !fits(from, theirs, ours) {
            return None;
        }
        let softer = self.softer_swap(one, other)?;
        let after = |host: usize, comes: &Unit, leaves: &Unit| {
            let load = std::array::from_fn(|at| self.load[host][at] - leaves.load[at] + comes.load[at]);
            self.objective.host(host, &load) - self.terms[host]
        };
        let away =
            |unit: usize, to: usize| self.away(unit, Some(to as u32)) - self.away(unit, self.place[unit]);
        Some(after(to, ours, theirs) + after(from, theirs, ours) + softer + away(one, to) + away(other, from))
    }

    /// By how much soft rules become dearer if two units change places; none if a must-rule is against it.
    fn softer_swap(&self, one: usize, other: usize) -> Option<i64> {
        let table = &self.case.table;
        let count = |unit: usize, rule: u32| {
            self.units[unit].rules.iter().find(|(known, _)| *known == rule).map_or(0, |(_, vms)| *vms)
        };
        let theirs = self.units[other].rules.iter().filter(|(rule, _)| count(one, *rule) == 0);
        let mut softer = 0;
        for (rule, _) in self.units[one].rules.iter().chain(theirs) {
            // Only those that go beyond what comes back change anything.
            let (goes, comes) = (count(one, *rule), count(other, *rule));
            let (from, to, vms) = if goes >= comes {
                (self.place[one], self.place[other]?, goes - comes)
            } else {
                (self.place[other], self.place[one]?, comes - goes)
            };
            if vms == 0 {
                continue;
            }
            let worse = self.tally.worse(table, *rule, from, to, vms);
            if !table.entries[*rule as usize].must {
                softer += worse;
            } else if worse > 0 || self.tally.arrives(table, *rule, from, to, vms) > 0 {
                return None;
            }
        }
        Some(self.objective.soft(softer))
    }

    /// Moves the unit, whether it may or not.
    pub(crate) fn go(&mut self, unit: usize, to: usize) {
        self.soft_cost += self.softer(unit, to);
        self.moved_cost += self.away(unit, Some(to as u32)) - self.away(unit, self.place[unit]);
        self.leave(unit);
        self.enter(unit, to as u32);
    }

    /// Takes the unit from its host.
    pub(crate) fn leave(&mut self, unit: usize) {
        let Some(from) = self.place[unit].take() else { return };
        let host = from as usize;
        for at in 0..4 {
            self.need[host][at] -= self.units[unit].need[at];
            self.load[host][at] -= self.units[unit].load[at];
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

    /// Whether the host is one for the unit, whatever else runs there.
    pub(crate) fn may_run(&self, unit: usize, host: usize) -> bool {
        self.case.gets(host) && self.classes[self.units[unit].class as usize][host]
    }

    /// Whether what it needs is free there.
    pub(crate) fn has_room(&self, unit: usize, host: usize) -> bool {
        let need = &self.units[unit].need;
        (0..4).all(|at| need[at] == 0 || self.need[host][at] + need[at] <= self.capacity[host][at])
    }

    /// Whether the host would have room for it without anybody else.
    pub(crate) fn fits_empty(&self, unit: usize, host: usize) -> bool {
        (0..4).all(|at| self.units[unit].need[at] <= self.capacity[host][at])
    }

    /// What the host lacks for it, in millionths of what the host has, all resources together.
    pub(crate) fn lacks(&self, unit: usize, host: usize) -> u128 {
        let need = &self.units[unit].need;
        let lacks = |at: usize| {
            let all = u128::from(self.need[host][at]) + u128::from(need[at]);
            let missing = if need[at] == 0 { 0 } else { all.saturating_sub(self.capacity[host][at].into()) };
            self.millionths(host, at, missing)
        };
        (0..4).map(lacks).sum()
    }

    /// How much of what the host lacks for the unit a guest's leaving would give, in the same measure.
    pub(crate) fn gives_way(&self, guest: usize, unit: usize, host: usize) -> u128 {
        let (need, guest) = (&self.units[unit].need, &self.units[guest].need);
        let gives = |at: usize| {
            let all = u128::from(self.need[host][at]) + u128::from(need[at]);
            let missing = if need[at] == 0 { 0 } else { all.saturating_sub(self.capacity[host][at].into()) };
            self.millionths(host, at, missing.min(guest[at].into()))
        };
        (0..4).map(gives).sum()
    }

    /// Whether a rule names one of the unit's VMs.
    pub(crate) fn is_named(&self, unit: usize, rule: usize) -> bool {
        self.units[unit].rules.iter().any(|(known, _)| *known as usize == rule)
    }

    fn millionths(&self, host: usize, at: usize, amount: u128) -> u128 {
        (amount * 1_000_000).div_ceil(u128::from(self.capacity[host][at]).max(1))
    }

    /// Whether no must-rule is more broken afterwards, and none on account of who comes.
    pub(crate) fn keeps(&self, unit: usize, to: usize) -> bool {
        self.breaks(unit, to).is_none()
    }

    /// The first must-rule that speaks against it.
    pub(crate) fn breaks(&self, unit: usize, to: usize) -> Option<usize> {
        let table = &self.case.table;
        let against = |(rule, vms): &&(u32, u32)| {
            let entry = &table.entries[*rule as usize];
            if !entry.must {
                return false;
            }
            let worse = self.tally.worse(table, *rule, self.place[unit], to as u32, *vms);
            let arrives = self.tally.arrives(table, *rule, self.place[unit], to as u32, *vms);
            worse > 0 || arrives > 0
        };
        self.units[unit].rules.iter().find(against).map(|(rule, _)| *rule as usize)
    }

    /// How far a rule is more broken once the unit is there.
    pub(crate) fn worse_of(&self, rule: usize, unit: usize, to: usize) -> i64 {
        let named = self.units[unit].rules.iter().find(|(known, _)| *known as usize == rule);
        let worse = |vms| self.tally.worse(&self.case.table, rule as u32, self.place[unit], to as u32, vms);
        named.map_or(0, |(_, vms)| worse(*vms))
    }

    /// By how much soft rules become dearer.
    pub(crate) fn softer(&self, unit: usize, to: usize) -> i64 {
        let table = &self.case.table;
        let soft = self.units[unit].rules.iter().filter(|(rule, _)| !table.entries[*rule as usize].must);
        let worse =
            |(rule, vms): &(u32, u32)| self.tally.worse(table, *rule, self.place[unit], to as u32, *vms);
        self.objective.soft(soft.map(worse).sum())
    }

    /// The soft rule that is mended most if the unit goes there.
    pub(crate) fn softened(&self, unit: usize, to: usize) -> Option<usize> {
        let soft =
            self.units[unit].rules.iter().filter(|(rule, _)| !self.case.table.entries[*rule as usize].must);
        let worse = soft.map(|(rule, _)| (self.worse_of(*rule as usize, unit, to), *rule as usize));
        worse.min().filter(|(worse, _)| *worse < 0).map(|(_, rule)| rule)
    }

    fn soft(&self) -> i64 {
        let entries = self.case.table.entries.iter().enumerate().filter(|(_, entry)| !entry.must);
        let broken: u64 = entries.map(|(at, _)| self.broken(at)).sum();
        self.objective.soft(i64::try_from(broken).unwrap_or(i64::MAX))
    }

    fn away(&self, unit: usize, place: Option<u32>) -> i64 {
        let Unit { home, moved, .. } = &self.units[unit];
        if home.is_none() || place == *home { 0 } else { *moved }
    }

    /// What speaks against the host for the unit, as it is now; empty if nothing does.
    pub(crate) fn against(&self, unit: usize, host: usize) -> Vec<String> {
        let case = self.case;
        if let Some(why) = &case.silent[host] {
            return vec![why.clone()];
        }
        let mut against = Vec::new();
        if case.emptied[host] {
            against.push("it is to be emptied".into());
        }
        for vm in &self.units[unit].vms {
            let (host, vm) = (case.hosts[host], case.vms[*vm as usize]);
            against.extend(compatible::missing(host, vm));
        }
        for (at, resource) in Resource::ALL.into_iter().enumerate() {
            let need = self.units[unit].need[at];
            let free = self.capacity[host][at].saturating_sub(self.need[host][at]);
            if need > free {
                let (need, free) = (resource.show(need), resource.show(free));
                against.push(format!("{free} of {resource} are free, and {need} are needed"));
            }
        }
        for (rule, vms) in &self.units[unit].rules {
            let entry = &case.table.entries[*rule as usize];
            let worse = self.tally.worse(&case.table, *rule, self.place[unit], host as u32, *vms);
            let arrives = self.tally.arrives(&case.table, *rule, self.place[unit], host as u32, *vms);
            if worse > 0 || (entry.must && arrives > 0) {
                against.push(entry.show());
            }
        }
        against.sort();
        against.dedup();
        against
    }
}

/// Units, the unit of each VM, and the rows of hosts that units may run on.
fn units(case: &Case<'_>, objective: &Objective) -> (Vec<Unit>, Vec<u32>, Vec<Vec<bool>>) {
    let mut leader: Vec<u32> = (0..case.vms.len() as u32).collect();
    for entry in case.table.entries.iter().filter(|entry| entry.must && entry.says == Says::Together) {
        let mut homes = entry.vms.iter().map(|vm| case.home[*vm as usize]);
        let first = homes.next().flatten();
        if first.is_some() && homes.all(|home| home == first) {
            join(&mut leader, &entry.vms);
        }
    }
    let mut unit_of = vec![0; case.vms.len()];
    let mut members: Vec<Vec<u32>> = Vec::new();
    for vm in 0..case.vms.len() as u32 {
        let lead = find(&leader, vm);
        if lead == vm {
            unit_of[vm as usize] = members.len() as u32;
            members.push(vec![vm]);
        } else {
            // A leader is the least of its VMs, so its unit is there.
            let unit = unit_of[lead as usize];
            unit_of[vm as usize] = unit;
            members[unit as usize].push(vm);
        }
    }
    let mut classes = Classes::default();
    let units = members.into_iter().map(|vms| unit(case, objective, vms, &mut classes)).collect();
    (units, unit_of, classes.rows)
}

fn unit(case: &Case<'_>, objective: &Objective, vms: Vec<u32>, classes: &mut Classes) -> Unit {
    // All of them on one host must still be a number.
    let most = u64::MAX / (case.vms.len() as u64 + 1);
    let sum = |amounts: &dyn Fn(usize) -> [u64; 4]| {
        vms.iter().fold([0; 4], |mut sum, vm| {
            let each = amounts(*vm as usize);
            (0..4).for_each(|at| sum[at] += each[at].min(most));
            sum
        })
    };
    let mut rules: Vec<(u32, u32)> = Vec::new();
    for rule in vms.iter().flat_map(|vm| &case.table.of_vm[*vm as usize]) {
        match rules.iter_mut().find(|(known, _)| known == rule) {
            Some((_, count)) => *count += 1,
            None => rules.push((*rule, 1)),
        }
    }
    let home = case.home[vms[0] as usize].map(|home| home as u32);
    let moved = home.map_or(0, |home| {
        let room = case.hosts[home as usize].migration;
        let each =
            vms.iter().map(|vm| cost::of(&case.vms[*vm as usize].writes, room.bytes_per_s).duration_ms);
        each.map(|duration_ms| objective.moved(duration_ms)).sum()
    });
    Unit {
        need: sum(&|vm| row(&case.need(vm))),
        load: sum(&|vm| row(&case.entitled[vm])),
        class: classes.of(case, &vms),
        rules,
        home,
        moved,
        vms,
    }
}

/// Hosts that units may run on: a row is kept once.
#[derive(Default)]
struct Classes {
    rows: Vec<Vec<bool>>,
    known: std::collections::BTreeMap<Vec<bool>, u32>,
}

impl Classes {
    fn of(&mut self, case: &Case<'_>, vms: &[u32]) -> u32 {
        let may = |host: usize| {
            vms.iter().all(|vm| {
                let rules =
                    case.table.of_vm[*vm as usize].iter().map(|rule| &case.table.entries[*rule as usize]);
                let forbids = |says: &Says| matches!(says, Says::Only(allowed) if !allowed[host]);
                compatible::fits(case.hosts[host], case.vms[*vm as usize])
                    && !rules.filter(|entry| entry.must).any(|entry| forbids(&entry.says))
            })
        };
        let row: Vec<bool> = (0..case.hosts.len()).map(may).collect();
        let next = self.rows.len() as u32;
        *self.known.entry(row).or_insert_with_key(|row| {
            self.rows.push(row.clone());
            next
        })
    }
}

fn find(leader: &[u32], mut vm: u32) -> u32 {
    while leader[vm as usize] != vm {
        vm = leader[vm as usize];
    }
    vm
}

fn join(leader: &mut [u32], vms: &[u32]) {
    for pair in vms.windows(2) {
        let (a, b) = (find(leader, pair[0]), find(leader, pair[1]));
        leader[a.max(b) as usize] = a.min(b);
    }
}
