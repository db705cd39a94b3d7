//! Walks that cool side by side, of which those that do well take the places of those that do not (population annealing, Hukushima and
//! Iba 2003).
//!
//! Where hardly any move is allowed, how good the end is has been settled long before it, while it was hot: one walk ends ten per cent
//! above another, and walking ten times as slowly does not help. So many walk, fast, and what is settled badly is left behind.

use godwit_scheduler::random::split_mix;
use godwit_scheduler::search::{Prices, Walk};

use super::model::{RULES, Reassignment};

/// How strongly the better are preferred: 1 keeps the members spread as they would be if they cooled slowly, and leaves too few that
/// differ where they are few.
const PREFERENCE: f64 = 0.3;

/// See the module.
#[derive(Debug)]
pub(super) struct Flock<'a> {
    members: Vec<Member<'a>>,
    /// The temperature when members were last replaced.
    temperature: f64,
    chance: u64,
}

/// A walk, and what it costs to break rules on its way, if any may be broken.
#[derive(Debug, Clone)]
pub(super) struct Member<'a> {
    pub(super) walk: Walk<Reassignment<'a>>,
    pub(super) prices: Option<Prices>,
}

impl<'a> Flock<'a> {
    /// At this temperature. Each member should have a chance of its own.
    pub(super) fn new(members: Vec<Member<'a>>, temperature: f64, seed: u64) -> Self {
        Self { members, temperature, chance: seed }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The walk that came to the least cost of all, which may not be where it is now.
    pub(super) fn best(&self) -> &Walk<Reassignment<'a>> {
        let walks = self.members.iter().map(|member| &member.walk);
        // A flock has members.
        walks.min_by(|one, other| one.best_cost().total_cmp(&other.best_cost())).expect("a member")
    }

    /// Lets each look at so many moves.
    pub(super) fn anneal(&mut self, temperature: f64, proposals: u64) {
        self.members.iter_mut().for_each(|member| member.walk.anneal(temperature, proposals));
    }

    /// Sets the prices of rules anew, by whether they are broken.
    pub(super) fn price(&mut self, temperature: f64, is_settling: bool) {
        for Member { walk, prices } in &mut self.members {
            let Some(prices) = prices else { continue };
            prices.adjust(&walk.model().broken(), temperature, is_settling);
            let prices: [f64; RULES] = std::array::from_fn(|rule| prices.of_rules()[rule]);
            walk.revise(|model| {
                model.press();
                model.price(Some(prices));
            });
        }
    }

    /// Puts copies of members that cost little in the places of some that cost much, now that it is so much colder.
    pub(super) fn replace(&mut self, temperature: f64) {
        let colder = (1.0 / temperature - 1.0 / self.temperature) * PREFERENCE;
        self.temperature = temperature;
        let costs: Vec<f64> = self.members.iter().map(|member| member.walk.cost()).collect();
        let offset = split_mix(&mut self.chance) as f64 / 2f64.powi(64);
        let copies = copies(&costs, colder, offset);
        let mut left: Vec<usize> = (0..copies.len()).filter(|at| copies[*at] == 0).collect();
        for (at, copies) in copies.into_iter().enumerate() {
            for _ in 1..copies {
                // As many are left as there are copies to be made.
                let place = left.pop().expect("a place");
                self.members[place] = self.members[at].clone();
                self.members[place].walk.reseed(split_mix(&mut self.chance));
            }
        }
    }
}

/// How many of each there are to be, as many as before in all: on average in proportion to e^(-cost * colder), rounded by one number by
/// chance from 0 to 1 for all (systematic resampling).
fn copies(costs: &[f64], colder: f64, offset: f64) -> Vec<usize> {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = costs.iter().map(|cost| (-(cost - least) * colder).exp()).collect();
    let all: f64 = weights.iter().sum();
    let (mut sum, mut given) = (0.0, 0);
    let mut copies: Vec<usize> = Vec::with_capacity(costs.len());
    for weight in &weights {
        sum += weight / all * costs.len() as f64;
        // Those whose number lies below, as whole numbers from the offset on.
        let below = ((sum - offset).ceil().max(0.0) as usize).min(costs.len());
        copies.push(below.saturating_sub(given));
        given = given.max(below);
    }
    // Sums of parts may miss the whole by their last bits.
    if let Some(last) = copies.last_mut() {
        *last += costs.len() - given;
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_before_and_more_of_those_that_cost_less() {
        assert_eq!(copies(&[5.0, 5.0, 5.0], 1.0, 0.4), [1, 1, 1]);
        // e^-2 of the other.
        assert_eq!(copies(&[1.0, 3.0], 1.0, 0.5), [2, 0]);
        assert_eq!(copies(&[1.0, 3.0], 1.0, 0.9), [1, 1]);
        assert_eq!(copies(&[9.0, 1e9, 8.0, 1e9], 1.0, 0.3), [1, 0, 3, 0]);
        assert_eq!(copies(&[7.0], 1e9, 0.99), [1]);
        for offset in (0..100).map(|hundredth| f64::from(hundredth) / 100.0) {
            let costs: Vec<f64> = (0..32).map(|member| f64::from(member * 7 % 32)).collect();
            assert_eq!(copies(&costs, 0.1, offset).iter().sum::<usize>(), 32);
        }
    }
}
