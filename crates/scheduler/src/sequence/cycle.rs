//! What to do where every move waits for another.

use super::run::Stuck;
use super::{Going, cost};
use crate::planner::Reason;
use crate::planner::case::Case;
use crate::rules::compatible;
use crate::rules::table::Says;

/// Sends one of those that wait by way of a third host, so that another can begin: the one that moves fastest. Whether there is any.
pub(super) fn detour(case: &Case<'_>, going: &mut Vec<Going>, stuck: &Stuck<'_>) -> bool {
    let mut candidates: Vec<usize> = stuck
        .pending
        .iter()
        .copied()
        .filter(|at| {
            let one = &going[*at];
            one.from.is_some() && going.iter().filter(|other| other.vm == one.vm).count() == 1
        })
        .collect();
    candidates.sort_by_key(|at| {
        let one = &going[*at];
        let bandwidth = one.from.map_or(1, |from| case.hosts[from].migration.bytes_per_s);
        (cost::of(&case.writes(one.vm, one.to), bandwidth).duration_ms, *at)
    });
    for at in candidates {
        let Some((third, other)) = third(case, going, stuck, at) else { continue };
        let vm = case.vms[going[other].vm].name.clone();
        let first = Going { to: third, reason: Reason::Room { vm }, ..going[at].clone() };
        going[at].from = Some(third);
        going.insert(at, first);
        return true;
    }
    false
}

/// A host that takes the VM for a while, and the place of somebody who can begin once it is there.
fn third(case: &Case<'_>, going: &[Going], stuck: &Stuck<'_>, at: usize) -> Option<(usize, usize)> {
    let Going { vm, from: Some(from), to, .. } = going[at] else { return None };
    let mut left = stuck.ground.clone();
    left.leave(vm, from);
    let waits = |other: &&usize| {
        let other = &going[**other];
        other.vm != vm && left.admits(other.vm, other.from, other.to)
    };
    let other = *stuck.pending.iter().find(waits)?;
    let may = |host: &usize| {
        *host != from
            && *host != to
            && case.gets(*host)
            // Disks do not make a detour.
            && compatible::fits(case.hosts[*host], case.vms[vm], false)
            && !forbidden(case, vm, *host)
            && stuck.ground.admits(vm, Some(from), *host)
    };
    Some(((0..case.hosts.len()).find(may)?, other))
}

/// Whether a must-rule keeps the VM from the host, or from leaving those that it must be together with.
fn forbidden(case: &Case<'_>, vm: usize, host: usize) -> bool {
    case.table.of_vm[vm]
        .iter()
        .map(|rule| &case.table.entries[*rule as usize])
        .filter(|entry| entry.must)
        .any(|entry| match &entry.says {
            Says::Only(allowed) => !allowed[host],
            Says::Together => entry.vms.len() > 1,
            Says::MostPerHost(_) | Says::MostPerDomain(_) => false,
        })
}
