//! What a change would cost, and what speaks against it.

use godwit_types::Bytes;

use super::{Model, Unit};
use crate::resource::Resource;
use crate::rules::compatible;

impl Model<'_> {
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
        if !self.has_room_for_disks(one, to) || !self.has_room_for_disks(other, from) {
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

    /// Whether the host is one for the unit, whatever else runs there.
    pub(crate) fn may_run(&self, unit: usize, host: usize) -> bool {
        self.case.gets(host) && self.classes[self.units[unit].class as usize][host]
    }

    /// Whether what it needs is free there.
    pub(crate) fn has_room(&self, unit: usize, host: usize) -> bool {
        let need = &self.units[unit].need;
        (0..4).all(|at| need[at] == 0 || self.need[host][at] + need[at] <= self.capacity[host][at])
            && self.has_room_for_disks(unit, host)
    }

    /// Whether disks that it would bring along find room there.
    fn has_room_for_disks(&self, unit: usize, host: usize) -> bool {
        let unit = &self.units[unit];
        !unit.has_disks || self.brought.has_room(self.case, &unit.vms, host)
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
        for vm in self.units[unit].vms.iter().map(|vm| *vm as usize) {
            against.extend(compatible::missing(case.hosts[host], case.vms[vm], case.takes_disks(vm)));
        }
        if !self.has_room_for_disks(unit, host) {
            let vms = self.units[unit].vms.iter();
            let bytes = vms.fold(0u64, |sum, vm| sum.saturating_add(case.brings(*vm as usize, host)));
            against.push(format!(
                "its datastores have no room for {} of disks that would come along",
                Bytes(bytes)
            ));
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
