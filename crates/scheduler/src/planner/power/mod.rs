//! Whether hosts are woken, and whether they can be spared, after VMware's DPM.
//!
//! A host is to be used between `target - band` and `target + band` of its CPU and its memory. *high* is how far hosts are above, summed
//! up, and *low* how far they are below. Each candidate is tried: the cluster is planned as if it were on, or were to be emptied.
//!
//! ```text
//!   wake      a VM has no host and would have one; what is reserved, or what is prepared for, needs the host; or high becomes less
//!   standby   everybody finds a place, low becomes less and high no more, even by the most that VMs have wanted within 40 minutes;
//!             reservations hold and as many losses are prepared for as before; and what is saved while demand stays
//!             as it is, is worth `benefit_ratio` times the work of moving everybody away and back
//! ```
//!
//! A host is woken at once, and spared only if nothing more urgent is to be done. Whatever was woken gets its VMs once it is there.

mod measure;

use self::measure::{Distance, balance_of, distance, long, shortage, used};
use super::case::Case;
use super::model::Model;
use super::work::Work;
use super::{Goal, Reason, mandatory, standing};
use crate::policy::Policy;
use crate::snapshot::{HostState, Snapshot};

/// Most hosts that one plan tries to wake, and to spare; the best come first, and the next plan goes on.
const WOKEN_TRIED_MAX: usize = 4;
const SPARED_TRIED_MAX: usize = 8;
/// In a large cluster each so many milliseconds others are tried.
const TURN_MS: u64 = 60_000;
/// The priority of waking a host since others are used too much, and of sparing one.
const RELIEF: u8 = 2;
pub(super) const SPARE: u8 = 3;
/// A plan of a try looks at so many moves for each VM.
const TRY_PROPOSALS: u32 = 100;

/// A host that is to be woken, why, how much that matters, and what it is worth.
pub(super) struct Wake {
    pub(super) host: usize,
    pub(super) reason: Reason,
    pub(super) priority: u8,
    /// By how much the objective becomes less.
    pub(super) gain: i64,
}

/// The host to wake, if one is needed.
pub(super) fn wake(work: &Work<'_>, goal: &Goal) -> Option<Wake> {
    let case = work.case;
    let waking = case.hosts.iter().any(|host| host.state == HostState::Waking);
    if !is_managed(case.policy) || waking {
        return None;
    }
    let needs = !work.unmoved.is_empty();
    let short = shortage(case);
    let distance = distance(&work.model);
    if !needs && short == 0 && distance.high == 0 {
        return None;
    }
    candidates_to_wake(case).into_iter().find_map(|host| {
        let mut snapshot = case.snapshot.clone();
        wake_in(&mut snapshot, case, host);
        let policy = trial(case.policy);
        let tried = Case::new(&snapshot, &policy, goal);
        let mut then = Work::new(&tried);
        super::arrange(&mut then, goal, 0);
        let wake = |reason, priority| {
            let gain = work.model.score() - then.model.score();
            Some(Wake { host, reason, priority, gain })
        };
        if let Some(helped) =
            work.unmoved.iter().find(|why| !then.unmoved.iter().any(|then| then.vm == why.vm))
        {
            return wake(Reason::Room { vm: helped.vm.clone() }, mandatory::MANDATORY);
        }
        let reason = Reason::Power { host: case.hosts[host].name.clone() };
        if shortage(&tried) < short {
            return wake(reason, mandatory::MANDATORY);
        }
        let lower = measure::distance(&then.model).high < distance.high;
        if matches!(goal, Goal::Balance) && lower && case.policy.threshold >= RELIEF {
            wake(reason, RELIEF)
        } else {
            None
        }
    })
}

/// Hosts that can be spared together, as the cluster is; none if there is anything more urgent to do. What matters no more can wait: in
/// a large cluster there is always something that could be a little more even.
pub(super) fn spare(work: &Work<'_>) -> Vec<usize> {
    let case = work.case;
    let wakes = case.hosts.iter().any(|host| host.state == HostState::Waking);
    if !is_managed(case.policy)
        || case.policy.threshold < SPARE
        || wakes
        || work.why.values().any(|(_, priority)| *priority < SPARE)
        || !work.unmoved.is_empty()
    {
        return Vec::new();
    }
    let demanding = long(case.snapshot);
    let mut spared: Vec<usize> = Vec::new();
    let Some(mut best) = without(case, &demanding, &spared) else { return spared };
    for host in candidates_to_spare(&Work::new(case)) {
        let on = (0..case.hosts.len()).filter(|host| case.gets(*host) && !spared.contains(host)).count();
        if on <= case.policy.power.hosts_on_min.max(1) as usize {
            break;
        }
        let hosts: Vec<usize> = spared.iter().copied().chain([host]).collect();
        if let Some(tried) = without(case, &demanding, &hosts).filter(|tried| tried.is_better_than(&best)) {
            (spared, best) = (hosts, tried);
        }
    }
    spared
}

