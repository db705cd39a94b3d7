//! A cluster on which a plan is executed, and what must hold all the while. It knows nothing of the planner's own state.

use std::collections::{BTreeMap, BTreeSet};

use godwit_scheduler::planner::{Action, Plan, Step};
use godwit_scheduler::rules::{Hosts, RuleKind};
use godwit_scheduler::snapshot::{Host, HostState, Snapshot, Vm};
use godwit_types::Name;

/// Hosts that each VM has memory on: two while it moves.
pub(crate) struct World<'a> {
    snapshot: &'a Snapshot,
    on: BTreeMap<Name, BTreeSet<Name>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        let on = snapshot.vms.iter().map(|vm| (vm.name.clone(), vm.host.iter().cloned().collect()));
        Self { snapshot, on: on.collect() }
    }

    /// Begins a step, or says what is wrong with it.
    pub(crate) fn begin(&mut self, step: &Step) -> Result<(), String> {
        let (vm, from, to) = match &step.action {
            Action::Move { vm, from, to } => (vm, Some(from), to),
            Action::Place { vm, on } => (vm, None, on),
            _ => return Ok(()),
        };
        let here = self.on[vm].iter().next();
        if here != from || self.on[vm].len() > 1 {
            return Err(format!("{vm} is on {:?}, not on {from:?}", self.on[vm]));
        }
        let (known, host) = (self.vm(vm), self.host(to));
        if from.is_some() && known.pinned.is_some() {
            return Err(format!("{vm} is pinned"));
        }
        if host.state != HostState::On
            || self.stale(host)
            || from.is_some_and(|from| self.stale(self.host(from)))
        {
            return Err(format!("{to} or {from:?} is not there for it"));
        }
        if !known.needs.networks.is_subset(&host.networks) {
            return Err(format!("{to} lacks a network of {vm}"));
        }
        self.on.get_mut(vm).unwrap().insert(to.clone());
        self.has_room(host)?;
        self.keeps_rules(known, from, host)
    }

    pub(crate) fn end(&mut self, step: &Step) {
        if let Action::Move { vm, from, .. } = &step.action {
            self.on.get_mut(vm).unwrap().remove(from);
        }
    }

    /// How far each must-rule is broken.
    pub(crate) fn broken(&self) -> BTreeMap<Name, usize> {
        let mut broken = BTreeMap::new();
        for rule in self.snapshot.rules.iter().filter(|rule| rule.must) {
            *broken.entry(rule.name.clone()).or_default() += match &rule.kind {
                RuleKind::Together { vms } => {
                    let hosts: BTreeSet<_> = vms.iter().flat_map(|vm| self.hosts_of(vm)).collect();
                    hosts.len().saturating_sub(1)
                }
                RuleKind::Apart { vms } => self.over(vms, 1, |host| host.clone()),
                RuleKind::MaxPerHost { vms, most } => self.over(vms, *most as usize, |host| host.clone()),
                RuleKind::Spread { vms, domains } => {
                    self.over(vms, self.part(vms, *domains), |host| self.domain(host))
                }
                RuleKind::RunOn { vms, hosts } => self.wrong(vms, |host| !self.is_named(hosts, host)),
                RuleKind::NotOn { vms, hosts } => self.wrong(vms, |host| self.is_named(hosts, host)),
            };
        }
        broken
    }

    fn keeps_rules(&self, vm: &Vm, from: Option<&Name>, to: &Host) -> Result<(), String> {
        let named = |vms: &BTreeSet<Name>| vms.contains(&vm.name);
        for rule in self.snapshot.rules.iter().filter(|rule| rule.must) {
            let there = |vms: &BTreeSet<Name>, key: &dyn Fn(&Name) -> Name| {
                let at = key(&to.name);
                vms.iter().filter(|vm| self.hosts_of(vm).any(|host| key(host) == at)).count()
            };
            let kept = match &rule.kind {
                RuleKind::Apart { vms } => !named(vms) || there(vms, &|host| host.clone()) <= 1,
                RuleKind::MaxPerHost { vms, most } => {
                    !named(vms) || there(vms, &|host| host.clone()) <= *most as usize
                }
                RuleKind::Spread { vms, domains } => {
                    let same = from.is_some_and(|from| self.domain(from) == self.domain(&to.name));
                    !named(vms) || same || there(vms, &|host| self.domain(host)) <= self.part(vms, *domains)
                }
                RuleKind::RunOn { vms, hosts } => !named(vms) || self.is_named(hosts, &to.name),
                RuleKind::NotOn { vms, hosts } => !named(vms) || !self.is_named(hosts, &to.name),
                // It cannot hold while they move one after the other.
                RuleKind::Together { .. } => true,
            };
            if !kept {
                return Err(format!("{} to {} breaks {:?}", vm.name, to.name, rule));
            }
        }
        Ok(())
    }

    fn has_room(&self, host: &Host) -> Result<(), String> {
        let there = || self.snapshot.vms.iter().filter(|vm| self.on[&vm.name].contains(&host.name));
        let memory: u64 = there().map(|vm| vm.memory).sum();
        let reserved: u64 = there().map(|vm| vm.controls.cpu.reservation).sum();
        if memory > host.capacity.memory || reserved > host.capacity.cpu {
            return Err(format!("{} has no room: {memory} bytes, {reserved} MHz", host.name));
        }
        Ok(())
    }

    fn hosts_of(&self, vm: &Name) -> impl Iterator<Item = &Name> {
        self.on.get(vm).into_iter().flatten()
    }

    fn over(&self, vms: &BTreeSet<Name>, most: usize, key: impl Fn(&Name) -> Name) -> usize {
        let mut counts = BTreeMap::<Name, usize>::new();
        vms.iter()
            .flat_map(|vm| self.hosts_of(vm))
            .for_each(|host| *counts.entry(key(host)).or_default() += 1);
        counts.values().map(|count| count.saturating_sub(most)).sum()
    }

    fn wrong(&self, vms: &BTreeSet<Name>, is_wrong: impl Fn(&Name) -> bool) -> usize {
        vms.iter().flat_map(|vm| self.hosts_of(vm)).filter(|host| is_wrong(host)).count()
    }

    fn part(&self, vms: &BTreeSet<Name>, domains: u32) -> usize {
        let known = vms.iter().filter(|vm| self.on.contains_key(vm)).count();
        known.div_ceil(domains.max(1) as usize)
    }

    fn domain(&self, host: &Name) -> Name {
        self.host(host).domain.clone().unwrap_or_else(|| host.clone())
    }

    fn is_named(&self, hosts: &Hosts, host: &Name) -> bool {
        hosts.names.contains(host) || !hosts.labels.is_disjoint(&self.host(host).labels)
    }

    fn stale(&self, host: &Host) -> bool {
        self.snapshot.at_unix_ms - host.seen_unix_ms > 60_000
    }

    fn vm(&self, name: &Name) -> &'a Vm {
        self.snapshot.vms.iter().find(|vm| vm.name == *name).expect("a VM of the snapshot")
    }

    fn host(&self, name: &Name) -> &'a Host {
        self.snapshot.hosts.iter().find(|host| host.name == *name).expect("a host of the snapshot")
    }
}

