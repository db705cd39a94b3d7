//! What moves as one, and where it may run.

use std::collections::{BTreeMap, BTreeSet};

use godwit_types::Name;

use crate::planner::case::Case;
use crate::planner::objective::{Objective, row};
use crate::rules::compatible;
use crate::rules::table::Says;
use crate::sequence::cost;
use crate::snapshot::{Disk, Needs, Vm, Writes};

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
    pub(super) rules: Vec<(u32, u32)>,
    pub(crate) home: Option<u32>,
    /// What leaving home costs.
    pub(crate) moved: i64,
    /// Whether it may have to bring disks along.
    pub(crate) has_disks: bool,
    /// The row of hosts that it may run on.
    pub(super) class: u32,
}

/// Units, the unit of each VM, and the rows of hosts that units may run on.
pub(super) fn units(case: &Case<'_>, objective: &Objective) -> (Vec<Unit>, Vec<u32>, Vec<Vec<bool>>) {
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

fn unit<'a>(case: &Case<'a>, objective: &Objective, vms: Vec<u32>, classes: &mut Classes<'a>) -> Unit {
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
        let goes = |vm: &u32| {
            let Vm { writes, disks, .. } = case.vms[*vm as usize];
            // Wherever it goes, as if it had to bring them.
            let along = if case.takes_disks(*vm as usize) { disks.as_slice() } else { &[] };
            let used = along.iter().fold(writes.used, |sum, disk| sum.saturating_add(disk.bytes));
            cost::of(&Writes { used, ..*writes }, room.bytes_per_s).duration_ms
        };
        let each = vms.iter().map(goes);
        each.map(|duration_ms| objective.moved(duration_ms)).sum()
    });
    Unit {
        need: sum(&|vm| row(&case.need(vm))),
        load: sum(&|vm| row(&case.entitled[vm])),
        class: classes.of(case, &vms),
        has_disks: vms.iter().any(|vm| !case.vms[*vm as usize].disks.is_empty()),
        rules,
        home,
        moved,
        vms,
    }
}

/// Hosts that units may run on: a row for all VMs that need the same and are named by the same rules about hosts.
#[derive(Default)]
struct Classes<'a> {
    rows: Vec<Vec<bool>>,
    known: BTreeMap<Vec<Wants<'a>>, u32>,
}

/// What decides which hosts are right for a VM.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Wants<'a> {
    cpu_classes: Option<&'a BTreeSet<Name>>,
    networks: &'a BTreeSet<Name>,
    datastores: &'a BTreeSet<Name>,
    /// That may go along.
    disks: &'a [Disk],
    rules: Vec<u32>,
}

impl<'a> Classes<'a> {
    fn of(&mut self, case: &Case<'a>, vms: &[u32]) -> u32 {
        let wants = |vm: &u32| {
            let Needs { cpu_classes, networks, datastores } = &case.vms[*vm as usize].needs;
            let binds = |rule: &u32| {
                let entry = &case.table.entries[*rule as usize];
                entry.must && matches!(entry.says, Says::Only(_))
            };
            let rules = case.table.of_vm[*vm as usize].iter().copied().filter(binds).collect();
            let takes = case.takes_disks(*vm as usize);
            let disks = if takes { case.vms[*vm as usize].disks.as_slice() } else { &[] };
            Wants { cpu_classes: cpu_classes.as_ref(), networks, datastores, disks, rules }
        };
        let key: Vec<Wants<'a>> = vms.iter().map(wants).collect();
        if let Some(row) = self.known.get(&key) {
            return *row;
        }
        let allows = |rule: &u32, host: usize| match &case.table.entries[*rule as usize].says {
            Says::Only(allowed) => allowed[host],
            _ => true,
        };
        let may = |host: usize| {
            vms.iter()
                .map(|vm| *vm as usize)
                .all(|vm| compatible::fits(case.hosts[host], case.vms[vm], case.takes_disks(vm)))
                && key.iter().flat_map(|wants| &wants.rules).all(|rule| allows(rule, host))
        };
        self.rows.push((0..case.hosts.len()).map(may).collect());
        let row = self.rows.len() as u32 - 1;
        self.known.insert(key, row);
        row
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
