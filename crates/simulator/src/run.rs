//! Step by step: demand changes, the scheduler plans, and the plan is carried out.

use std::collections::{BTreeMap, BTreeSet};

use godwit_scheduler::PerResource;
use godwit_scheduler::entitlement::{self, Tree};
use godwit_scheduler::planner::{Action, Cost, Goal, Plan};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::snapshot::{HostState, LATELY_MS, Snapshot};
use godwit_types::{HostName, VmName};

use crate::account::{Account, Beginning};
use crate::cluster::{Cluster, Outcome};
use crate::gauge::happiness;
use crate::report::{Report, StepReport, Summary, Tally};
use crate::trace::Trace;

/// Findings that are kept, so that one that changes with every step does not fill the report.
const FINDINGS_MAX: usize = 50;

/// Why a trace cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    #[error("the trace has no hosts: give it some, or say how many there are to be")]
    NoHosts,
    #[error("the trace has no VMs, or says nothing of what they want")]
    NoVms,
    #[error("the trace's interval is 0: say how many milliseconds are between two values")]
    NoInterval,
    #[error("VM '{vm}' is on host '{host}', which the trace does not have")]
    UnknownHost { vm: VmName, host: HostName },
    #[error("{0}")]
    Pools(String),
}

/// What is to happen at some time.
#[derive(Debug, Clone, Copy)]
enum Event {
    Depart { guest: usize, to: usize, cost: Cost, ends_ms: u64 },
    Arrive { guest: usize, cost: Cost },
    Switch { host: usize, state: HostState },
}

/// See the module.
#[derive(Debug)]
pub struct Simulation {
    trace: Trace,
    policy: Policy,
    seed: u64,
    cluster: Cluster,
    /// By when; arrivals before what may wait for them; in the order in which they were planned.
    events: BTreeMap<(u64, bool, u64), Event>,
    planned: u64,
    step: usize,
    hosts: BTreeMap<HostName, usize>,
    guests: BTreeMap<VmName, usize>,
    steps: Vec<StepReport>,
    tally: Tally,
    findings: BTreeSet<String>,
}

impl Simulation {
    /// At the trace's beginning.
    pub fn new(trace: Trace, policy: Policy, seed: u64) -> Result<Self, SetupError> {
        if trace.hosts.is_empty() {
            return Err(SetupError::NoHosts);
        }
        if trace.steps() == 0 {
            return Err(SetupError::NoVms);
        }
        if trace.interval_ms == 0 {
            return Err(SetupError::NoInterval);
        }
        let hosts: BTreeMap<HostName, usize> =
            trace.hosts.iter().enumerate().map(|(at, host)| (host.name.clone(), at)).collect();
        for vm in &trace.vms {
            if let Some(host) = vm.host.clone().filter(|host| !hosts.contains_key(host)) {
                return Err(SetupError::UnknownHost { vm: vm.name.clone(), host });
            }
        }
        let nothing = vec![PerResource::default(); trace.vms.len()];
        tree(&trace, &nothing)?;
        Ok(Self {
            cluster: Cluster::new(&trace),
            guests: trace.vms.iter().enumerate().map(|(at, vm)| (vm.name.clone(), at)).collect(),
            trace,
            policy,
            seed,
            events: BTreeMap::new(),
            planned: 0,
            step: 0,
            hosts,
            steps: Vec::new(),
            tally: Tally::default(),
            findings: BTreeSet::new(),
        })
    }

    /// Steps that are done, and all of them.
    pub fn progress(&self) -> (usize, usize) {
        (self.step, self.trace.steps())
    }