/// How the cluster is without some hosts.
struct Without {
    /// By the most that VMs have wanted lately.
    distance: Distance,
    shortage: u64,
    /// What is saved, less what must be worth it.
    saved: i128,
}

impl Without {
    fn is_better_than(&self, other: &Self) -> bool {
        let Distance { high, low } = other.distance;
        let used_better = self.distance.high <= high && self.distance.low < low;
        used_better && self.shortage <= other.shortage && self.saved > other.saved
    }
}

/// Everybody leaves the hosts; none if not everybody can.
fn without(case: &Case<'_>, demanding: &Snapshot, hosts: &[usize]) -> Option<Without> {
    let goal = emptied(case, hosts);
    let tried = Case::new(case.snapshot, case.policy, &goal);
    let mut then = Work::new(&tried);
    mandatory::empty(&mut then, hosts, |host| Reason::Power { host }, false);
    if !then.unmoved.is_empty() {
        return None;
    }
    let demanding = Case::new(demanding, case.policy, &goal);
    let mut model = Model::new(&demanding);
    // The same rules and homes make the same units.
    for unit in 0..then.model.units.len() {
        if then.model.place[unit] != model.place[unit]
            && let Some(to) = then.model.place[unit]
        {
            model.go(unit, to as usize);
        }
    }
    Some(Without { distance: distance(&model), shortage: shortage(&tried), saved: balance_of(&then, hosts) })
}

/// The goal that empties hosts.
pub(super) fn emptied(case: &Case<'_>, hosts: &[usize]) -> Goal {
    Goal::Evacuate { hosts: hosts.iter().map(|host| case.hosts[*host].name.clone()).collect() }
}

fn is_managed(policy: &Policy) -> bool {
    policy.power.enabled && policy.findings().is_empty()
}

/// Hosts that are switched off, those that draw least for what they have first.
fn candidates_to_wake(case: &Case<'_>) -> Vec<usize> {
    let off = (0..case.hosts.len()).filter(|host| case.hosts[*host].state == HostState::Standby);
    let mut off: Vec<usize> = off.filter(|host| case.hosts[*host].power.is_some()).collect();
    off.sort_by_key(|host| {
        let power = case.hosts[*host].power.as_ref();
        let full = power.map_or(0, |power| standing::drawn(power, 1, 1));
        (u128::from(full) * 1_000_000 / u128::from(case.hosts[*host].capacity.cpu.max(1)), *host)
    });
    off.truncate(WOKEN_TRIED_MAX);
    off
}

/// Hosts that are below the band and have been on for long enough, those with the least to move first.
fn candidates_to_spare(work: &Work<'_>) -> Vec<usize> {
    let case = work.case;
    let power = &case.policy.power;
    let may = |host: &usize| {
        let known = case.hosts[*host];
        case.gets(*host)
            && known.power.is_some()
            && work.model.guests(*host).iter().all(|unit| work.rests(*unit as usize).is_none())
            && case.snapshot.at_unix_ms.saturating_sub(known.since_unix_ms) >= power.uptime_min_ms
            && used(&work.model, *host).into_iter().max().unwrap_or(0)
                < 10 * u64::from(power.target_percent - power.band_percent)
    };
    let mut hosts: Vec<usize> = (0..case.hosts.len()).filter(may).collect();
    hosts.sort_by_key(|host| (work.model.need[*host][1], *host));
    if hosts.len() > SPARED_TRIED_MAX {
        // Those that cannot be spared now would be tried again and again: each minute begins with others.
        let turns = case.snapshot.at_unix_ms / TURN_MS % hosts.len() as u64;
        let first = turns as usize * SPARED_TRIED_MAX % hosts.len();
        hosts.rotate_left(first);
    }
    hosts.truncate(SPARED_TRIED_MAX);
    hosts
}

fn wake_in(snapshot: &mut Snapshot, case: &Case<'_>, host: usize) {
    let name = &case.hosts[host].name;
    for host in snapshot.hosts.iter_mut().filter(|host| host.name == *name) {
        host.state = HostState::On;
        host.seen_unix_ms = snapshot.at_unix_ms;
    }
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
