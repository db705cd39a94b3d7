//! What hosts hold while VMs move: a VM that moves is at both ends.

use crate::planner::brought::Brought;
use crate::planner::case::Case;
use crate::planner::objective::row;
use crate::rules::tally::Tally;

/// Room and rules, VM by VM.
#[derive(Clone)]
pub(super) struct Ground<'a> {
    case: &'a Case<'a>,
    need: Vec<[u64; 4]>,
    brought: Brought,
    tally: Tally,
}

impl<'a> Ground<'a> {
    /// Everybody at home.
    pub(super) fn new(case: &'a Case<'a>) -> Self {
        let (need, brought) = (vec![[0; 4]; case.hosts.len()], Brought::new(case));
        let mut ground = Self { case, need, brought, tally: Tally::new(&case.table) };
        for vm in 0..case.vms.len() {
            if let Some(home) = case.home[vm] {
                ground.arrive(vm, home);
            }
        }
        ground
    }

    /// Whether the VM may begin to move there: all that is there, comes or has not left yet counts.
    pub(super) fn admits(&self, vm: usize, from: Option<usize>, to: usize) -> bool {
        let capacity = row(&self.case.hosts[to].capacity);
        let need = row(&self.case.need(vm));
        let room = (0..4).all(|at| {
            need[at] == 0 || self.need[to][at].checked_add(need[at]).is_some_and(|all| all <= capacity[at])
        });
        let table = &self.case.table;
        let from = from.map(|host| host as u32);
        let too_many = |rule: u32| {
            table.entries[rule as usize].must && self.tally.arrives(table, rule, from, to as u32, 1) > 0
        };
        room && self.brought.has_room(self.case, &[vm as u32], to)
            && !table.of_vm[vm].iter().any(|rule| too_many(*rule))
    }

    pub(super) fn arrive(&mut self, vm: usize, to: usize) {
        let need = row(&self.case.need(vm));
        (0..4).for_each(|at| self.need[to][at] = self.need[to][at].saturating_add(need[at]));
        self.brought.add(self.case, &[vm as u32], to);
        for rule in &self.case.table.of_vm[vm] {
            self.tally.add(&self.case.table, *rule, to as u32, 1);
        }
    }

    pub(super) fn leave(&mut self, vm: usize, from: usize) {
        let need = row(&self.case.need(vm));
        (0..4).for_each(|at| self.need[from][at] = self.need[from][at].saturating_sub(need[at]));
        self.brought.remove(self.case, &[vm as u32], from);
        for rule in &self.case.table.of_vm[vm] {
            self.tally.remove(&self.case.table, *rule, from as u32, 1);
        }
    }
}
