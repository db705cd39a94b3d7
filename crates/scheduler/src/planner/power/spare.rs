//! Hosts whose VMs others can take.

use super::SPARE;
use super::band::{Band, FILL, fullest, used};
use super::measure::{Required, balance_of};
use crate::planner::work::Work;
use crate::planner::{KeptOn, Reason};

/// Most places that one plan looks at: well below a second.
const LOOKS_MAX: u64 = 4_000_000;
/// Where that is less than there are, each so many milliseconds begin with other hosts, so many further on.
const TURN_MS: u64 = 60_000;
const TURN_HOSTS: u64 = 61;

/// Hosts that are empty once the plan is carried out, and why the others are kept on.
#[derive(Default)]
pub(in crate::planner) struct Spared {
    pub(in crate::planner) hosts: Vec<usize>,
    pub(in crate::planner) kept_on: Vec<KeptOn>,
}

impl Spared {
    /// All hosts are kept on, for the same reason.
    pub(super) fn none(work: &Work<'_>, why: &str) -> Self {
        let hosts = (0..work.case.hosts.len()).filter(|host| work.case.gets(*host));
        let kept = hosts.map(|host| KeptOn { host: work.case.hosts[host].name.clone(), why: why.into() });
        Self { hosts: Vec::new(), kept_on: kept.collect() }
    }
}

/// Empties hosts one after the other, the least used first, as long as the others can take it.
pub(super) fn spare(work: &mut Work<'_>) -> Spared {
    let case = work.case;
    let (hosts, required) = (candidates(work), Required::of(case));
    let mut search = Search {
        band: Band::of(&case.policy.power),
        wanted: work.model.bursts.as_ref().map_or(0.0, |bursts| bursts.of_all(FILL)),
        left: hosts.len(),
        has: hosts.iter().map(|host| case.hosts[*host].capacity.cpu as f64).sum(),
        lacking: required.lacking(case, &[]),
        required,
        closed: Vec::new(),
        looks: 0,
        moved: work.why.len(),
        work,
    };
    let mut kept_on = Vec::new();
    for host in hosts {
        if let Some(why) = search.without(host) {
            kept_on.push(KeptOn { host: case.hosts[host].name.clone(), why });
        }
    }
    kept_on.sort_by(|a, b| a.host.cmp(&b.host));
    Spared { hosts: search.closed, kept_on }
}

/// Hosts that are on, the least used first.
fn candidates(work: &Work<'_>) -> Vec<usize> {
    let case = work.case;
    let on = (0..case.hosts.len()).filter(|host| case.gets(*host));
    let mut hosts: Vec<(f64, usize)> = on.map(|host| (used(&work.model, host, FILL).0, host)).collect();
    hosts.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    if (case.vms.len() * hosts.len()) as u64 > LOOKS_MAX {
        let first = case.snapshot.at_unix_ms / TURN_MS * TURN_HOSTS % hosts.len() as u64;
        hosts.rotate_left(first as usize);
    }
    hosts.into_iter().map(|(_, host)| host).collect()
}

struct Search<'w, 'a> {
    work: &'w mut Work<'a>,
    band: Band,
    /// What all VMs together want of CPU, with a margin; the hosts that are left for it, and what they have.
    wanted: f64,
    left: usize,
    has: f64,
    required: Required,
    /// What of it is lacking although all hosts that are on stay on.
    lacking: u64,
    /// Hosts that were emptied.
    closed: Vec<usize>,
    looks: u64,
    moved: usize,
}

impl Search<'_, '_> {
    /// Empties a host, or says why it is kept on.
    fn without(&mut self, host: usize) -> Option<String> {
        if let Some(why) = self.must_stay(host) {
            return Some(why);
        }
        let guests = self.largest_first(host);
        self.closed.push(host);
        let why = self.empty(host, &guests).or_else(|| self.speaks_against(host, &guests));
        if why.is_some() {
            self.closed.pop();
            guests.iter().rev().for_each(|unit| {
                if self.work.model.place[*unit] != Some(host as u32) {
                    self.work.model.go(*unit, host);
                }
            });
            return why;
        }
        self.left -= 1;
        self.has -= self.work.case.hosts[host].capacity.cpu as f64;
        self.moved += guests.len();
        for unit in guests {
            let reason = Reason::Power { host: self.work.case.hosts[host].name.clone() };
            self.work.note(unit, reason, SPARE);
        }
        None
    }

    /// What keeps a host on, wherever its VMs could go.
    fn must_stay(&self, host: usize) -> Option<String> {
        let (case, model) = (self.work.case, &self.work.model);
        let power = &case.policy.power;
        let known = case.hosts[host];
        let on_ms = case.snapshot.at_unix_ms.saturating_sub(known.since_unix_ms);
        let most = case.vms.len() as u64 * u64::from(case.policy.moved_max_permille) / 1000;
        let guests = model.guests(host);
        let moved = (self.moved + guests.len()) as u64;
        if known.power.is_none() {
            Some("it cannot be switched off and on by itself".into())
        } else if on_ms < power.uptime_min_ms {
            Some(format!(
                "it stays on for {} s more after it was woken",
                (power.uptime_min_ms - on_ms) / 1000
            ))
        } else if self.left <= power.hosts_on_min.max(1) as usize {
            Some("it is one of the hosts that always stay on".into())
        } else if self.wanted > (self.has - known.capacity.cpu as f64) * self.band.target {
            Some("the others would be used for more than the target".into())
        } else if self.moved > 0 && !guests.is_empty() && moved > most {
            Some("the plan moves enough VMs already".into())
        } else if self.looks > LOOKS_MAX {
            Some("others were tried first".into())
        } else {
            guests.iter().find_map(|unit| self.holds(*unit as usize))
        }
    }

    /// Why a VM keeps its host on.
    fn holds(&self, unit: usize) -> Option<String> {
        let name = self.work.name(unit);
        if self.work.why.contains_key(&unit) {
            return Some(format!("VM '{name}' comes to it"));
        }
        self.work.rests(unit).map(|rests| format!("VM '{name}' stays: {rests}"))
    }

    fn largest_first(&self, host: usize) -> Vec<usize> {
        let Some(bursts) = &self.work.model.bursts else { return Vec::new() };
        let guests = self.work.model.guests(host).iter().map(|unit| *unit as usize);
        let mut guests: Vec<(f64, usize)> = guests.map(|unit| (bursts.of_unit(unit, FILL), unit)).collect();
        guests.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        guests.into_iter().map(|(_, unit)| unit).collect()
    }

    /// Moves all guests to other hosts; why that is not possible, if it is not.
    fn empty(&mut self, host: usize, guests: &[usize]) -> Option<String> {
        for unit in guests {
            self.looks += self.work.case.hosts.len() as u64;
            // Hosts that were emptied are in use no more.
            let Some(to) = fullest(&self.work.model, *unit, self.band.top) else {
                let name = self.work.name(*unit);
                return Some(format!(
                    "no other host that is in use takes VM '{name}' and stays within the band"
                ));
            };
            self.work.model.go(*unit, to);
        }
        debug_assert!(self.work.model.guests(host).is_empty());
        None
    }

    /// What speaks against switching off a host that would be empty.
    fn speaks_against(&self, host: usize, guests: &[usize]) -> Option<String> {
        if self.required.lacking(self.work.case, &self.closed) > self.lacking {
            return Some("what is reserved, or the loss of hosts that is prepared for, needs it".into());
        }
        let is_worth_it = balance_of(self.work, host, guests) > 0;
        (!is_worth_it).then(|| "what it would save is not worth the moves".into())
    }
}
