//! Annealing on two threads, by the clock.
//!
//! ```text
//!   trials                            cooling                       polish
//!   each way for a short time  ---->  the best way, in flocks  -->  from the best of all,
//!                                     on both threads               on both threads
//! ```
//!
//! One way keeps all rules. The others break them at prices that rise while they are broken and fall while they are not, and only
//! rise at last: where hardly any move is allowed, they go through what is not.

use std::thread;

use godwit_scheduler::search::{Model, Prices, Walk};

use super::clock::Cooling;
pub(super) use super::clock::{Clock, Limit};
use super::flock::{Flock, Member};
use super::instance::Instance;
use super::machines::Frame;
use super::model::{RULES, Reassignment};

/// What each thread tries, with so many members, and these parts of the time. One that leans comes to no end that is allowed now and
/// then, where that is hard; of four hardly ever all.
const TRIALS: [([Way; 2], u64); 2] = [([Way::Strict, Way::Roaming], 1), ([Way::Leaning, Way::Leaning], 4)];
const TRIAL: f64 = 0.06;
const POLISH: f64 = 0.05;
/// Two ways of which one ends no higher than so many times the other are both gone.
const ALIKE: f64 = 1.01;
/// The temperature at the end, and the highest from such a part of the time on, in mean costs of a process where it cost least so
/// far: what is left of the cost may be in one place, which takes heat to mend.
const COOLED: f64 = 0.02;
const HOT: f64 = 16.0;
const HOT_UNTIL: f64 = 0.4;
/// Below what any difference is worth.
const COLD: f64 = 0.05;
/// Moves that are looked at between two looks at the clock.
const PORTION: u64 = 5_000;
/// How often prices are set anew, and when they only rise.
const PRICINGS: f64 = 400.0;
const SETTLING: f64 = 0.85;
/// A process is moved by chance once the temperature is such a part of its size. Which is better for those that lean home differs
/// between instances, and within a flock it shows.
const OF_SIZE: f64 = 0.25;
const OF_SIZE_LEANING: [f64; 2] = [0.25, 1.0];
/// How often members of a flock are replaced, and how many there are at most.
const REPLACEMENTS: f64 = 50.0;
const MEMBERS_MAX: u64 = 32;

/// The best assignment of all, and how many moves were looked at.
#[derive(Debug)]
pub(super) struct Solution {
    pub(super) assignment: Vec<usize>,
    pub(super) proposals: u64,
}

/// Where a thread has come to. It costs infinitely much if it is not allowed.
#[derive(Debug)]
struct Found {
    cost: f64,
    hosts: Vec<u32>,
    proposals: u64,
}

/// How to cool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Strict,
    /// Breaks rules, and goes anywhere.
    Roaming,
    /// Breaks rules, and rather comes home, where room may be held for those that are away: so it does not begin so hot that
    /// everybody leaves.
    Leaning,
}

impl Way {
    /// The temperature at first, in mean costs of a process at home.
    fn heat(self) -> f64 {
        match self {
            Self::Strict => 1.5,
            Self::Roaming => 5.0,
            Self::Leaning => 1.0,
        }
    }

    /// The moves, for each process, that a member of a flock should look at: fewer on one thread than on the other. What is better,
    /// many members or members that cool slowly, differs between instances.
    fn worth(self) -> [u64; 2] {
        match self {
            Self::Strict | Self::Roaming => [60_000, 120_000],
            Self::Leaning => [5_000, 20_000],
        }
    }

    /// One of a flock, which are called by numbers.
    fn member<'a>(self, start: &Reassignment<'a>, heat: f64, number: u64, seed: u64) -> Member<'a> {
        let walk = Walk::new(start.clone(), start.vms(), seed);
        let prices = (self != Self::Strict).then(|| Prices::new(RULES, heat));
        let walk = match self {
            Self::Strict => walk.relieving(),
            Self::Roaming => walk.roaming().large_first(OF_SIZE),
            Self::Leaning => walk.large_first(OF_SIZE_LEANING[number as usize % OF_SIZE_LEANING.len()]),
        };
        Member { walk, prices }
    }
}