/// Executes a plan when it says, steps that end before steps that begin. What its must-rules are broken by before and after.
pub(crate) fn execute_on_time(
    snapshot: &Snapshot,
    plan: &Plan,
) -> Result<[BTreeMap<Name, usize>; 2], String> {
    let mut world = World::new(snapshot);
    let before = world.broken();
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (at, step) in plan.steps.iter().enumerate() {
        events.push((step.begins_ms, true, at));
        events.push((step.ends_ms, false, at));
        if let Some(late) = step.after.iter().find(|first| plan.steps[**first].ends_ms > step.begins_ms) {
            return Err(format!("step {at} begins before step {late} ends"));
        }
    }
    events.sort_unstable();
    for (_, begins, at) in events {
        if begins { world.begin(&plan.steps[at])? } else { world.end(&plan.steps[at]) }
    }
    Ok([before, world.broken()])
}

/// Executes a plan in any order that its steps allow: at each turn some step begins or ends, as `choose` says.
pub(crate) fn execute_in_any_order(
    snapshot: &Snapshot,
    plan: &Plan,
    mut choose: impl FnMut(usize) -> usize,
) -> Result<(), String> {
    let mut world = World::new(snapshot);
    let (mut waiting, mut under_way): (Vec<usize>, Vec<usize>) =
        ((0..plan.steps.len()).collect(), Vec::new());
    let mut done = BTreeSet::new();
    while !waiting.is_empty() || !under_way.is_empty() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|at| plan.steps[waiting[*at]].after.iter().all(|first| done.contains(first)))
            .collect();
        let choice = choose(ready.len() + under_way.len());
        if let Some(at) = ready.get(choice) {
            let step = waiting.remove(*at);
            world.begin(&plan.steps[step])?;
            under_way.push(step);
        } else {
            let step = under_way.remove(choice - ready.len());
            world.end(&plan.steps[step]);
            done.insert(step);
        }
    }
    Ok(())
}
