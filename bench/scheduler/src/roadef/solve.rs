//! Annealing on two threads, by the clock.
//!
//! ```text
//!   trials                            cooling                       polish
//!   each way for a short time  ---->  the best way,  ------------>  from the best of all,
//!                                     on both threads               on both threads
//! ```
//!
//! One way keeps all rules. The others break them at prices that rise while they are broken and fall while they are not, and only
//! rise at last: where hardly any move is allowed, they go through what is not.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use godwit_scheduler::search::{Model, Prices, Walk};

use super::instance::Instance;
use super::machines::Frame;
use super::model::{RULES, Reassignment};

/// What each thread tries, and these parts of the time.
const TRIALS: [[Way; 2]; 2] = [[Way::Strict, Way::Roaming], [Way::Roaming, Way::Leaning]];
const TRIAL: f64 = 0.07;
const POLISH: f64 = 0.08;
/// The temperature at first, in mean costs of a process at home: a walk that may break rules has more to choose from.
const STRICT_HEAT: f64 = 1.5;
const LENIENT_HEAT: f64 = 5.0;
/// The temperature at the end, and the highest at any time, in mean costs of a process where it cost least so far.
const COOLED: f64 = 0.02;
const HOT: f64 = 16.0;
/// Below what any difference is worth.
const COLD: f64 = 0.05;
/// Moves that are looked at between two looks at the clock.
const PORTION: u64 = 5_000;
/// How often prices are set anew, and when they only rise.
const PRICINGS: f64 = 400.0;
const SETTLING: f64 = 0.85;

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

/// How time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    Wall,
    /// The processor time of each thread: what passes on a machine that does nothing else.
    Processor,
}

/// So much time by a clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) clock: Clock,
    pub(super) time: Duration,
}

impl Limit {
    fn part(self, part: f64) -> Self {
        Self { time: self.time.mul_f64(part), ..self }
    }
}

/// How to cool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Strict,
    /// Breaks rules, and goes anywhere.
    Roaming,
    /// Breaks rules, and rather comes home, where room may be held for those that are away.
    Leaning,
}

/// Uses all of the time.
pub(super) fn solve(instance: &Instance, limit: Limit, seed: u64) -> Solution {
    let frame = Frame::new(instance);
    let start = Reassignment::new(instance, &frame);
    let mut all: Vec<(Way, Found)> = Vec::new();
    let cool = |ways: [Way; 2], part: f64, all: &mut Vec<(Way, Found)>| {
        let seed = seed.wrapping_add(all.len() as u64);
        let found =
            both(|lane| cooled(&start, ways[lane as usize], seed.wrapping_add(lane), limit.part(part)));
        all.extend(ways.into_iter().zip(found));
    };
    TRIALS.into_iter().for_each(|ways| cool(ways, TRIAL, &mut all));
    let way = least(&all).0;
    cool([way; 2], 1.0 - TRIAL * TRIALS.len() as f64 - POLISH, &mut all);
    let best = &least(&all).1;
    let polished = both(|lane| (way, polished(&start, best, seed.wrapping_add(lane), limit.part(POLISH))));
    let proposals = all.iter().chain(&polished).map(|(_, found)| found.proposals).sum();
    let hosts = &least(&polished).1.hosts;
    Solution { assignment: hosts.iter().map(|host| *host as usize).collect(), proposals }
}

/// The one that costs least.
fn least(found: &[(Way, Found)]) -> &(Way, Found) {
    let least = found.iter().min_by(|one, other| one.1.cost.total_cmp(&other.1.cost));
    // Both threads have found something.
    least.expect("what two threads have found")
}

/// From home, hot at first.
fn cooled(start: &Reassignment<'_>, way: Way, seed: u64, limit: Limit) -> Found {
    let walk = Walk::new(start.clone(), start.vms(), seed);
    let heat = |heat: f64| (heat * mean(start.cost(), start)).max(COLD);
    match way {
        Way::Strict => {
            let mut walk = walk.relieving();
            let proposals = anneal(&mut walk, heat(STRICT_HEAT), limit, |_, _, _| ());
            found(&walk, proposals)
        }
        Way::Roaming | Way::Leaning => {
            let mut walk = if way == Way::Roaming { walk.roaming() } else { walk }.large_first();
            let heat = heat(LENIENT_HEAT);
            let (mut prices, mut next) = (Prices::new(RULES, heat), 0.0);
            let proposals = anneal(&mut walk, heat, limit, |walk, progress, temperature| {
                if progress >= next {
                    next += 1.0 / PRICINGS;
                    prices.adjust(&walk.model().broken(), temperature, progress > SETTLING);
                    let prices = std::array::from_fn(|rule| prices.of_rules()[rule]);
                    walk.revise(|model| model.price(Some(prices)));
                }
            });
            found(&walk, proposals)
        }
    }
}

/// From there, no warmer than at the end of cooling.
fn polished(start: &Reassignment<'_>, from: &Found, seed: u64, limit: Limit) -> Found {
    let mut walk = Walk::new(start.clone(), start.vms(), seed);
    walk.go_to(&from.hosts);
    let heat = (COOLED * mean(from.cost, start)).max(COLD);
    let proposals = anneal_to(&mut walk, heat, |_| COLD, limit, |_, _, _| ());
    found(&walk, proposals)
}

/// Of a process.
fn mean(cost: f64, model: &impl Model) -> f64 {
    cost / model.vms().max(1) as f64
}

/// Cools to what suits the best that was found.
fn anneal<M: Model>(
    walk: &mut Walk<M>,
    from: f64,
    limit: Limit,
    meanwhile: impl FnMut(&mut Walk<M>, f64, f64),
) -> u64 {
    anneal_to(walk, from, |walk| (COOLED * mean(walk.best_cost(), walk.model())).max(COLD), limit, meanwhile)
}

/// Cools evenly by the clock to a temperature that may change meanwhile, and lets the caller intervene, who hears the progress, from 0
/// to 1, and the temperature. Returns how many moves were looked at.
fn anneal_to<M: Model>(
    walk: &mut Walk<M>,
    from: f64,
    to: impl Fn(&Walk<M>) -> f64,
    limit: Limit,
    mut meanwhile: impl FnMut(&mut Walk<M>, f64, f64),
) -> u64 {
    let began = Instant::now();
    let now = || match limit.clock {
        Clock::Wall => began.elapsed(),
        Clock::Processor => processor_time(),
    };
    let (start, mut proposals) = (now(), 0);
    let (mut temperature, mut before) = (from, 0.0);
    loop {
        let progress = (now() - start).as_secs_f64() / limit.time.as_secs_f64();
        if progress >= 1.0 {
            return proposals;
        }
        let hottest = (HOT * mean(walk.best_cost(), walk.model())).max(COLD);
        temperature = temperature.min(hottest);
        let end = to(walk).min(temperature);
        temperature *= (end / temperature).powf((progress - before) / (1.0 - before));
        before = progress;
        meanwhile(walk, progress, temperature);
        walk.anneal(temperature, PORTION);
        proposals += PORTION;
    }
}

/// What this thread has been running for; the kernel counts it in nanoseconds.
fn processor_time() -> Duration {
    let counted = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ran = counted.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
    // Kernels have counted it for every thread since 2.6.
    Duration::from_nanos(ran.expect("/proc/thread-self/schedstat"))
}

fn found<M: Model>(walk: &Walk<M>, proposals: u64) -> Found {
    Found { cost: walk.best_cost(), hosts: walk.best_hosts().to_vec(), proposals }
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
