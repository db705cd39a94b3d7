//! What an assignment costs and whether it is allowed, from the instance alone and written down as the contest's rules say it.
//!
//! With use U and capacity C of a machine, safety capacity S, and what is free A = C - U, the cost is
//!
//! ```text
//!   sum over resources r of weight(r) * sum over machines of max(0, U(r) - S(r))
//! + sum over balances b of weight(b) * sum over machines of max(0, target(b) * A(first) - A(second))
//! + weight * sum over moved processes of their move cost
//! + weight * the most processes that any service moves
//! + weight * sum over processes of the cost from their first machine to theirs
//! ```
//!
//! (ROADEF/EURO challenge 2012, "Machine Reassignment", sections 2 and 3.)

use std::collections::BTreeSet;

use super::instance::Instance;

/// The parts of the cost, each with its weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) load: i64,
    pub(super) balance: i64,
    pub(super) process_move: i64,
    pub(super) service_move: i64,
    pub(super) machine_move: i64,
}

impl Cost {
    pub(super) fn total(self) -> i64 {
        self.load + self.balance + self.process_move + self.service_move + self.machine_move
    }
}

/// Why an assignment is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("machine {machine} has too little of resource {resource}")]
    Capacity { machine: usize, resource: usize },
    #[error("machine {machine} has too little of resource {resource} while processes move")]
    Transient { machine: usize, resource: usize },
    #[error("two processes of service {service} are on machine {machine}")]
    Conflict { service: usize, machine: usize },
    #[error("service {service} is in too few locations")]
    Spread { service: usize },
    #[error("service {service} misses service {needed} in neighbourhood {neighbourhood}")]
    Dependency { service: usize, needed: usize, neighbourhood: usize },
}

/// See the module.
pub(super) fn evaluate(instance: &Instance, assignment: &[usize]) -> Result<Cost, Violation> {
    check_services(instance, assignment)?;
    let moved = |process: usize| assignment[process] != instance.assignment[process];
    let mut cost = Cost::default();
    let used = needed(instance, assignment, |_| true);
    check_room(instance, &used, &needed(instance, &instance.assignment, moved))?;
    for (machine, used) in used.iter().enumerate() {
        let (load, balance) = machine_cost(instance, machine, used);
        cost.load += load;
        cost.balance += balance;
    }
    let mut moved_of_service = vec![0; instance.services.len()];
    for process in (0..assignment.len()).filter(|process| moved(*process)) {
        let one = &instance.processes[process];
        moved_of_service[one.service] += 1;
        let from = &instance.machines[instance.assignment[process]];
        cost.process_move += instance.process_move_weight * one.move_cost;
        cost.machine_move += instance.machine_move_weight * from.move_costs[assignment[process]];
    }
    cost.service_move = instance.service_move_weight * moved_of_service.into_iter().max().unwrap_or(0);
    Ok(cost)
}

/// Of each machine, what those of its processes need that are counted.
fn needed(instance: &Instance, assignment: &[usize], counts: impl Fn(usize) -> bool) -> Vec<Vec<i64>> {
    let mut sums = vec![vec![0; instance.resources.len()]; instance.machines.len()];
    for process in (0..assignment.len()).filter(|process| counts(*process)) {
        let needs = &instance.processes[process].needs;
        sums[assignment[process]].iter_mut().zip(needs).for_each(|(sum, needs)| *sum += needs);
    }
    sums
}

fn machine_cost(instance: &Instance, machine: usize, used: &[i64]) -> (i64, i64) {
    let machine = &instance.machines[machine];
    let weighed = instance.resources.iter().enumerate();
    let load = weighed.map(|(r, resource)| resource.weight * (used[r] - machine.safety[r]).max(0)).sum();
    let free = |resource: usize| machine.capacity[resource] - used[resource];
    let balances = instance.balances.iter();
    let balance = balances.map(|b| b.weight * (b.target * free(b.first) - free(b.second)).max(0)).sum();
    (load, balance)
}

/// What processes use where they are, and where they have been.
fn check_room(instance: &Instance, used: &[Vec<i64>], left: &[Vec<i64>]) -> Result<(), Violation> {
    for (machine, has) in instance.machines.iter().enumerate() {
        for (resource, kind) in instance.resources.iter().enumerate() {
            let (used, capacity) = (used[machine][resource], has.capacity[resource]);
            if used > capacity {
                return Err(Violation::Capacity { machine, resource });
            }
            if kind.is_transient && used + left[machine][resource] > capacity {
                return Err(Violation::Transient { machine, resource });
            }
        }
    }
    Ok(())
}

fn check_services(instance: &Instance, assignment: &[usize]) -> Result<(), Violation> {
    let mut machines = vec![BTreeSet::new(); instance.services.len()];
    for (process, machine) in instance.processes.iter().zip(assignment) {
        if !machines[process.service].insert(*machine) {
            return Err(Violation::Conflict { service: process.service, machine: *machine });
        }
    }
    let places = |service: usize, of: fn(&Instance, usize) -> usize| -> BTreeSet<usize> {
        machines[service].iter().map(|machine| of(instance, *machine)).collect()
    };
    for (service, rules) in instance.services.iter().enumerate() {
        if places(service, |instance, machine| instance.machines[machine].location).len() < rules.spread_min {
            return Err(Violation::Spread { service });
        }
        let neighbourhood = |instance: &Instance, machine: usize| instance.machines[machine].neighbourhood;
        for needed in &rules.depends_on {
            let there = places(*needed, neighbourhood);
            if let Some(neighbourhood) = places(service, neighbourhood).difference(&there).next() {
                let neighbourhood = *neighbourhood;
                return Err(Violation::Dependency { service, needed: *needed, neighbourhood });
            }
        }
    }
    Ok(())
}
