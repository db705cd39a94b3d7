//! Looks for places in which a [`Model`] costs less, within a budget of VMs that move.
//!
//! ```text
//!               nothing helps, or a part of the proposals is made                 all proposals are made
//!   climbing ------------------------------------------------------> annealing ----------------------------> done
//!   or descending                                relocations and swaps at random; one that makes it worse
//!                                                is made too, the rarer the worse it is and the later
//! ```
//!
//! Descending takes moves from hosts that bear much to hosts that bear little, as the model says: first those that are worth most, if
//! there are any, then those that are worth half as much, and so on. It needs no look at all moves there are, so it does for clusters of any
//! size. A model that does not say what hosts bear is climbed: the best of all relocations, again and again; and where the
//! proposals are too few for that, annealed from the start.
//!
//! The best places so far are a plan at any time. Work is counted in proposals, moves that are looked at, and the caller has the
//! clock. The same model, effort and seed give the same plan, however the proposals are portioned.

mod evenness;
mod model;
mod placement;
mod plan;
mod prices;
mod propose;
mod reach;
mod walk;

pub use evenness::Evenness;
pub use model::Model;
pub use plan::{Plan, Step};
pub use prices::{Pressure, Prices};
pub use reach::Reach;
pub use walk::Walk;

use self::placement::Placement;
use crate::cluster::Move;

/// Climbing may take this part of the proposals, and descending this.
const CLIMB_PART: u64 = 4;
const DESCENT_PART: u64 = 2;
/// What a move must be worth halves if fewer than one of so many was, of at least so many that were looked at, and so many times.
const DESCENT_STALLED: u64 = 50;
const DESCENT_LOOKS: u64 = 4096;
const DESCENT_HALVINGS: i32 = 6;
/// The temperature at first, as a part of the cost that is left then, no more than this part of what it is for each VM, and how often
/// it halves until the end.
const HEAT: f64 = 1.0 / 2.0;
const HEAT_OF_A_VM: f64 = 16.0;
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
    walk: Walk<M>,
    done: u64,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Climbing(Scan),
    Descending(Descent),
    Annealing { since: u64, heat: f64, temperature: f64 },
    Done,
}

impl State {
    fn annealing(since: u64, score: f64, vms: usize) -> Self {
        let heat = score * HEAT.min(HEAT_OF_A_VM / vms as f64);
        Self::Annealing { since, heat, temperature: heat }
    }
}

/// How many moves have been looked at since the last halving, how many of them were made, what a move must be worth, and down to
/// what that goes.
#[derive(Debug, Clone, Default)]
struct Descent {
    looked: u64,
    made: u64,
    worth: f64,
    least: f64,
}

impl Descent {
    /// If each move that is left were worth as much, nothing would be left to do.
    fn new(cost: f64, moves: usize) -> Self {
        let worth = cost / moves as f64;
        Self { looked: 0, made: 0, worth, least: worth / f64::from(1 << DESCENT_HALVINGS) }
    }
}

/// How far all relocations have been looked at, and the best of them.
#[derive(Debug, Clone, Default)]
struct Scan {
    next: usize,
    best: Option<(f64, Move)>,
}

