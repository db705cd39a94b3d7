//! The best places there are, by branch and bound.
//!
//! VMs are settled one after the other, the largest first, each at home or, as long as the budget lasts, elsewhere. A branch is cut
//! where even liquid could not do better: if the loads of all VMs that are not settled yet could be poured over the hosts as they are,
//! each dimension by itself, no less than that is left of each standard deviation.

use godwit_scheduler::cluster::Cluster;

/// A branch must promise more than this to be followed: far below what a move is worth, far above what floating point loses.
const GAIN_MIN: f64 = 1e-9;

/// The least score of all places, or the least found if there were too many branches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Proven {
    pub(super) score: f64,
    /// Branches that were looked at.
    pub(super) branches: u64,
    /// Whether all that might be better were looked at.
    pub(super) is_proven: bool,
}

/// The least score with so many VMs away from home, every dimension of weight 1; `known` is one that can be had. Hosts must be alike.
pub(super) fn prove(cluster: &Cluster, moved_max: usize, known: f64, branches_max: u64) -> Proven {
    let mut proof = Proof::new(cluster, known, branches_max);
    proof.settle(0, moved_max);
    let branches = proof.branches;
    Proven { score: proof.best, branches, is_proven: branches < branches_max }
}

struct Proof {
    hosts: usize,
    dimensions: usize,
    vms: Vec<Vm>,
    /// What a host has, and may use, of each dimension.
    wholes: Vec<f64>,
    mosts: Vec<u64>,
    /// Rows of dimensions: in use on each host by VMs that are settled; on each host by those from each VM on if they stay at home.
    used: Vec<u64>,
    at_home: Vec<Vec<u64>>,
    best: f64,
    branches: u64,
    branches_max: u64,
}

struct Vm {
    home: usize,
    loads: Vec<u64>,
}

impl Proof {
    fn new(cluster: &Cluster, known: f64, branches_max: u64) -> Self {
        let (hosts, dimensions) = (cluster.hosts(), cluster.dimensions());
        let rooms = (0..dimensions).map(|dimension| *cluster.used(0, dimension).1).collect::<Vec<_>>();
        let vm = |vm| Vm {
            home: cluster.host_of(vm),
            loads: (0..dimensions).map(|dimension| cluster.load(vm, dimension)).collect(),
        };
        let mut vms: Vec<Vm> = (0..cluster.vms()).map(vm).collect();
        let size = |vm: &Vm| -> f64 {
            vm.loads.iter().zip(&rooms).map(|(load, room)| *load as f64 / room.whole as f64).sum()
        };
        vms.sort_by(|one, other| size(other).total_cmp(&size(one)));
        let mut at_home = vec![vec![0; hosts * dimensions]; vms.len() + 1];
        for (at, vm) in vms.iter().enumerate().rev() {
            at_home[at] = at_home[at + 1].clone();
            add(&mut at_home[at][vm.home * dimensions..], &vm.loads);
        }
        Self {
            hosts,
            dimensions,
            vms,
            wholes: rooms.iter().map(|room| room.whole as f64).collect(),
            mosts: rooms.iter().map(|room| room.most).collect(),
            used: rooms.iter().map(|room| room.own).cycle().take(hosts * dimensions).collect(),
            at_home,
            best: known,
            branches: 0,
            branches_max,
        }
    }

    /// All places of the VMs from this one on.
    fn settle(&mut self, at: usize, moves: usize) {
        if self.branches >= self.branches_max {
            return;
        }
        self.branches += 1;
        if at == self.vms.len() || moves == 0 {
            let stay = |index: usize| self.used[index] + self.at_home[at][index];
            let fits = (0..self.used.len()).all(|index| stay(index) <= self.mosts[index % self.dimensions]);
            let score = self.score(|host, dimension| stay(host * self.dimensions + dimension) as f64);
            if fits && score < self.best {
                self.best = score;
            }
            return;
        }
        if self.bound(at) >= self.best - GAIN_MIN {
            return;
        }
        let home = self.vms[at].home;
        for host in (home..self.hosts).chain(0..home) {
            if !self.fits(at, host) {
                continue;
            }
            let row = host * self.dimensions;
            add(&mut self.used[row..], &self.vms[at].loads);
            self.settle(at + 1, moves - usize::from(host != home));
            let loads = &self.vms[at].loads;
            self.used[row..].iter_mut().zip(loads).for_each(|(used, load)| *used -= load);
        }
    }

    fn fits(&self, vm: usize, host: usize) -> bool {
        let used = &self.used[host * self.dimensions..][..self.dimensions];
        let loads = used.iter().zip(&self.vms[vm].loads);
        loads.zip(&self.mosts).all(|((used, load), most)| used + load <= *most)
    }

