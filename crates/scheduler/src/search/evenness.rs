//! A cluster that is to be used evenly.

use super::Model;
use crate::balance::{Balance, WeightError};
use crate::cluster::{Cluster, Move};

/// A cluster whose cost is its score, as [`crate::balance`] has it.
#[derive(Debug, Clone)]
pub struct Evenness {
    cluster: Cluster,
    balance: Balance,
}

impl Evenness {
    /// By one weight for each dimension.
    pub fn new(cluster: Cluster, weights: &[f64]) -> Result<Self, WeightError> {
        Ok(Self { balance: Balance::new(&cluster, weights)?, cluster })
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

impl Model for Evenness {
    fn hosts(&self) -> usize {
        self.cluster.hosts()
    }

    fn vms(&self) -> usize {
        self.cluster.vms()
    }

    fn host_of(&self, vm: usize) -> usize {
        self.cluster.host_of(vm)
    }

    fn guests(&self, host: usize) -> &[u32] {
        self.cluster.guests(host)
    }

    fn cost(&self) -> f64 {
        self.balance.score()
    }

    fn look(&self, change: Move) -> Option<f64> {
        self.cluster.allows(change).then(|| self.balance.score_after(&self.cluster, change))
    }

    fn apply(&mut self, change: Move) {
        self.balance.apply(&self.cluster, change);
        self.cluster.apply(change);
    }
    fn strain(&self, host: usize) -> Option<f64> {
        Some(self.balance.strain(&self.cluster, host))
    }
}