impl<M: Model> Search<M> {
    /// Nothing has been looked at yet.
    pub fn new(model: M, effort: Effort) -> Self {
        let (hosts, vms, score) = (model.hosts(), model.vms(), model.cost());
        let state = if hosts < 2 || vms == 0 || effort.moved_max == 0 {
            State::Done
        } else if model.strain(0).is_some() {
            State::Descending(Descent::new(score, effort.moved_max.min(vms)))
        } else if (hosts * vms) as u64 <= effort.proposals / CLIMB_PART {
            State::Climbing(Scan::default())
        } else {
            State::annealing(0, score, vms)
        };
        Self {
            effort,
            start: Placement::new(model.clone()),
            walk: Walk::new(model, effort.moved_max, effort.seed),
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
                State::Descending(descent) => {
                    let descent = std::mem::take(descent);
                    self.state = self.descend(descent);
                }
                State::Annealing { since, heat, temperature } => {
                    let done = self.done - *since;
                    if done.is_multiple_of(STEADY) {
                        *temperature = *heat * cooled(done, self.effort.proposals - *since);
                    }
                    let temperature = *temperature;
                    self.walk.anneal(temperature, 1);
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
        Plan::new(self.start.clone(), &self.walk.best_places(), gain_min)
    }

    /// Looks at one move that relieves a host. After so many of which too few were worth it, they may be worth less.
    fn descend(&mut self, mut descent: Descent) -> State {
        descent.looked += 1;
        descent.made += u64::from(self.walk.relieve(descent.worth));
        let vms = self.walk.model().vms();
        let is_spent = self.walk.budget_left() == 0 || self.done > self.effort.proposals / DESCENT_PART;
        if is_spent || descent.worth < descent.least {
            return State::annealing(self.done + 1, self.walk.cost(), vms);
        }
        if descent.looked == (vms as u64).max(DESCENT_LOOKS) {
            let worth = if descent.made * DESCENT_STALLED < descent.looked {
                descent.worth / 2.0
            } else {
                descent.worth
            };
            descent = Descent { looked: 0, made: 0, worth, ..descent };
        }
        State::Descending(descent)
    }

    /// Looks at the next relocation, and makes the best after the last.
    fn climb(&mut self, mut scan: Scan) -> State {
        let (hosts, vms) = (self.walk.model().hosts(), self.walk.model().vms());
        let change = Move::Relocate { vm: scan.next / hosts, to: scan.next % hosts };
        let least = scan.best.map_or(self.walk.cost(), |(score, _)| score);
        if let Some(score) = self.walk.look(change).filter(|score| *score < least) {
            scan.best = Some((score, change));
        }
        scan.next += 1;
        if scan.next < hosts * vms && self.done < self.effort.proposals / CLIMB_PART {
            return State::Climbing(scan);
        }
        match scan.best {
            Some((score, change)) => {
                self.walk.make(score, change);
                State::Climbing(Scan::default())
            }
            None => State::annealing(self.done + 1, self.walk.cost(), vms),
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

    /// A model that has no hint to give.
    #[derive(Clone)]
    struct Plain(Evenness);

    impl Model for Plain {
        fn hosts(&self) -> usize {
            self.0.hosts()
        }

        fn vms(&self) -> usize {
            self.0.vms()
        }

        fn host_of(&self, vm: usize) -> usize {
            self.0.host_of(vm)
        }

        fn guests(&self, host: usize) -> &[u32] {
            self.0.guests(host)
        }

        fn cost(&self) -> f64 {
            self.0.cost()
        }

        fn look(&self, change: Move) -> Option<f64> {
            self.0.look(change)
        }

        fn apply(&mut self, change: Move) {
            self.0.apply(change);
        }
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
        let mut search = Search::new(Plain(Evenness::new(skewed(5, 40), &weights).unwrap()), effort);
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
    fn descending_takes_what_is_worth_most_first_and_needs_few_looks() {
        let model = Evenness::new(skewed(20, 400), &[1.0, 1.0]).unwrap();
        let start = model.cost();
        let effort = Effort { moved_max: 400, proposals: 200_000, seed: 3 };
        let mut search = Search::new(model, effort);
        let mut worth = f64::INFINITY;
        while let State::Descending(descent) = &search.state {
            assert!(descent.worth <= worth, "it only goes down");
            worth = descent.worth;
            let before = search.walk.cost();
            search.advance(1);
            let gain = before - search.walk.cost();
            assert!(gain == 0.0 || gain > worth * 0.999, "{gain} {worth}");
        }
        let cost = search.walk.cost();
        assert!(search.done < 50_000, "{}", search.done);
        assert!(cost < start / 5.0, "{start} {cost}");
    }

    #[test]
    fn the_best_of_all_that_was_seen_is_remembered() {
        let effort = Effort { moved_max: 40, proposals: 600, seed: 3 };
        let mut search = Search::new(Evenness::new(skewed(5, 40), &[1.0, 1.0]).unwrap(), effort);
        let mut least = search.walk.cost();
        while search.advance(1) {
            least = least.min(search.walk.cost());
            assert_eq!(search.walk.best_cost(), least);
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