    /// Goes one step on, with the scheduler that is given. None once all steps are done.
    pub fn step(
        &mut self,
        scheduler: &mut dyn FnMut(&Snapshot, &Policy, &Goal, u64) -> Plan,
    ) -> Option<&StepReport> {
        if self.step == self.trace.steps() {
            return None;
        }
        let now_ms = self.step as u64 * self.trace.interval_ms;
        let until_ms = now_ms + self.trace.interval_ms;
        let demand: Vec<PerResource<u64>> = self.trace.vms.iter().map(|vm| vm.demand(self.step)).collect();
        self.start(&demand, now_ms, scheduler);
        let content = tree(&self.trace, &demand)
            .map(|tree| happiness(&self.cluster, &self.trace, &demand, &tree))
            // The pools were a tree when the simulation began, and have not changed.
            .unwrap_or(crate::Spread { mean: 0.0, p5: 0.0, p1: 0.0 });
        let plan = self.ask(&demand, now_ms, &Goal::Balance, scheduler);
        let broken_rules = plan.before.broken.len();
        self.enter(&plan, now_ms, until_ms);
        let mut account = Account::new(&self.cluster, &self.trace, demand, now_ms);
        let capacity_mhz = self.capacity_mhz();
        while let Some(((at_ms, ..), event)) = self.next_before(until_ms) {
            self.happen(event, at_ms, &mut account);
        }
        let report = account.close(
            &self.cluster,
            &self.trace,
            Beginning { now_ms, capacity_mhz, happiness: content, broken_rules },
        );
        self.steps.push(report);
        self.step += 1;
        self.steps.last()
    }

    /// Whether no VM is lost or on two hosts, and no host's memory is overrun.
    pub fn is_sound(&self) -> bool {
        self.cluster.is_sound(&self.trace)
    }

    /// What there is to report of the steps that are done.
    pub fn report(self) -> Report {
        let summary = Summary::of(&self.steps, &self.tally, self.trace.interval_ms, self.trace.vms.len());
        Report {
            hosts: self.trace.hosts.len(),
            vms: self.trace.vms.len(),
            interval_s: self.trace.interval_ms / 1000,
            seed: self.seed,
            policy: self.policy,
            summary,
            findings: self.findings.into_iter().collect(),
            steps: self.steps,
        }
    }

    /// VMs that run nowhere start where the scheduler says, at once.
    fn start(
        &mut self,
        demand: &[PerResource<u64>],
        now_ms: u64,
        scheduler: &mut dyn FnMut(&Snapshot, &Policy, &Goal, u64) -> Plan,
    ) {
        if self.cluster.guests.iter().all(|guest| guest.host.is_some()) {
            return;
        }
        let plan = self.ask(demand, now_ms, &Goal::Place, scheduler);
        for step in plan.steps {
            if let Action::Place { vm, on } = &step.action
                && let (Some(guest), Some(host)) = (self.guests.get(vm), self.hosts.get(on))
            {
                let outcome = self.cluster.place(*guest, *host, &self.trace.hosts[*host]);
                self.tally.refused += u64::from(outcome == Outcome::Refused);
            }
        }
    }

    fn ask(
        &mut self,
        demand: &[PerResource<u64>],
        now_ms: u64,
        goal: &Goal,
        scheduler: &mut dyn FnMut(&Snapshot, &Policy, &Goal, u64) -> Plan,
    ) -> Plan {
        let mut snapshot = self.cluster.snapshot(&self.trace, demand, now_ms);
        let lately = (LATELY_MS / self.trace.interval_ms.max(1)) as usize;
        for (vm, record) in snapshot.vms.iter_mut().zip(&self.trace.vms) {
            vm.demand_long = record.peak(self.step.saturating_sub(lately)..=self.step);
            if self.policy.power.enabled {
                vm.recent_mhz = record.recent_mhz(self.step, self.trace.interval_ms);
            }
        }
        let plan = scheduler(&snapshot, &self.policy, goal, self.seed.wrapping_add(self.step as u64));
        let room = FINDINGS_MAX.saturating_sub(self.findings.len());
        self.findings.extend(plan.findings.iter().take(room).cloned());
        plan
    }

