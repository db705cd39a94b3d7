//! Looks for places in which a [`Model`] costs less, within a budget of VMs that move.
//!
//! ```text
//!               no move helps, or a quarter of the proposals is made              all proposals are made
//!   climbing ------------------------------------------------------> annealing ----------------------------> done
//!   the best of all relocations,                    relocations and swaps at random; one that makes it worse
//!   again and again                                 is made too, the rarer the worse it is and the later
//! ```
//!
//! Where a quarter of the proposals is too few to look at all relocations once, there is no climbing. The best places so far are a
//! plan at any time. Work is counted in proposals, moves that are looked at, and the caller has the
//! clock. The same cluster, effort and seed give the same plan, however the proposals are portioned.

mod evenness;
mod model;
mod placement;
mod plan;

pub use evenness::Evenness;
pub use model::Model;
pub use plan::{Plan, Step};

use self::placement::Placement;
use crate::cluster::Move;
use crate::random::Random;

/// Climbing may take this part of the proposals.
const CLIMB_PART: u64 = 4;
/// The temperature at first, as a part of the score that climbing has left, and how often it halves until the end.
const HEAT: f64 = 1.0 / 64.0;
const HALVINGS: f64 = 12.0;
/// The temperature is set anew after so many proposals.
const STEADY: u64 = 256;

/// What a search may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Most VMs that a plan moves.
    pub moved_max: usize,
    /// Moves that are looked at.
    pub proposals: u64,
    /// Chance follows from it.
    pub seed: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Search<M> {
    effort: Effort,
    start: Placement<M>,
    now: Placement<M>,
    score: f64,
    best: Best,
    random: Random,
    done: u64,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Climbing(Scan),
    Annealing { since: u64, heat: f64, temperature: f64 },
    Done,
}

impl State {
    fn annealing(since: u64, score: f64) -> Self {
        Self::Annealing { since, heat: score * HEAT, temperature: score * HEAT }
    }
}

/// How far all relocations have been looked at, and the best of them.
#[derive(Debug, Clone, Default)]
struct Scan {
    next: usize,
    best: Option<(f64, Move)>,
}

/// The best places so far: the VMs that are away.
#[derive(Debug, Clone)]
struct Best {
    score: f64,
    places: Vec<(u32, u32)>,
}

impl<M: Model> Search<M> {
    /// Nothing has been looked at yet.
    pub fn new(model: M, effort: Effort) -> Self {
        let (hosts, vms, score) = (model.hosts(), model.vms(), model.cost());
        let start = Placement::new(model);
        let state = if hosts < 2 || vms == 0 || effort.moved_max == 0 {
            State::Done
        } else if (hosts * vms) as u64 <= effort.proposals / CLIMB_PART {
            State::Climbing(Scan::default())
        } else {
            State::annealing(0, score)
        };
        Self {
            effort,
            now: start.clone(),
            score,
            best: Best { score, places: Vec::new() },
            start,
            random: Random::new(effort.seed),
            done: 0,
            state,
        }
    }

    /// Makes up to so many proposals more. Whether there are any left to make.
    pub fn advance(&mut self, proposals: u64) -> bool {
        for _ in 0..proposals {
            if self.done == self.effort.proposals {
                self.state = State::Done;
            }
            match &mut self.state {
                State::Climbing(scan) => {
                    let scan = std::mem::take(scan);
                    self.state = self.climb(scan);
                }
                State::Annealing { since, heat, temperature } => {
                    let done = self.done - *since;
                    if done.is_multiple_of(STEADY) {
                        *temperature = *heat * cooled(done, self.effort.proposals - *since);
                    }
                    let temperature = *temperature;
                    self.anneal(temperature);
                }
                State::Done => return false,
            }
            self.done += 1;
        }
        self.done < self.effort.proposals && !matches!(self.state, State::Done)
    }

    /// The best so far, less what is not worth moving: each step, and all of them on average, make the score at least `gain_min`
    /// better.
    pub fn plan(&self, gain_min: f64) -> Plan {
        Plan::new(self.start.clone(), &self.best.places, gain_min)
    }

    /// Looks at the next relocation, and makes the best after the last.
    fn climb(&mut self, mut scan: Scan) -> State {
        let (hosts, vms) = (self.now.model.hosts(), self.now.model.vms());
        let change = Move::Relocate { vm: scan.next / hosts, to: scan.next % hosts };
        let least = scan.best.map_or(self.score, |(score, _)| score);
        if let Some(score) = self.look(change).filter(|score| *score < least) {
            scan.best = Some((score, change));
        }
        scan.next += 1;
        if scan.next < hosts * vms && self.done < self.effort.proposals / CLIMB_PART {
            return State::Climbing(scan);
        }
        match scan.best {
            Some((score, change)) => {
                self.make(score, change);
                State::Climbing(Scan::default())
            }
            None => State::annealing(self.done + 1, self.score),
        }
    }

    fn anneal(&mut self, temperature: f64) {
        let Some(change) = self.propose() else { return };
        let worse = temperature * self.random.exponential();
        if let Some(score) = self.look(change).filter(|score| *score <= self.score + worse) {
            self.make(score, change);
        }
    }