/// Uses all of the time.
pub(super) fn solve(instance: &Instance, limit: Limit, seed: u64) -> Solution {
    let frame = Frame::new(instance);
    let start = Reassignment::new(instance, &frame);
    let mut all: Vec<(Way, Found)> = Vec::new();
    let cool = |ways: [Way; 2], members: [u64; 2], part: f64, all: &mut Vec<(Way, Found)>| {
        let seed = seed.wrapping_add(all.len() as u64);
        let found = both(|lane| {
            cooled(
                &start,
                ways[lane as usize],
                members[lane as usize],
                seed.wrapping_add(lane),
                limit.part(part),
            )
        });
        all.extend(ways.into_iter().zip(found));
    };
    TRIALS.into_iter().for_each(|(ways, members)| cool(ways, [members; 2], TRIAL, &mut all));
    // Both threads have found something, here and below.
    let best = least(&all).expect("what two threads have tried");
    let part = 1.0 - TRIAL * TRIALS.len() as f64 - POLISH;
    let affordable = (best.1.proposals as f64 * part / TRIAL) as u64;
    let members = |worth: u64| (affordable / (worth * start.vms().max(1) as u64)).clamp(1, MEMBERS_MAX);
    let ways = [best.0, runner_up(&all, best).unwrap_or(best.0)];
    let members = std::array::from_fn(|lane| members(ways[lane].worth()[lane]));
    cool(ways, members, part, &mut all);
    let (way, best) = least(&all).expect("what two threads have cooled");
    let polished = both(|lane| (*way, polished(&start, best, seed.wrapping_add(lane), limit.part(POLISH))));
    let proposals = all.iter().chain(&polished).map(|(_, found)| found.proposals).sum();
    let hosts = &least(&polished).expect("what two threads have polished").1.hosts;
    Solution { assignment: hosts.iter().map(|host| *host as usize).collect(), proposals }
}

/// The one that costs least.
fn least<'f>(found: impl IntoIterator<Item = &'f (Way, Found)>) -> Option<&'f (Way, Found)> {
    found.into_iter().min_by(|one, other| one.1.cost.total_cmp(&other.1.cost))
}

/// The way that ended next to the best one, if it ended about as low.
fn runner_up(found: &[(Way, Found)], (way, best): &(Way, Found)) -> Option<Way> {
    let (next_way, next) = least(found.iter().filter(|(other, _)| other != way))?;
    (next.cost <= best.cost * ALIKE).then_some(*next_way)
}

/// From home, hot at first, with so many members.
fn cooled(start: &Reassignment<'_>, way: Way, members: u64, seed: u64, limit: Limit) -> Found {
    let heat = (way.heat() * mean(start.cost(), start)).max(COLD);
    // Seeds of members, which are few, and of threads do not meet.
    let member = |number: u64| way.member(start, heat, number, seed.wrapping_add(number << 32));
    anneal(Flock::new((0..members).map(member).collect(), heat, seed), heat, COOLED, limit)
}

/// From there, no warmer than at the end of cooling.
fn polished(start: &Reassignment<'_>, from: &Found, seed: u64, limit: Limit) -> Found {
    let mut member = Member { walk: Walk::new(start.clone(), start.vms(), seed), prices: None };
    member.walk.go_to(&from.hosts);
    let heat = (COOLED * mean(from.cost, start)).max(COLD);
    anneal(Flock::new(vec![member], heat, seed), heat, 0.0, limit)
}

/// Of a process.
fn mean(cost: f64, model: &impl Model) -> f64 {
    cost / model.vms().max(1) as f64
}

/// Cools evenly by the clock, to such a part of the mean cost of a process where it cost least.
fn anneal(mut flock: Flock<'_>, from: f64, to: f64, limit: Limit) -> Found {
    let mut cooling = Cooling::new(from, limit);
    let (mut proposals, mut pricing, mut replacement) = (0, 0.0, 0.0);
    let mut hottest = f64::INFINITY;
    loop {
        let best = flock.best();
        let mean = mean(best.best_cost(), best.model());
        let Some((progress, temperature)) = cooling.advance(hottest, (to * mean).max(COLD)) else {
            return Found { cost: best.best_cost(), hosts: best.best_hosts().to_vec(), proposals };
        };
        if progress > HOT_UNTIL {
            hottest = (HOT * mean).max(COLD);
        }
        if progress >= pricing {
            pricing += 1.0 / PRICINGS;
            flock.price(temperature, progress > SETTLING);
        }
        if progress >= replacement {
            replacement += 1.0 / REPLACEMENTS;
            flock.replace(temperature);
        }
        flock.anneal(temperature, PORTION);
        proposals += PORTION * flock.len() as u64;
    }
}

/// The same on two threads, which know their number.
fn both<T: Send>(work: impl Fn(u64) -> T + Sync) -> [T; 2] {
    thread::scope(|scope| {
        let other = scope.spawn(|| work(1));
        let one = work(0);
        // It panics if that thread has.
        [one, other.join().expect("a thread of the search")]
    })
}
