//! A model on its way through places, by chance and by temperature, and the best places that it has been in.

use super::model::Model;
use super::placement::Placement;
use crate::cluster::Move;
use crate::random::Random;

/// That many VMs are always moved, however hot it is.
const LARGE_LEAST: usize = 32;

/// See the module. Nothing is planned here: whoever has the clock, or counts, says how hot it is and for how long.
#[derive(Debug, Clone)]
pub struct Walk<M> {
    pub(super) now: Placement<M>,
    cost: f64,
    moved_max: usize,
    pub(super) leans_home: bool,
    pub(super) relieves: bool,
    /// Sizes and VMs, the largest first, if they come first; once the temperature is what part of its size a VM is moved; how many
    /// may be by now; and where each VM stands.
    pub(super) large: Vec<(f64, u32)>,
    of_size: f64,
    pub(super) ripe: usize,
    pub(super) rank: Vec<u32>,
    best: Best,
    pub(super) random: Random,
}

/// The best places so far. What has moved since is listed, so that noting better ones costs only what is new in them.
#[derive(Debug, Clone)]
struct Best {
    cost: f64,
    hosts: Vec<u32>,
    moved: Vec<u32>,
    is_moved: Vec<bool>,
}

impl<M: Model> Walk<M> {
    /// From where everybody is now; no more than `moved_max` VMs are ever elsewhere. Chance follows from the seed.
    pub fn new(model: M, moved_max: usize, seed: u64) -> Self {
        let (cost, vms) = (model.cost(), model.vms());
        let hosts = (0..vms).map(|vm| model.host_of(vm) as u32).collect();
        Self {
            now: Placement::new(model),
            cost,
            moved_max,
            leans_home: true,
            relieves: false,
            large: Vec::new(),
            of_size: 1.0,
            ripe: 0,
            rank: Vec::new(),
            best: Best { cost, hosts, moved: Vec::new(), is_moved: vec![false; vms] },
            random: Random::new(seed),
        }
    }

    /// Proposes to VMs that are away to come home no more often than to go anywhere else. By itself a walk leans home, which keeps
    /// room where there is little, be it of hosts or in a budget.
    #[must_use]
    pub fn roaming(mut self) -> Self {
        self.leans_home = false;
        self
    }

    /// Proposes now and then what relieves a host that bears much, as the model says.
    #[must_use]
    pub fn relieving(mut self) -> Self {
        self.relieves = true;
        self
    }

    /// Moves large VMs first, and others once it is cold enough for where they are to matter. All from the start, if the model does
    /// not say how large they are. A VM is moved by chance once the temperature is no more than such a part of its size.
    #[must_use]
    pub fn large_first(mut self, of_size: f64) -> Self {
        self.of_size = of_size;
        let model = &self.now.model;
        let sizes = (0..model.vms()).filter_map(|vm| Some((model.size(vm)?, vm as u32)));
        self.large = sizes.collect();
        self.large.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.rank = vec![0; model.vms()];
        self.large.iter().enumerate().for_each(|(rank, (_, vm))| self.rank[*vm as usize] = rank as u32);
        self
    }

    /// Chance follows from this seed from now on: two walks that have come the same way part here.
    pub fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    pub fn cost(&self) -> f64 {
        self.cost
    }

    /// The least that it has cost so far.
    pub fn best_cost(&self) -> f64 {
        self.best.cost
    }

    /// The model as it is now, which need not be the best.
    pub fn model(&self) -> &M {
        &self.now.model
    }

    /// Changes what it costs to break rules, and neither where VMs are nor what it costs to be where they may be.
    pub fn revise(&mut self, revise: impl FnOnce(&mut M)) {
        revise(&mut self.now.model);
        self.arrive(self.now.model.cost());
    }

    /// Where each VM was when it cost least.
    pub fn best_hosts(&self) -> &[u32] {
        &self.best.hosts
    }

    /// Goes to these places, one host for each VM, which must be allowed.
    pub fn go_to(&mut self, hosts: &[u32]) {
        for (vm, host) in hosts.iter().enumerate() {
            if self.now.model.host_of(vm) != *host as usize {
                self.apply(Move::Relocate { vm, to: *host as usize });
            }
        }
        self.arrive(self.now.model.cost());
    }

    /// Looks at so many moves by chance. One that costs more is made the rarer the more it costs for the temperature, which is a
    /// cost: with probability e^(-more / temperature).
    pub fn anneal(&mut self, temperature: f64, proposals: u64) {
        let ripe = self.large.partition_point(|(size, _)| size * self.of_size >= temperature);
        self.ripe = ripe.max(self.large.len().min(LARGE_LEAST));
        for _ in 0..proposals {
            let Some(change) = self.propose() else { continue };
            let limit = self.cost + temperature * self.random.exponential();
            if let Some(cost) = self.look_below(change, limit) {
                self.make(cost, change);
            }
        }
    }

    /// Looks at a move from a host that bears much to one that bears little, and makes it if it costs so much less for each VM
    /// that moves. Whether it was made.
    pub(super) fn relieve(&mut self, worth: f64) -> bool {
        let Some(change) = self.propose_relief() else { return false };
        let vms = if matches!(change, Move::Swap { .. }) { 2.0 } else { 1.0 };
        let cost = self.look(change).filter(|cost| *cost < self.cost - worth * vms);
        if let Some(cost) = cost {
            self.make(cost, change);
        }
        cost.is_some()
    }

    /// How many VMs more may be away.
    pub(super) fn budget_left(&self) -> usize {
        self.moved_max.min(self.now.model.vms()) - self.now.away().len()
    }

    /// The cost after the move, if the move may be made.
    pub(super) fn look(&self, change: Move) -> Option<f64> {
        self.look_below(change, f64::INFINITY)
    }

    /// The same, if it is no higher than the limit.
    fn look_below(&self, change: Move, limit: f64) -> Option<f64> {
        let may = self.moved_max >= self.now.model.vms() || self.now.away_after(change) <= self.moved_max;
        may.then(|| self.now.model.look_below(change, limit)).flatten()
    }

    /// Makes a move after which it costs this.
    pub(super) fn make(&mut self, cost: f64, change: Move) {
        self.apply(change);
        self.arrive(cost);
    }

    /// VMs that are away at the best places, and where.
    pub(super) fn best_places(&self) -> Vec<(u32, u32)> {
        let places = self.best.hosts.iter().enumerate();
        let away = places.filter(|(vm, host)| self.now.home(*vm) != **host as usize);
        away.map(|(vm, host)| (vm as u32, *host)).collect()
    }

    fn apply(&mut self, change: Move) {
        self.now.apply(change);
        match change {
            Move::Relocate { vm, .. } => self.best.note(vm),
            Move::Swap { one, other } => {
                self.best.note(one);
                self.best.note(other);
            }
        }
    }

    fn arrive(&mut self, cost: f64) {
        self.cost = cost;
        if cost < self.best.cost && self.now.model.is_allowed() {
            self.best.cost = cost;
            for vm in self.best.moved.drain(..) {
                self.best.hosts[vm as usize] = self.now.model.host_of(vm as usize) as u32;
                self.best.is_moved[vm as usize] = false;
            }
        }
    }
}

impl Best {
    fn note(&mut self, vm: usize) {
        if !self.is_moved[vm] {
            self.is_moved[vm] = true;
            self.moved.push(vm as u32);
        }
    }
}