    /// A move by chance. Half of them are of VMs that are away: once the budget is spent, nobody else may leave without one of
    /// them coming home.
    fn propose(&mut self) -> Option<Move> {
        let (hosts, vms, away) = (self.now.model.hosts(), self.now.model.vms(), self.now.away().len());
        let choice = self.random.below(8);
        if choice < 4 || away == 0 {
            let vm = self.random.below(vms);
            return Some(match choice % 2 {
                0 => Move::Relocate { vm, to: self.random.below(hosts) },
                _ => Move::Swap { one: vm, other: self.random.below(vms) },
            });
        }
        let vm = self.now.away()[self.random.below(away)] as usize;
        let home = self.now.home(vm);
        Some(match choice {
            4 => Move::Relocate { vm, to: self.random.below(hosts) },
            5 => Move::Relocate { vm, to: home },
            6 => Move::Swap { one: vm, other: self.random.below(vms) },
            _ => {
                // It comes home, and one from there goes in its stead.
                let there = self.now.model.guests(home).len();
                let other = (there > 0).then(|| self.random.below(there))?;
                Move::Swap { one: vm, other: self.now.model.guests(home)[other] as usize }
            }
        })
    }

    /// The score after the move, if the move may be made.
    fn look(&self, change: Move) -> Option<f64> {
        let may = self.now.away_after(change) <= self.effort.moved_max;
        may.then(|| self.now.model.look(change)).flatten()
    }

    fn make(&mut self, score: f64, change: Move) {
        self.now.apply(change);
        self.score = score;
        if score < self.best.score {
            self.best = Best { score, places: self.now.places() };
        }
    }
}

/// What is left of the heat after so many of all proposals: straight lines between halvings, so that no power is taken.
fn cooled(done: u64, all: u64) -> f64 {
    let halvings = done as f64 / all.max(1) as f64 * HALVINGS;
    let whole = (halvings as u32).min(63);
    (1.0 - (halvings - f64::from(whole)) / 2.0) / (1u64 << whole) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Balance;
    use crate::cluster::{Cluster, Guest, Room};

    /// Every third VM on one of the hosts, the others on the first.
    fn skewed(hosts: usize, vms: usize) -> Cluster {
        let room = |whole| Room { whole, own: 0, most: whole };
        let host = |vm: usize| if vm.is_multiple_of(3) { vm % hosts } else { 0 };
        let loads = |vm: usize| vec![1 + (vm * 7 % 11) as u64, 1 + (vm * 5 % 3) as u64];
        let guests: Vec<Guest> = (0..vms).map(|vm| Guest { host: host(vm), loads: loads(vm) }).collect();
        Cluster::new(&vec![vec![room(400), room(100)]; hosts], &guests).expect("a cluster of a test")
    }

    /// The best relocation of all, until none helps, every score from the beginning.
    fn greedy(mut cluster: Cluster, weights: &[f64]) -> f64 {
        let score = |cluster: &Cluster| Balance::new(cluster, weights).unwrap().score();
        loop {
            let (hosts, vms) = (cluster.hosts(), cluster.vms());
            let changes = (0..vms).flat_map(|vm| (0..hosts).map(move |to| Move::Relocate { vm, to }));
            let after = |change: Move| {
                let mut cluster = cluster.clone();
                cluster.apply(change);
                score(&cluster)
            };
            let scored =
                changes.filter(|change| cluster.allows(*change)).map(|change| (after(change), change));
            let Some((least, change)) = scored.min_by(|a, b| a.0.total_cmp(&b.0)) else {
                return score(&cluster);
            };
            if least >= score(&cluster) {
                return score(&cluster);
            }
            cluster.apply(change);
        }
    }

    #[test]
    fn climbing_ends_where_the_best_relocation_of_all_no_longer_helps_and_annealing_goes_on() {
        let weights = [1.0, 0.5];
        let effort = Effort { moved_max: 40, proposals: 100_000, seed: 3 };
        let mut search = Search::new(Evenness::new(skewed(5, 40), &weights).unwrap(), effort);
        while matches!(search.state, State::Climbing(_)) {
            search.advance(1);
        }
        assert!(search.done < effort.proposals / CLIMB_PART, "it found the end itself");
        let climbed = search.plan(0.0).score_after;
        assert_eq!(climbed, greedy(skewed(5, 40), &weights));
        while search.advance(1000) {}
        assert!(search.plan(0.0).score_after < climbed * 0.9, "{climbed}");
    }

    #[test]
    fn the_best_of_all_that_was_seen_is_remembered() {
        let effort = Effort { moved_max: 40, proposals: 600, seed: 3 };
        let mut search = Search::new(Evenness::new(skewed(5, 40), &[1.0, 1.0]).unwrap(), effort);
        let mut least = search.score;
        while search.advance(1) {
            least = least.min(search.score);
            assert_eq!(search.best.score, least);
            assert!(search.plan(0.0).score_after <= least);
        }
    }

    #[test]
    fn heat_goes_down_steadily_from_all_of_it() {
        let heats: Vec<f64> = (0..=1000).map(|done| cooled(done, 1000)).collect();
        assert_eq!((heats[0], heats[1000]), (1.0, 0.5f64.powi(12)));
        assert!(heats.is_sorted_by(|a, b| a > b));
    }
}
