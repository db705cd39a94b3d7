//! How moves share what their hosts send and take in, as hosts and the manager do it: a host's agent divides what it may send among those
//! that leave it, and what one does not take goes to the others (max-min fair); of what a destination takes in, each that comes may
//! send an even part.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use super::cost;
use crate::entitlement::{Claim, divide};
use crate::planner::Cost;
use crate::snapshot::Writes;

/// A move under way, which goes faster and slower.
#[derive(Debug, Clone)]
struct Flow {
    writes: Writes,
    begun_ms: u64,
    /// Up to when it has been followed.
    at_ms: u64,
    /// The part of it that is done.
    done: f64,
    bytes: f64,
    cpu_ms: f64,
    blackout_us: u64,
}

impl Flow {
    fn new(writes: Writes, begun_ms: u64) -> Self {
        Self { writes, begun_ms, at_ms: begun_ms, done: 0.0, bytes: 0.0, cpu_ms: 0.0, blackout_us: 0 }
    }

    /// When it ends if it goes on at this rate, in bytes per second.
    fn ends_ms(&self, rate: u64) -> u64 {
        let whole_ms = cost::of(&self.writes, rate).duration_ms as f64;
        self.at_ms.saturating_add((whole_ms * (1.0 - self.done)).ceil() as u64)
    }

    /// It has gone on at this rate until then, which is no later than its end.
    fn go(&mut self, rate: u64, until_ms: u64) {
        let whole = cost::of(&self.writes, rate);
        let (part, done) = if until_ms >= self.ends_ms(rate) {
            (1.0 - self.done, 1.0)
        } else {
            let part = (until_ms - self.at_ms) as f64 / (whole.duration_ms as f64).max(1.0);
            (part, self.done + part)
        };
        self.done = done;
        self.bytes += part * whole.bytes as f64;
        self.cpu_ms += part * whole.cpu_ms as f64;
        // The last pages go at the last rate.
        self.blackout_us = whole.blackout_us;
        self.at_ms = until_ms;
    }

    /// What it has cost, having ended then.
    fn cost(&self, ended_ms: u64) -> Cost {
        Cost {
            duration_ms: ended_ms - self.begun_ms,
            bytes: self.bytes as u64,
            blackout_us: self.blackout_us,
            cpu_ms: self.cpu_ms as u64,
        }
    }
}

/// All moves under way.
#[derive(Debug)]
pub(super) struct Traffic {
    /// What each host may send in bytes per second, and as much take in.
    room: Vec<u64>,
    lanes: BTreeMap<usize, Lane>,
    /// Those from and to each host.
    leaving: Vec<BTreeSet<usize>>,
    coming: Vec<BTreeSet<usize>>,
    /// When each ends as things are.
    ends: BTreeSet<(u64, usize)>,
}

#[derive(Debug)]
struct Lane {
    from: usize,
    to: usize,
    flow: Flow,
    rate: u64,
    ends_ms: u64,
}

impl Traffic {
    pub(super) fn new(room: Vec<u64>) -> Self {
        let nobody = vec![BTreeSet::new(); room.len()];
        Self { room, lanes: BTreeMap::new(), leaving: nobody.clone(), coming: nobody, ends: BTreeSet::new() }
    }

    /// How many move away from a host, and how many to one.
    pub(super) fn at(&self, from: usize, to: usize) -> (u32, u32) {
        (self.leaving[from].len() as u32, self.coming[to].len() as u32)
    }

    /// A move begins, under a number that no other one has.
    pub(super) fn begin(&mut self, number: usize, (from, to): (usize, usize), writes: Writes, now_ms: u64) {
        let flow = Flow::new(writes, now_ms);
        self.lanes.insert(number, Lane { from, to, flow, rate: 0, ends_ms: u64::MAX });
        self.ends.insert((u64::MAX, number));
        self.leaving[from].insert(number);
        self.coming[to].insert(number);
        self.divide(from, to, now_ms);
    }

