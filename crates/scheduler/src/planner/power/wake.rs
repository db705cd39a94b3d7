//! Hosts that are needed.

use std::collections::BTreeSet;

use godwit_types::VmName;

use super::measure::Required;
use super::{RELIEF, is_managed, relief};
use crate::planner::case::Case;
use crate::planner::work::Work;
use crate::planner::{Goal, Reason, arrange, mandatory, standing};
use crate::policy::Policy;
use crate::snapshot::{HostState, Snapshot};

/// Most hosts that one plan tries for what must be, and wakes for the sake of load; the best come first, and the next plan goes on.
const TRIED_MAX: usize = 4;
const WOKEN_MAX: usize = 64;
/// A plan of a try looks at so many moves for each VM.
const TRY_PROPOSALS: u32 = 100;

/// A host that is to be woken, why, how much that matters, and what it is worth.
pub(in crate::planner) struct Wake {
    pub(in crate::planner) host: usize,
    pub(in crate::planner) reason: Reason,
    pub(in crate::planner) priority: u8,
    /// By how much the objective becomes less.
    pub(in crate::planner) gain: i64,
}

/// The hosts to wake, if any is needed. Those that wake already count as if they were there.
pub(in crate::planner) fn wake(work: &Work<'_>, goal: &Goal, above: &[usize]) -> Vec<Wake> {
    let case = work.case;
    if !is_managed(case.policy) {
        return Vec::new();
    }
    let lacks = Lacks::of(work);
    if !lacks.is_some() && above.is_empty() {
        return Vec::new();
    }
    let waking: Vec<usize> =
        (0..case.hosts.len()).filter(|host| case.hosts[*host].state == HostState::Waking).collect();
    let mut off = candidates(case);
    let mut woken = Vec::new();
    if lacks.is_some() {
        woken = for_what_must_be(work, lacks, goal, &waking, &off);
        off.retain(|host| !woken.iter().any(|wake| wake.host == *host));
    }
    if !above.is_empty() && matches!(goal, Goal::Balance) && case.policy.threshold >= RELIEF {
        let there: Vec<usize> = waking.iter().copied().chain(woken.iter().map(|wake| wake.host)).collect();
        woken.extend(for_load(work, goal, &there, &off));
    }
    woken
}

/// Hosts that have what else is lacking: room for VMs that find none, what is reserved, what a loss would need.
fn for_what_must_be(
    work: &Work<'_>,
    lacks: Lacks,
    goal: &Goal,
    waking: &[usize],
    off: &[usize],
) -> Vec<Wake> {
    let mut woken: Vec<Wake> = Vec::new();
    let mut lacks = if waking.is_empty() { lacks } else { Lacks::with(work, goal, waking).0 };
    while lacks.is_some() && woken.len() < TRIED_MAX {
        let on: Vec<usize> = waking.iter().copied().chain(woken.iter().map(|wake| wake.host)).collect();
        let others = off.iter().filter(|host| !on.contains(host)).take(TRIED_MAX);
        let found = others.copied().find_map(|host| {
            let (then, score) = Lacks::with(work, goal, &[on.as_slice(), &[host]].concat());
            let power = || Reason::Power { host: work.case.hosts[host].name.clone() };
            let reason = lacks.helped_by(&then, power)?;
            let gain = work.model.score() - score;
            Some((then, Wake { host, reason, priority: mandatory::MANDATORY, gain }))
        });
        let Some((then, wake)) = found else { break };
        woken.push(wake);
        lacks = then;
    }
    woken
}

/// Hosts that take what those cannot that are above the band.
fn for_load(work: &Work<'_>, goal: &Goal, there: &[usize], off: &[usize]) -> Vec<Wake> {
    let case = work.case;
    let fresh: Vec<usize> = there.iter().copied().chain(off.iter().copied().take(WOKEN_MAX)).collect();
    let snapshot = with_hosts(case, &fresh);
    let policy = trial(case.policy);
    let tried = Case::new(&snapshot, &policy, goal);
    let mut then = Work::new(&tried);
    relief::relieve(&mut then, &fresh);
    let gain = work.model.score() - then.model.score();
    let needed = off.iter().filter(|host| !then.model.guests(**host).is_empty());
    needed
        .map(|host| Wake {
            host: *host,
            reason: Reason::Power { host: case.hosts[*host].name.clone() },
            priority: RELIEF,
            gain,
        })
        .collect()
}

/// What a cluster lacks that must be.
struct Lacks {
    vms: BTreeSet<VmName>,
    /// In millionths.
    lacking: u64,
}

impl Lacks {
    fn of(work: &Work<'_>) -> Self {
        Self {
            vms: work.unmoved.iter().map(|why| why.vm.clone()).collect(),
            lacking: Required::of(work.case).lacking(work.case, &[]),
        }
    }

    /// With some hosts that are off or wake, and the objective then.
    fn with(work: &Work<'_>, goal: &Goal, hosts: &[usize]) -> (Self, i64) {
        let snapshot = with_hosts(work.case, hosts);
        let policy = trial(work.case.policy);
        let tried = Case::new(&snapshot, &policy, goal);
        let mut then = Work::new(&tried);
        arrange(&mut then, goal, 0);
        (Self::of(&then), then.model.score())
    }

    fn is_some(&self) -> bool {
        !self.vms.is_empty() || self.lacking > 0
    }

    fn helped_by(&self, then: &Self, power: impl Fn() -> Reason) -> Option<Reason> {
        let helped = self.vms.difference(&then.vms).next();
        let room = helped.map(|vm| Reason::Room { vm: vm.clone() });
        room.or_else(|| (then.lacking < self.lacking).then(power))
    }
}

/// Hosts that are switched off: those that draw least for what they have first, of equals those that have been off longest.
fn candidates(case: &Case<'_>) -> Vec<usize> {
    let off = (0..case.hosts.len()).filter(|host| case.hosts[*host].state == HostState::Standby);
    let mut off: Vec<usize> = off.filter(|host| case.hosts[*host].power.is_some()).collect();
    off.sort_by_key(|host| {
        let power = case.hosts[*host].power.as_ref();
        let full = power.map_or(0, |power| standing::drawn(power, 1, 1));
        (
            u128::from(full) * 1_000_000 / u128::from(case.hosts[*host].capacity.cpu.max(1)),
            case.hosts[*host].since_unix_ms,
            *host,
        )
    });
    off
}

/// The snapshot as if these hosts were on.
fn with_hosts(case: &Case<'_>, hosts: &[usize]) -> Snapshot {
    let mut snapshot = case.snapshot.clone();
    let names: BTreeSet<_> = hosts.iter().map(|host| &case.hosts[*host].name).collect();
    for host in snapshot.hosts.iter_mut().filter(|host| names.contains(&host.name)) {
        host.state = HostState::On;
        host.seen_unix_ms = snapshot.at_unix_ms;
    }
    snapshot
}

/// A policy under which everything that helps is done, looked for briefly.
fn trial(policy: &Policy) -> Policy {
    Policy {
        threshold: 5,
        moved_max_permille: 1000,
        proposals_per_vm: policy.proposals_per_vm.min(TRY_PROPOSALS),
        ..policy.clone()
    }
}
