//! Rules by the places of VMs and hosts in lists, and how far each is broken.

use std::collections::BTreeMap;

use godwit_types::Name;

use super::{Hosts, Rule, RuleKind};
use crate::snapshot::{Host, Vm};

/// Rules as the planner reads them. What a rule names and the snapshot does not know is not in it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
    /// For each VM, the rules that name it.
    pub(crate) of_vm: Vec<Vec<u32>>,
    /// The failure domain of each host; one without a domain is a domain of its own.
    pub(crate) domains: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    pub(crate) must: bool,
    pub(crate) vms: Vec<u32>,
    pub(crate) says: Says,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Says {
    Together,
    MostPerHost(u32),
    MostPerDomain(u32),
    /// For each host, whether they may run there.
    Only(Vec<bool>),
}

impl Table {
    /// The rules in the order of their names, and what is wrong with them, with what to do.
    pub(crate) fn new(rules: &[Rule], hosts: &[&Host], vms: &[&Vm]) -> (Self, Vec<String>) {
        let domains = domains(hosts);
        let mut findings = Vec::new();
        let mut entries = Vec::new();
        let mut sorted: Vec<&Rule> = rules.iter().collect();
        sorted.sort_by(|a, b| {
            a.name.cmp(&b.name).then_with(|| format!("{:?}", a.kind).cmp(&format!("{:?}", b.kind)))
        });
        for pair in sorted.windows(2).filter(|pair| pair[0].name == pair[1].name) {
            findings.push(format!("rule '{}' is there twice: rename one of the two", pair[0].name));
        }
        for rule in sorted {
            entries.extend(entry(rule, hosts, vms, &domains, &mut findings));
        }
        let mut of_vm = vec![Vec::new(); vms.len()];
        for (at, entry) in entries.iter().enumerate() {
            entry.vms.iter().for_each(|vm| of_vm[*vm as usize].push(at as u32));
        }
        (Self { entries, of_vm, domains }, findings)
    }

    /// What a rule counts its VMs by: hosts or domains.
    pub(super) fn key(&self, rule: u32, host: u32) -> u32 {
        match self.entries[rule as usize].says {
            Says::MostPerDomain(_) => self.domains[host as usize],
            _ => host,
        }
    }
}

impl Entry {
    /// The rule in words, as a reason against a host.
    pub(crate) fn show(&self) -> String {
        let kind = if self.must { "rule" } else { "soft rule" };
        let says = match &self.says {
            Says::Together => "its VMs run on one host".into(),
            Says::MostPerHost(1) => "no two of its VMs run on one host".into(),
            Says::MostPerHost(most) => format!("no more than {most} of its VMs run on one host"),
            Says::MostPerDomain(most) => format!("no more than {most} of its VMs run in one failure domain"),
            Says::Only(_) => "its VMs do not run there".into(),
        };
        format!("{kind} '{}': {says}", self.name)
    }
}

fn entry(
    rule: &Rule,
    hosts: &[&Host],
    vms: &[&Vm],
    domains: &[u32],
    findings: &mut Vec<String>,
) -> Option<Entry> {
    let name = &rule.name;
    let mut places = Vec::new();
    for vm in rule.vms() {
        match vms.binary_search_by(|known| known.name.cmp(vm)) {
            Ok(at) => places.push(at as u32),
            Err(_) => findings.push(format!(
                "rule '{name}' names VM '{vm}', which does not exist: take it out of the rule"
            )),
        }
    }
    let says = match &rule.kind {
        RuleKind::Together { .. } => Says::Together,
        RuleKind::Apart { .. } => Says::MostPerHost(1),
        RuleKind::MaxPerHost { most, .. } => Says::MostPerHost(*most),
        RuleKind::Spread { domains: 0, .. } => {
            findings.push(format!("rule '{name}' spreads VMs over no domain: give it at least 1"));
            return None;
        }
        RuleKind::Spread { domains: wanted, .. } => {
            let there = domains.iter().max().map_or(0, |last| last + 1);
            if there < *wanted {
                findings.push(format!(
                    "rule '{name}' spreads VMs over {wanted} failure domains, and there are {there}: \
                     ask for fewer, or give hosts their domains"
                ));
            }
            Says::MostPerDomain((places.len() as u32).div_ceil(*wanted))
        }
        RuleKind::RunOn { hosts: named, .. } => Says::Only(named_in(named, name, hosts, true, findings)),
        RuleKind::NotOn { hosts: named, .. } => Says::Only(named_in(named, name, hosts, false, findings)),
    };
    Some(Entry { name: name.clone(), must: rule.must, vms: places, says })
}

/// For each host whether VMs may run there, if they may on the named ones, or on all others.
fn named_in(named: &Hosts, rule: &Name, hosts: &[&Host], may: bool, findings: &mut Vec<String>) -> Vec<bool> {
    for host in &named.names {
        if !hosts.iter().any(|known| known.name == *host) {
            findings.push(format!(
                "rule '{rule}' names host '{host}', which does not exist: take it out of the rule"
            ));
        }
    }
    for label in &named.labels {
        if !hosts.iter().any(|host| host.labels.contains(label)) {
            findings.push(format!(
                "rule '{rule}' names label '{label}', which no host has: give it to a host, or take it out"
            ));
        }
    }
    let is_named = |host: &&Host| named.names.contains(&host.name) || !named.labels.is_disjoint(&host.labels);
    hosts.iter().map(|host| is_named(host) == may).collect()
}

fn domains(hosts: &[&Host]) -> Vec<u32> {
    let mut known = BTreeMap::new();
    let mut next = 0;
    let mut number = || {
        next += 1;
        next - 1
    };
    hosts
        .iter()
        .map(|host| match &host.domain {
            Some(domain) => *known.entry(domain).or_insert_with(&mut number),
            None => number(),
        })
        .collect()
}
