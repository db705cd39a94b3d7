//! How far rules are broken as VMs are placed, kept up to date change by change.

use std::collections::BTreeMap;

use super::table::{Says, Table};

/// How many of each rule's VMs are where.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    counts: Vec<BTreeMap<u32, u32>>,
}

impl Tally {
    /// Nobody is anywhere.
    pub(crate) fn new(table: &Table) -> Self {
        Self { counts: vec![BTreeMap::new(); table.entries.len()] }
    }

    /// So many VMs of a rule come to a host.
    pub(crate) fn add(&mut self, table: &Table, rule: u32, host: u32, vms: u32) {
        *self.counts[rule as usize].entry(table.key(rule, host)).or_default() += vms;
    }

    /// So many, which are there, leave.
    pub(crate) fn remove(&mut self, table: &Table, rule: u32, host: u32, vms: u32) {
        let key = table.key(rule, host);
        let left = self.at(rule, key).saturating_sub(vms);
        if left == 0 {
            self.counts[rule as usize].remove(&key);
        } else {
            self.counts[rule as usize].insert(key, left);
        }
    }

    /// How far a rule is broken: VMs too many or in the wrong place, hosts too many. 0 if it is kept.
    pub(crate) fn broken(&self, table: &Table, rule: u32) -> u64 {
        let counts = &self.counts[rule as usize];
        match &table.entries[rule as usize].says {
            Says::Together => (counts.len() as u64).saturating_sub(1),
            Says::MostPerHost(most) | Says::MostPerDomain(most) => {
                counts.values().map(|count| u64::from(count.saturating_sub(*most))).sum()
            }
            Says::Only(allowed) => counts
                .iter()
                .filter(|(host, _)| !allowed[**host as usize])
                .map(|(_, count)| u64::from(*count))
                .sum(),
        }
    }

    /// By how much the rule is more broken once so many of its VMs have gone from one host, or from none, to another.
    pub(crate) fn worse(&self, table: &Table, rule: u32, from: Option<u32>, to: u32, vms: u32) -> i64 {
        let (key_from, key_to) = (from.map(|host| table.key(rule, host)), table.key(rule, to));
        if key_from == Some(key_to) {
            return 0;
        }
        let (at_from, at_to) = (key_from.map_or(0, |key| self.at(rule, key)), self.at(rule, key_to));
        let vms = i64::from(vms);
        let (at_from, at_to) = (i64::from(at_from), i64::from(at_to));
        match &table.entries[rule as usize].says {
            Says::Together => {
                let hosts = self.counts[rule as usize].len() as i64;
                let emptied = key_from.is_some() && at_from <= vms;
                let after = hosts + i64::from(at_to == 0) - i64::from(emptied);
                (after - 1).max(0) - (hosts - 1).max(0)
            }
            Says::MostPerHost(most) | Says::MostPerDomain(most) => {
                let over = |count: i64| (count - i64::from(*most)).max(0);
                let fewer = if key_from.is_some() { over(at_from) - over(at_from - vms) } else { 0 };
                over(at_to + vms) - over(at_to) - fewer
            }
            Says::Only(allowed) => {
                let wrong = |host: u32| i64::from(!allowed[host as usize]);
                vms * (wrong(to) - from.map_or(0, wrong))
            }
        }
    }

    /// How many of them would be too many where they come, even if those that leave were gone already.
    pub(crate) fn arrives(&self, table: &Table, rule: u32, from: Option<u32>, to: u32, vms: u32) -> u32 {
        let key = table.key(rule, to);
        if from.map(|host| table.key(rule, host)) == Some(key) {
            return 0;
        }
        match &table.entries[rule as usize].says {
            Says::MostPerHost(most) | Says::MostPerDomain(most) => {
                (self.at(rule, key) + vms).saturating_sub(*most).min(vms)
            }
            Says::Together | Says::Only(_) => 0,
        }
    }

    fn at(&self, rule: u32, key: u32) -> u32 {
        self.counts[rule as usize].get(&key).copied().unwrap_or(0)
    }
}
