//! Must-rules that contradict each other, found before anybody plans with them.
//!
//! Rules that share VMs are looked at together: whether there is any host for each of their VMs so that all are kept, by looking
//! for such places with the VM that has fewest hosts left first. If there are none, rules are taken away one by one as long as there are still
//! none: what is left is a smallest set, each of whose rules could be kept without any of the others (deletion filtering, Chinneck and
//! Dravnieks, "Locating minimal infeasible constraint sets in linear programs", 1991). Room is not asked for.

use std::collections::BTreeSet;
use std::fmt;

use godwit_types::{Name, VmName};
use serde::{Deserialize, Serialize};

use super::Rule;
use super::compatible;
use super::table::{Says, Table};
use super::tally::Tally;
use crate::snapshot::{Host, Vm};

/// Places that are tried for one set of rules. A set that takes more is taken to be without contradiction.
const TRIALS_MAX: u32 = 20_000;

/// Must-rules that cannot all be kept; without any one of them the others could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Conflict {
    pub rules: Vec<Name>,
    /// The VMs that they name.
    pub vms: Vec<VmName>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed =
            |names: &[Name]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        match self.rules.as_slice() {
            [rule] => write!(f, "rule '{rule}' cannot be kept")?,
            rules => write!(f, "rules {} contradict each other", listed(rules))?,
        }
        write!(f, ": no hosts for {} are right for all of them", listed(&self.vms))
    }
}

/// Every smallest set of must-rules that contradict each other; sets that share a rule are found one after the other, as they are
/// mended. Hosts are counted whatever their state, since states pass.
pub fn conflicts(hosts: &[Host], vms: &[Vm], rules: &[Rule]) -> Vec<Conflict> {
    let (mut hosts, mut vms): (Vec<&Host>, Vec<&Vm>) = (hosts.iter().collect(), vms.iter().collect());
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    let (table, _) = Table::new(rules, &hosts, &vms);
    let found = in_table(&table, &hosts, &vms);
    found.into_iter().map(|rules| conflict(&table, &vms, &rules)).collect()
}

pub(crate) fn conflict(table: &Table, vms: &[&Vm], rules: &[u32]) -> Conflict {
    let entries = || rules.iter().map(|rule| &table.entries[*rule as usize]);
    let named: BTreeSet<u32> = entries().flat_map(|entry| entry.vms.iter().copied()).collect();
    Conflict {
        rules: entries().map(|entry| entry.name.clone()).collect(),
        vms: named.into_iter().map(|vm| vms[vm as usize].name.clone()).collect(),
    }
}

/// The same by the places of rules.
pub(crate) fn in_table(table: &Table, hosts: &[&Host], vms: &[&Vm]) -> Vec<Vec<u32>> {
    let mut conflicts = Vec::new();
    for mut rules in components(table, vms.len()) {
        while !rules.is_empty() && !can_be_kept(table, hosts, vms, &rules) {
            let mut least = rules.clone();
            for rule in &rules {
                let without: Vec<u32> = least.iter().copied().filter(|known| known != rule).collect();
                if !can_be_kept(table, hosts, vms, &without) {
                    least = without;
                }
            }
            rules.retain(|rule| !least.contains(rule));
            conflicts.push(least);
        }
    }
    conflicts
}

/// Must-rules that share VMs, directly or by others.
fn components(table: &Table, vms: usize) -> Vec<Vec<u32>> {
    let mut component: Vec<usize> = (0..vms).collect();
    let must: Vec<u32> =
        (0..table.entries.len() as u32).filter(|rule| table.entries[*rule as usize].must).collect();
    for rule in &must {
        let members = &table.entries[*rule as usize].vms;
        let joined: Vec<usize> = members.iter().map(|vm| component[*vm as usize]).collect();
        let Some(first) = joined.iter().min().copied() else { continue };
        component.iter_mut().filter(|of| joined.contains(of)).for_each(|of| *of = first);
    }
    let mut components: std::collections::BTreeMap<usize, Vec<u32>> = Default::default();
    for rule in must {
        if let Some(vm) = table.entries[rule as usize].vms.first() {
            components.entry(component[*vm as usize]).or_default().push(rule);
        }
    }
    components.into_values().collect()
}