    /// When the next one ends.
    pub(super) fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|(ends_ms, _)| *ends_ms)
    }

    /// One that has ended by then, with what it has cost.
    pub(super) fn end(&mut self, now_ms: u64) -> Option<(usize, Cost)> {
        let (ends_ms, number) = self.ends.first().copied().filter(|(ends_ms, _)| *ends_ms <= now_ms)?;
        let Lane { from, to, mut flow, rate, .. } = self.lanes.remove(&number)?;
        self.ends.remove(&(ends_ms, number));
        self.leaving[from].remove(&number);
        self.coming[to].remove(&number);
        flow.go(rate, ends_ms);
        self.divide(from, to, ends_ms);
        Some((number, flow.cost(ends_ms)))
    }

    /// Divides anew, after a move between these has begun or ended: the others to the same destination get another part, and so do
    /// those that share a source with one of them.
    fn divide(&mut self, from: usize, to: usize, now_ms: u64) {
        let mut sources: BTreeSet<usize> =
            self.coming[to].iter().map(|number| self.lanes[number].from).collect();
        sources.insert(from);
        for source in sources {
            for (number, rate) in self.parts(source) {
                let Some(lane) = self.lanes.get_mut(&number).filter(|lane| lane.rate != rate) else {
                    continue;
                };
                self.ends.remove(&(lane.ends_ms, number));
                lane.flow.go(lane.rate, now_ms);
                (lane.rate, lane.ends_ms) = (rate, lane.flow.ends_ms(rate));
                self.ends.insert((lane.ends_ms, number));
            }
        }
    }

    /// What each that leaves a host may send.
    fn parts(&self, source: usize) -> Vec<(usize, u64)> {
        let claim = |number: &usize| {
            let to = self.lanes[number].to;
            let ceiling = self.room[to] / (self.coming[to].len() as u64).max(1);
            Claim { floor: 0, ceiling, shares: NonZeroU64::MIN }
        };
        let claims: Vec<Claim> = self.leaving[source].iter().map(claim).collect();
        let rates = divide(self.room[source], &claims);
        // A lane with nothing would never end.
        self.leaving[source].iter().zip(rates).map(|(number, rate)| (*number, rate.max(1))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn idle(gib: u64) -> Writes {
        Writes { used: gib * GIB, hot: 0, bytes_per_s: 0 }
    }

    /// The rates of moves between these, all at once.
    fn rates(ends: &[(usize, usize)]) -> Vec<u64> {
        let mut traffic = Traffic::new(vec![100, 100, 30, 100]);
        for (number, ends) in ends.iter().enumerate() {
            traffic.begin(number, *ends, idle(8), 0);
        }
        traffic.lanes.values().map(|lane| lane.rate).collect()
    }

    #[test]
    fn what_one_does_not_take_the_others_of_its_source_share() {
        assert_eq!(rates(&[(0, 1)]), [100]);
        assert_eq!(rates(&[(0, 1), (0, 3)]), [50, 50]);
        assert_eq!(rates(&[(0, 1), (0, 2), (0, 3)]), [35, 30, 35]);
        assert_eq!(rates(&[(0, 1), (3, 1)]), [50, 50], "those that come share, too");
        assert_eq!(rates(&[(0, 1), (3, 1), (0, 2)]), [50, 50, 30]);
        assert_eq!(rates(&[(0, 3), (0, 1), (2, 1)]), [50, 50, 30], "one that another's arrival slows");
    }

    #[test]
    fn who_is_left_goes_faster_and_all_ends_are_told_in_order() {
        let mut traffic = Traffic::new(vec![GIB, GIB, GIB]);
        traffic.begin(0, (0, 1), idle(4), 0);
        traffic.begin(1, (0, 2), idle(8), 0);
        let first = traffic.next_end_ms().unwrap();
        assert_eq!(traffic.end(first).unwrap().0, 0);
        assert_eq!((traffic.end(first), traffic.at(0, 2)), (None, (1, 1)));
        let last = traffic.next_end_ms().unwrap();
        let (number, cost) = traffic.end(last).unwrap();
        assert_eq!((number, cost.duration_ms), (1, last));
        // Twelve GiB leave one host at one GiB/s, whoever goes first.
        assert!(first.abs_diff(8_000) < 100 && last.abs_diff(12_000) < 100, "{first} {last}");
        assert_eq!(traffic.next_end_ms(), None);
    }

    #[test]
    fn a_move_that_goes_alone_costs_what_the_model_says() {
        let mut alone = Flow::new(idle(8), 500);
        let ends = alone.ends_ms(GIB);
        alone.go(GIB, ends);
        let (cost, model) = (alone.cost(ends), cost::of(&idle(8), GIB));
        assert_eq!((cost.duration_ms, cost.blackout_us), (model.duration_ms, model.blackout_us));
        assert!(cost.bytes.abs_diff(model.bytes) < 2 && cost.cpu_ms.abs_diff(model.cpu_ms) < 2, "{cost:?}");
    }

    #[test]
    fn a_move_that_is_left_alone_goes_faster_from_then_on() {
        let mut flow = Flow::new(idle(8), 0);
        let (slow, fast) = (flow.ends_ms(GIB / 2), flow.ends_ms(GIB));
        flow.go(GIB / 2, slow / 2);
        let ends = flow.ends_ms(GIB);
        assert!(ends.abs_diff(slow / 2 + fast / 2) < 10, "half at each rate: {ends} of {slow} and {fast}");
    }
}