    /// Steps of a plan that begin before the next one become events.
    fn enter(&mut self, plan: &Plan, now_ms: u64, until_ms: u64) {
        for step in &plan.steps {
            let (begins_ms, ends_ms) = (now_ms + step.begins_ms, now_ms + step.ends_ms.max(step.begins_ms));
            if begins_ms >= until_ms {
                self.tally.superseded += 1;
                continue;
            }
            let host = |name: &HostName| self.hosts.get(name).copied();
            let event = match &step.action {
                Action::Move { vm, to, .. } => {
                    let found = self.guests.get(vm).copied().zip(host(to));
                    found.map(|(guest, to)| Event::Depart { guest, to, cost: step.cost, ends_ms })
                }
                Action::Place { .. } => None,
                Action::Wake { host: name } => {
                    host(name).map(|host| Event::Switch { host, state: HostState::Waking })
                }
                Action::Standby { host: name } => {
                    host(name).map(|host| Event::Switch { host, state: HostState::Standby })
                }
            };
            if let Some(event) = event {
                self.schedule(begins_ms, event);
            }
        }
    }

    fn schedule(&mut self, at_ms: u64, event: Event) {
        let arrives = matches!(event, Event::Arrive { .. });
        self.events.insert((at_ms, !arrives, self.planned), event);
        self.planned += 1;
    }

    fn next_before(&mut self, until_ms: u64) -> Option<((u64, bool, u64), Event)> {
        let first = *self.events.first_key_value()?.0;
        if first.0 < until_ms { self.events.pop_first() } else { None }
    }

    fn happen(&mut self, event: Event, at_ms: u64, account: &mut Account) {
        let mut changed = Vec::new();
        let outcome = match event {
            Event::Depart { guest, to, cost, ends_ms } => {
                let outcome = self.cluster.depart(guest, to, &self.trace.hosts[to]);
                if outcome == Outcome::Done {
                    self.schedule(ends_ms, Event::Arrive { guest, cost });
                }
                outcome
            }
            Event::Arrive { guest, cost } => {
                let (outcome, hosts) = self.cluster.arrive(guest, at_ms);
                changed = hosts;
                account.moves += u64::from(outcome != Outcome::Refused);
                account.in_vain += u64::from(outcome == Outcome::InVain);
                account.bytes += cost.bytes;
                self.tally.migration_cpu_ms += cost.cpu_ms;
                self.tally.blackout_us += cost.blackout_us;
                outcome
            }
            Event::Switch { host, state } => {
                let outcome = self.cluster.switch(host, state, at_ms);
                changed.push(host);
                let is_switched = state != HostState::On && outcome != Outcome::Refused;
                self.tally.switches += u64::from(is_switched);
                self.tally.switches_in_vain += u64::from(outcome == Outcome::InVain);
                if is_switched && state == HostState::Waking {
                    let wake_ms = u64::from(self.trace.hosts[host].wake_s) * 1000;
                    self.schedule(at_ms + wake_ms, Event::Switch { host, state: HostState::On });
                }
                outcome
            }
        };
        self.tally.refused += u64::from(outcome == Outcome::Refused);
        for host in changed {
            account.change(&self.cluster, &self.trace, host, at_ms);
        }
    }

    fn capacity_mhz(&self) -> f64 {
        let hosts = self.trace.hosts.iter().zip(&self.cluster.hosts);
        let on = hosts.filter(|(_, machine)| machine.state == HostState::On);
        on.map(|(host, _)| host.cpu_mhz as f64).sum()
    }
}

fn tree(trace: &Trace, demand: &[PerResource<u64>]) -> Result<Tree, SetupError> {
    let vm = |(vm, demand): (&crate::trace::VmRecord, &PerResource<u64>)| entitlement::Vm {
        name: vm.name.clone(),
        pool: vm.pool.clone(),
        controls: vm.controls,
        demand: *demand,
    };
    let vms = trace.vms.iter().zip(demand).map(vm).collect();
    Tree::new(trace.pools.clone(), vms).map_err(|findings| {
        let each = findings.iter().map(|finding| format!("{finding}: {}", finding.remedy()));
        SetupError::Pools(each.collect::<Vec<_>>().join("; "))
    })
}
