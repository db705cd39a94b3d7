//! What a plan makes less.
//!
//! ```text
//!   J  =  sum over resources r   w_r * (mean over hosts of phi(u_hr), hosts weighed by what they have of r)
//!      +  W * (mean over hosts of phi(mean over resources of u_hr))
//!      +  soft rules: S for each VM too many or in the wrong place, for each host too many
//!      +  moves: M for each second that a move takes
//! ```
//!
//! * `u_hr` is what the VMs on host h are entitled to of resource r, as a part of what h has: DRS's normalised entitlement (Gulati et al.,
//!   "VMware Distributed Resource Management", VMware Technical Journal 1(1), 2012). Entitlements follow from the larger of demand now
//!   and the demand expected, so limits, shares and reservations are in it, and where nothing is scarce it is plain demand.
//! * `phi(u)` is u²/2, which makes even use best, and above a knee of 0.75 also the growth of queues, A * u / (1 - u), from where it
//!   begins to bend; above 0.95 it goes on as a straight line. A VM on a host that is nearly full waits (Kleinrock, "Queueing Systems" I).
//! * `w_r` grows with how scarce a resource is: 1/4 and the part of it that is in use, as DRS weighs its imbalances.
//! * The second line makes hosts even in all resources together. It separates a VM that fills processors from one that fills
//!   memory, which no single resource asks for, and so leaves room for bursts on each host.
//! * A mean over hosts, so that a larger cluster has no larger J; what belongs to one host, S and M, is divided by their number.
//! * A move is worth it if J is less for [`stable_ms`](crate::policy::Policy::stable_ms) by more than the move costs while it lasts: M is [`MOVE_COST`] / `stable_ms`.
//!
//! Where power is managed hosts need not be even: a host's part is then, for each resource, what is above the band: x + x².
//!
//! Sums are kept as whole numbers of 2^-40, so they do not depend on the order in which a plan was found.

use super::case::Case;
use super::power::Band;
use crate::resource::{PerResource, Resource};

/// Above this part of a host queues begin to matter.
const KNEE: f64 = 0.75;
/// Above this they grow in a straight line: demand is not known so well.
const LINE: f64 = 0.95;
/// How much queues weigh.
const QUEUES: f64 = 0.02;
/// What counts as the most that a host can be used, so that sums stay in range.
const PART_MAX: f64 = 100.0;
/// The weight of all resources together.
const TOGETHER: f64 = 0.25;
/// A soft rule broken once weighs like a host that is used by three quarters instead of half.
const SOFT: f64 = 0.15;
/// A host's term that one move makes worse while it lasts: memory is held twice, and both ends work for it.
pub(crate) const MOVE_COST: f64 = 0.25;
/// A move takes at least so long: tasks, checks, the switchover, and the guest's caches, in seconds.
const MOVE_LEAST_S: f64 = 4.0;

/// A whole, as the objective is counted.
const WHOLE: f64 = (1u64 << 40) as f64;

/// The objective's weights for a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Objective {
    hosts: f64,
    /// What a part of each host is multiplied with; 0 for hosts that do not count.
    rows: Vec<[Weight; 4]>,
    /// The weight of each resource in the mean of all.
    together: [f64; 4],
    counts: Vec<bool>,
    /// Hosts that are to be even: those that get VMs.
    gets: Vec<bool>,
    stable_s: f64,
    /// Where power is managed, up to which part hosts are filled.
    band: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    /// 1 / what the host has.
    inverse: f64,
    /// `w_r`, and the host's part of the resource.
    weight: f64,
}

impl Objective {
    pub(crate) fn new(case: &Case<'_>) -> Self {
        let counts: Vec<bool> = (0..case.hosts.len()).map(|host| case.gives(host)).collect();
        let counted = || (0..case.hosts.len()).filter(|host| counts[*host]);
        let capacity = Resource::ALL.map(|resource| {
            let all = counted().map(|host| case.hosts[host].capacity[resource] as f64);
            if case.is_told(resource) { all.sum::<f64>() } else { 0.0 }
        });
        let wanted = Resource::ALL.map(|resource| {
            let there = (0..case.vms.len()).filter(|vm| case.home[*vm].is_none_or(|home| counts[home]));
            there.map(|vm| case.entitled[vm][resource] as f64).sum::<f64>()
        });
        let weight = |at: usize| {
            if capacity[at] == 0.0 { 0.0 } else { 0.25 + (wanted[at] / capacity[at]).min(1.0) }
        };
        let weights: [f64; 4] = std::array::from_fn(weight);
        let all: f64 = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let row = |host: usize| -> [Weight; 4] {
            std::array::from_fn(|at| {
                let has = case.hosts[host].capacity[Resource::ALL[at]] as f64;
                if !counts[host] || has == 0.0 || capacity[at] == 0.0 {
                    return Weight::default();
                }
                Weight { inverse: 1.0 / has, weight: weights[at] * has / capacity[at] }
            })
        };
        Self {
            hosts: (counted().count() as f64).max(1.0),
            rows: (0..case.hosts.len()).map(row).collect(),
            together: weights.map(|weight| weight / all),
            counts,
            gets: (0..case.hosts.len()).map(|host| case.gets(host)).collect(),
            band: case.saves.then(|| Band::of(&case.policy.power).top),
            stable_s: (case.policy.stable_ms as f64 / 1000.0).max(1.0),
        }
    }

