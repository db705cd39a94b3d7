//! What hosts do during a step, added up from one change to the next.

use godwit_scheduler::PerResource;

use crate::cluster::Cluster;
use crate::gauge::Rate;
use crate::report::{Spread, StepReport};
use crate::trace::Trace;

/// See the module.
pub(crate) struct Account {
    demand: Vec<PerResource<u64>>,
    /// Of each host, since when.
    rates: Vec<(u64, Rate)>,
    wanted: f64,
    given: f64,
    joules: f64,
    overload_ms: f64,
    pub(crate) moves: u64,
    pub(crate) in_vain: u64,
    pub(crate) bytes: u64,
}

/// What is known when a step begins.
pub(crate) struct Beginning {
    pub(crate) now_ms: u64,
    pub(crate) capacity_mhz: f64,
    pub(crate) happiness: Spread,
    pub(crate) broken_rules: usize,
}

impl Account {
    pub(crate) fn new(cluster: &Cluster, trace: &Trace, demand: Vec<PerResource<u64>>, now_ms: u64) -> Self {
        let rate = |host| (now_ms, Rate::of(cluster, trace, &demand, host));
        Self {
            rates: (0..trace.hosts.len()).map(rate).collect(),
            demand,
            wanted: 0.0,
            given: 0.0,
            joules: 0.0,
            overload_ms: 0.0,
            moves: 0,
            in_vain: 0,
            bytes: 0,
        }
    }

    /// A host has changed.
    pub(crate) fn change(&mut self, cluster: &Cluster, trace: &Trace, host: usize, at_ms: u64) {
        self.settle(host, at_ms);
        self.rates[host].1 = Rate::of(cluster, trace, &self.demand, host);
    }

    /// Counts what a host has done since it last changed.
    fn settle(&mut self, host: usize, at_ms: u64) {
        let (since_ms, rate) = self.rates[host];
        let ms = at_ms.saturating_sub(since_ms) as f64;
        self.wanted += rate.wanted_mhz * ms;
        self.given += rate.given_mhz * ms;
        self.joules += rate.watts * ms / 1000.0;
        self.overload_ms += if rate.overloaded { ms } else { 0.0 };
        self.rates[host].0 = at_ms;
    }

    /// The step is over.
    pub(crate) fn close(mut self, cluster: &Cluster, trace: &Trace, beginning: Beginning) -> StepReport {
        let Beginning { now_ms, capacity_mhz, happiness, broken_rules } = beginning;
        let until_ms = now_ms + trace.interval_ms;
        (0..self.rates.len()).for_each(|host| self.settle(host, until_ms));
        let waiting = cluster.guests.iter().enumerate().filter(|(_, guest)| guest.host.is_none());
        let nowhere_mhz: f64 = waiting.clone().map(|(guest, _)| self.demand[guest].cpu as f64).sum();
        let interval_ms = trace.interval_ms as f64;
        let wanted_mhz = self.wanted / interval_ms + nowhere_mhz;
        let given_mhz = self.given / interval_ms;
        StepReport {
            at_s: now_ms / 1000,
            wanted_mhz,
            given_mhz,
            capacity_mhz,
            hosts_on: self.rates.iter().filter(|(_, rate)| rate.on).count(),
            waiting: waiting.count(),
            watts: self.joules / (interval_ms / 1000.0),
            happiness,
            moves: self.moves,
            moves_in_vain: self.in_vain,
            moved_gib: self.bytes as f64 / f64::from(1 << 30),
            overload_host_min: self.overload_ms / 60_000.0,
            unmet_mhz_h: (wanted_mhz - given_mhz).max(0.0) * interval_ms / 3_600_000.0,
            broken_rules,
        }
    }
}