    /// No more than the score of any places that the VMs from this one on may take.
    fn bound(&self, at: usize) -> f64 {
        let mut score = 0.0;
        let mut parts = vec![0.0; self.hosts];
        for dimension in 0..self.dimensions {
            let index = |host: usize| host * self.dimensions + dimension;
            let left: u64 = (0..self.hosts).map(|host| self.at_home[at][index(host)]).sum();
            (0..self.hosts).for_each(|host| parts[host] = self.used[index(host)] as f64);
            pour(&mut parts, left as f64);
            score += deviation(parts.iter().copied()) / self.wholes[dimension];
        }
        score
    }

    fn score(&self, used: impl Fn(usize, usize) -> f64) -> f64 {
        let deviation = |dimension: usize| deviation((0..self.hosts).map(|host| used(host, dimension)));
        (0..self.dimensions).map(|dimension| deviation(dimension) / self.wholes[dimension]).sum()
    }
}

/// Raises the lowest to one level, until so much was poured.
fn pour(parts: &mut [f64], left: f64) {
    parts.sort_by(f64::total_cmp);
    let mut sum = left;
    let mut level = 0.0;
    let mut raised = 0;
    for (count, part) in parts.iter().enumerate() {
        if count > 0 && *part >= level {
            break;
        }
        sum += part;
        raised = count + 1;
        level = sum / raised as f64;
    }
    parts[..raised].fill(level);
}

fn deviation(parts: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = parts.clone().count() as f64;
    let mean = parts.clone().sum::<f64>() / count;
    (parts.map(|part| (part - mean).powi(2)).sum::<f64>() / count).sqrt()
}

fn add(sums: &mut [u64], row: &[u64]) {
    sums.iter_mut().zip(row).for_each(|(sum, of)| *sum += of);
}

#[cfg(test)]
mod tests {
    use godwit_scheduler::balance::Balance;
    use godwit_scheduler::cluster::Move;

    use super::*;
    use crate::scale::{Size, generate};

    /// Every choice of a host for every VM.
    fn by_hand(cluster: &Cluster, moved_max: usize) -> f64 {
        let (hosts, vms) = (cluster.hosts(), cluster.vms());
        let choices = (0..hosts.pow(vms as u32)).map(|choice| {
            let mut moved = cluster.clone();
            (0..vms)
                .for_each(|vm| moved.apply(Move::Relocate { vm, to: choice / hosts.pow(vm as u32) % hosts }));
            moved
        });
        let away = |moved: &Cluster| (0..vms).filter(|vm| moved.host_of(*vm) != cluster.host_of(*vm)).count();
        let fits = |moved: &Cluster| {
            let mut all = (0..hosts).flat_map(|host| (0..moved.dimensions()).map(move |of| (host, of)));
            all.all(|(host, of)| moved.used(host, of).0 <= moved.used(host, of).1.most)
        };
        let allowed = choices.filter(|moved| away(moved) <= moved_max && fits(moved));
        let scores = allowed.map(|moved| Balance::new(&moved, &[1.0; 6]).unwrap().score());
        scores.min_by(f64::total_cmp).unwrap()
    }

    #[test]
    fn what_is_proven_is_the_least_of_all() {
        for (seed, moved_max) in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 7)] {
            let cluster = generate(Size { hosts: 3, vms: 7 }, seed).unwrap();
            let proven = prove(&cluster, moved_max, f64::INFINITY, u64::MAX);
            let least = by_hand(&cluster, moved_max);
            assert!((proven.score - least).abs() < 1e-8, "{seed}: {proven:?}, {least}");
            // Nothing is better than the best.
            let again = prove(&cluster, moved_max, proven.score, u64::MAX);
            assert!(again.is_proven && again.score == proven.score && again.branches <= proven.branches);
        }
    }

    #[test]
    fn a_proof_that_is_cut_short_is_none() {
        let cluster = generate(Size { hosts: 4, vms: 12 }, 1).unwrap();
        let proven = prove(&cluster, 12, 10.0, 100);
        assert!(!proven.is_proven && proven.branches == 100);
    }

    #[test]
    fn liquid_fills_the_lowest_first() {
        let mut parts = [5.0, 1.0, 2.0];
        pour(&mut parts, 3.0);
        assert_eq!(parts, [3.0, 3.0, 5.0]);
        pour(&mut parts, 7.0);
        assert_eq!(parts, [6.0, 6.0, 6.0]);
    }
}