    /// One host's part, if so much is used of it.
    pub(crate) fn host(&self, host: usize, load: &[u64; 4]) -> i64 {
        if !self.counts[host] {
            return 0;
        }
        if let Some(band) = self.band {
            let parts = self.rows[host].iter().zip(load);
            let over =
                parts.map(|(row, load)| row.weight * over((*load as f64 * row.inverse).min(PART_MAX) - band));
            return whole(over.sum());
        }
        let (mut sum, mut mean) = (0.0, 0.0);
        for (at, Weight { inverse, weight }) in self.rows[host].iter().enumerate() {
            let part = (load[at] as f64 * inverse).min(PART_MAX);
            sum += weight * phi(part);
            mean += self.together[at] * part;
        }
        whole(sum + TOGETHER * phi(mean) / self.hosts)
    }

    /// A soft rule that is broken so far.
    pub(crate) fn soft(&self, broken: i64) -> i64 {
        broken.saturating_mul(whole(SOFT / self.hosts))
    }

    /// A move that takes so long.
    pub(crate) fn moved(&self, duration_ms: u64) -> i64 {
        let seconds = (duration_ms as f64 / 1000.0).min(1e6) + MOVE_LEAST_S;
        whole(MOVE_COST * seconds / self.stable_s / self.hosts)
    }

    /// What part of a host's resource that is; 0 where the host has none or does not count.
    pub(crate) fn part(&self, host: usize, at: usize, load: u64) -> f64 {
        load as f64 * self.rows[host][at].inverse
    }

    /// By how much hosts differ in one resource: the standard deviation of the parts that are used.
    pub(crate) fn deviation(&self, at: usize, loads: &[[u64; 4]]) -> f64 {
        let parts: Vec<f64> = (0..loads.len())
            .filter(|host| self.gets[*host] && self.rows[*host][at].inverse > 0.0)
            .map(|host| self.part(host, at, loads[host][at]).min(PART_MAX))
            .collect();
        let count = (parts.len() as f64).max(1.0);
        let mean = parts.iter().sum::<f64>() / count;
        (parts.iter().map(|part| (part - mean) * (part - mean)).sum::<f64>() / count).sqrt()
    }

    /// The deviation of the resource that is used least evenly.
    pub(crate) fn imbalance(&self, loads: &[[u64; 4]]) -> f64 {
        (0..4).map(|at| self.deviation(at, loads)).fold(0.0, f64::max)
    }
}

/// The objective as a number.
pub(crate) fn score(counted: i64) -> f64 {
    counted as f64 / WHOLE
}

/// The objective as documents have it: with twelve decimal places, so that a reader that is not exact to the last bit reads the same.
pub(crate) fn shown(counted: i64) -> f64 {
    (score(counted) * 1e12).round() / 1e12
}

fn whole(part: f64) -> i64 {
    (part * WHOLE).round() as i64
}

/// See the module. Its slope has no step.
fn phi(part: f64) -> f64 {
    let square = part * part / 2.0;
    if part <= KNEE {
        return square;
    }
    let queue = |u: f64| u / (1.0 - u);
    let slope = |u: f64| 1.0 / ((1.0 - u) * (1.0 - u));
    let bend = part.min(LINE);
    let bent = queue(bend) - queue(KNEE) - (bend - KNEE) * slope(KNEE);
    let line = (part - bend) * (slope(LINE) - slope(KNEE));
    square + QUEUES * (bent + line)
}

/// What a host costs that is used for more than the band, by how much it is.
fn over(part: f64) -> f64 {
    let part = part.max(0.0);
    part + part * part
}

/// In the order of [`Resource::ALL`].
pub(crate) fn row(amounts: &PerResource<u64>) -> [u64; 4] {
    Resource::ALL.map(|resource| amounts[resource])
}

#[cfg(test)]
mod tests {
    use super::phi;

    #[test]
    fn a_host_costs_more_and_more_the_fuller_it_is() {
        let at: Vec<f64> = (0..200).map(|percent| phi(f64::from(percent) / 100.0)).collect();
        assert_eq!((at[0], at[50]), (0.0, 0.125));
        let steps: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.is_sorted_by(|a, b| *a < *b + 1e-12), "convex");
        assert!(steps[94] > 5.0 * steps[74] && steps[180] > steps[94], "steep where queues grow");
    }
}
