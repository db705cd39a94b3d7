//! How evenly hosts are used: the cluster score of Ganeti's `hbal`, kept up to date move by move.
//!
//! The score is the sum, over the dimensions, of weight * standard deviation of used / whole over the hosts. 0 is perfect. With
//! memory, virtual CPUs and the four measured loads as dimensions, each of weight 1, it is what `hbal` prints for a cluster whose
//! disks are shared, all hosts online; with the entitlements of the VMs as loads it is the imbalance that DRS 1 brings down.
//!
//! Parts are whole numbers of 2^-32. So sums and sums of squares are exact, a move costs the terms of two hosts, and after any
//! number of moves the score is the same to the bit as one that is computed anew.

use crate::cluster::{Cluster, Move};

/// A whole, as parts of it are counted.
const WHOLE_SHIFT: u32 = 32;
/// A host that uses 2048 times what it has, or more, counts as this: squares of all hosts that a cluster may have fit 128 bits.
const PART_MAX: u64 = 1 << (WHOLE_SHIFT + 11);

/// Why weights are none.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum WeightError {
    #[error("there are {found} weights for {expected} dimensions: give each one")]
    Count { found: usize, expected: usize },
    #[error("{0} is not a weight: use a number from 0 to 1e9")]
    Value(f64),
}

/// See the module. It belongs to one [`Cluster`], and must see every move that the cluster makes, before it is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Balance {
    hosts: usize,
    weights: Vec<f64>,
    /// One row of dimensions for each host.
    scales: Vec<Scale>,
    sums: Vec<Sums>,
}

/// How a use becomes a part of a host's whole, without a division: use * inverse / 2^shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scale {
    inverse: u64,
    shift: u32,
}

/// Of one dimension, over all hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    parts: u128,
    squares: u128,
}

impl Balance {
    /// The score of the cluster as it is, by one weight for each dimension.
    pub fn new(cluster: &Cluster, weights: &[f64]) -> Result<Self, WeightError> {
        let (found, expected) = (weights.len(), cluster.dimensions());
        if found != expected {
            return Err(WeightError::Count { found, expected });
        }
        if let Some(weight) = weights.iter().find(|weight| !(0.0..=1e9).contains(*weight)) {
            return Err(WeightError::Value(*weight));
        }
        let rows =
            (0..cluster.hosts()).flat_map(|host| (0..expected).map(move |dimension| (host, dimension)));
        let mut balance = Self {
            hosts: cluster.hosts(),
            weights: weights.to_vec(),
            scales: rows.clone().map(|(host, of)| Scale::new(cluster.used(host, of).1.whole)).collect(),
            sums: vec![Sums::default(); expected],
        };
        for (host, dimension) in rows {
            let part = balance.part(host, dimension, cluster.used(host, dimension).0);
            balance.sums[dimension].add(part);
        }
        Ok(balance)
    }

    /// The less, the more even.
    pub fn score(&self) -> f64 {
        self.weigh(|dimension| self.sums[dimension])
    }

    /// What the score would be after the move; O(dimensions).
    pub fn score_after(&self, cluster: &Cluster, change: Move) -> f64 {
        self.weigh(|dimension| self.sums_after(cluster, change, dimension))
    }

    /// Takes in a move that the cluster is about to make.
    pub fn apply(&mut self, cluster: &Cluster, change: Move) {
        for dimension in 0..self.sums.len() {
            self.sums[dimension] = self.sums_after(cluster, change, dimension);
        }
    }

    /// The sum of weight * used / whole of a host over the dimensions: who has more of it should rather lose.
    pub fn strain(&self, cluster: &Cluster, host: usize) -> f64 {
        let part = |dimension| self.part(host, dimension, cluster.used(host, dimension).0) as f64;
        let weights = self.weights.iter().enumerate();
        weights.map(|(dimension, weight)| weight * part(dimension)).sum::<f64>()
            / (1u64 << WHOLE_SHIFT) as f64
    }

    fn weigh(&self, sums: impl Fn(usize) -> Sums) -> f64 {
        let weights = self.weights.iter().enumerate();
        weights.map(|(dimension, weight)| weight * sums(dimension).deviation(self.hosts)).sum()
    }

    fn sums_after(&self, cluster: &Cluster, change: Move, dimension: usize) -> Sums {
        let mut sums = self.sums[dimension];
        let (from, to) = cluster.ends(change);
        if from == to {
            return sums;
        }
        let (at_from, at_to) = cluster.used_after(change, dimension);
        for (host, after) in [(from, at_from), (to, at_to)] {
            sums.remove(self.part(host, dimension, cluster.used(host, dimension).0));
            sums.add(self.part(host, dimension, after));
        }
        sums
    }

    /// What part of the host's whole so much is.
    fn part(&self, host: usize, dimension: usize, used: u64) -> u64 {
        self.scales[host * self.weights.len() + dimension].part(used)
    }
}

impl Scale {
    /// The inverse has 63 bits whatever the whole, which is at least 1.
    fn new(whole: u64) -> Self {
        let shift = (u64::BITS - whole.leading_zeros()) + (u64::BITS - 2 - WHOLE_SHIFT);
        Self { inverse: ((1u128 << (shift + WHOLE_SHIFT)) / u128::from(whole)) as u64, shift }
    }

    fn part(self, used: u64) -> u64 {
        let part = (u128::from(used) * u128::from(self.inverse)) >> self.shift;
        u64::try_from(part).unwrap_or(u64::MAX).min(PART_MAX)
    }
}

impl Sums {
    fn add(&mut self, part: u64) {
        self.parts += u128::from(part);
        self.squares += u128::from(part) * u128::from(part);
    }

    fn remove(&mut self, part: u64) {
        self.parts -= u128::from(part);
        self.squares -= u128::from(part) * u128::from(part);
    }

    /// The standard deviation, if it is of so many hosts.
    fn deviation(self, hosts: usize) -> f64 {
        let count = hosts.max(1) as u128;
        let scaled = (count * self.squares - self.parts * self.parts) as f64;
        scaled.sqrt() / (count as f64 * (1u64 << WHOLE_SHIFT) as f64)
    }
}