fn can_be_kept(table: &Table, hosts: &[&Host], vms: &[&Vm], rules: &[u32]) -> bool {
    let named: BTreeSet<u32> =
        rules.iter().flat_map(|rule| table.entries[*rule as usize].vms.iter().copied()).collect();
    let allowed = named.iter().map(|vm| {
        let fits: Vec<bool> =
            hosts.iter().map(|host| compatible::fits(host, vms[*vm as usize], false)).collect();
        // A VM that fits no host at all is no matter of rules.
        if fits.contains(&true) { fits } else { vec![true; hosts.len()] }
    });
    let mut places = Places {
        table,
        allowed: allowed.collect(),
        of_vm: named
            .iter()
            .map(|vm| rules.iter().copied().filter(|rule| table.of_vm[*vm as usize].contains(rule)).collect())
            .collect(),
        placed: vec![false; named.len()],
        used: vec![false; hosts.len()],
        tally: Tally::new(table),
        alike: Vec::new(),
        trials: TRIALS_MAX,
    };
    places.alike = places.alike(rules, hosts.len());
    places.find()
}

/// Places for VMs, tried one after the other.
struct Places<'a> {
    table: &'a Table,
    /// Of each VM, the hosts that have what it needs, and the rules that name it.
    allowed: Vec<Vec<bool>>,
    of_vm: Vec<Vec<u32>>,
    placed: Vec<bool>,
    used: Vec<bool>,
    tally: Tally,
    /// For each host the first that is like it for all rules and VMs: of those that are empty, one is as good as the other.
    alike: Vec<usize>,
    trials: u32,
}

impl Places<'_> {
    /// Whether there are places for all who have none yet.
    fn find(&mut self) -> bool {
        let waiting = (0..self.placed.len()).filter(|vm| !self.placed[*vm]);
        let Some((_, vm)) = waiting.map(|vm| (self.hosts(vm).len(), vm)).min() else { return true };
        for host in self.hosts(vm) {
            if self.trials == 0 {
                return true;
            }
            self.trials -= 1;
            let was_used = std::mem::replace(&mut self.used[host], true);
            self.placed[vm] = true;
            self.of_vm[vm].iter().for_each(|rule| self.tally.add(self.table, *rule, host as u32, 1));
            if self.find() {
                return true;
            }
            self.of_vm[vm].iter().for_each(|rule| self.tally.remove(self.table, *rule, host as u32, 1));
            self.placed[vm] = false;
            self.used[host] = was_used;
        }
        false
    }

    /// Hosts for a VM beside those that are placed, of empty ones that are alike the first.
    fn hosts(&self, vm: usize) -> Vec<usize> {
        let may = |host: &usize| {
            self.allowed[vm][*host]
                && self.of_vm[vm].iter().all(|rule| {
                    let worse = self.tally.worse(self.table, *rule, None, *host as u32, 1);
                    worse <= 0 && self.tally.arrives(self.table, *rule, None, *host as u32, 1) == 0
                })
        };
        let mut empty = BTreeSet::new();
        let hosts = (0..self.used.len()).filter(may);
        hosts.filter(|host| self.used[*host] || empty.insert(self.alike[*host])).collect()
    }

    fn alike(&self, rules: &[u32], hosts: usize) -> Vec<usize> {
        let entries = || rules.iter().map(|rule| &self.table.entries[*rule as usize]);
        let spreads = entries().any(|entry| matches!(entry.says, Says::MostPerDomain(_)));
        let key = |host: usize| -> Vec<u32> {
            let fits = self.allowed.iter().map(|row| u32::from(row[host]));
            let may = entries().map(|entry| match &entry.says {
                Says::Only(allowed) => u32::from(allowed[host]),
                _ => 0,
            });
            fits.chain(may).chain(spreads.then_some(self.table.domains[host])).collect()
        };
        let mut first = std::collections::BTreeMap::new();
        (0..hosts).map(|host| *first.entry(key(host)).or_insert(host)).collect()
    }
}
