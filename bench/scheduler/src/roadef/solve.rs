//! Annealing on two threads, by the clock.
//!
//! ```text
//!   cooling                                  polish
//!   strict on one thread,  --------------->  from the better of the two,
//!   lenient on the other                     on both threads
//! ```
//!
//! The strict way keeps to what machines have. The lenient one lets them hold more, at a price that rises until none does: where
//! machines are so full that hardly any move is allowed, it goes through what is not.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use godwit_scheduler::search::{Model, Walk};

use super::instance::Instance;
use super::model::{Frame, Reassignment};

/// This part of the time.
const POLISH: f64 = 0.08;
/// The temperature at first, in mean costs of a process; what cooling leaves of it; and where polishing ends.
const HEAT: f64 = 5.0;
const COOLED: f64 = 1.0 / 500.0;
const COLD: f64 = 1.0;
/// Moves that are looked at between two looks at the clock.
const PORTION: u64 = 5_000;
/// How often the price is set anew, the part of the machines that may hold too much at first, and until when in the cooling.
const PRICINGS: f64 = 200.0;
const OVER_FULL: f64 = 0.5;
const OVER_FULL_UNTIL: f64 = 0.85;
/// For a unit of a resource: far dearer than any load, and sums of it stay exact.
const PRICE_MAX: f64 = 1e6;

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

/// Uses all of the time.
pub(super) fn solve(instance: &Instance, limit: Limit, seed: u64) -> Solution {
    let frame = Frame::new(instance);
    let start = Reassignment::new(instance, &frame);
    let mean = (start.cost() / start.vms().max(1) as f64).max(COLD);
    let cooling = limit.part(1.0 - POLISH);
    let [strict, lenient] = both(|lane| match lane {
        0 => strict(&start, seed, mean * HEAT, cooling),
        _ => lenient(&start, instance, seed, mean * HEAT, cooling),
    });
    let proposals = strict.proposals + lenient.proposals;
    let best = if strict.cost <= lenient.cost { strict } else { lenient };
    let polished = both(|lane| {
        let mut walk = Walk::new(start.clone(), start.vms(), seed.wrapping_add(1 + lane));
        walk.go_to(&best.hosts);
        let proposals = anneal(&mut walk, mean * HEAT * COOLED, COLD, limit.part(POLISH), |_, _| ());
        found(&walk, proposals)
    });
    let proposals = proposals + polished.iter().map(|found| found.proposals).sum::<u64>();
    let [one, other] = polished;
    let best = if one.cost <= other.cost { one } else { other };
    Solution { assignment: best.hosts.iter().map(|host| *host as usize).collect(), proposals }
}

fn strict(start: &Reassignment<'_>, seed: u64, heat: f64, limit: Limit) -> Found {
    let mut walk = Walk::new(start.clone(), start.vms(), seed).relieving();
    let proposals = anneal(&mut walk, heat, heat * COOLED, limit, |_, _| ());
    found(&walk, proposals)
}

fn lenient(start: &Reassignment<'_>, instance: &Instance, seed: u64, heat: f64, limit: Limit) -> Found {
    let mut walk = Walk::new(start.clone(), start.vms(), seed).roaming();
    let needs = mean_needs(instance);
    let machines = instance.machines.len() as f64;
    // What it costs to hold too much by what a process needs on average.
    let mut price = heat / 2.0;
    let mut next = 0.0;
    let mut is_strict = false;
    let proposals = anneal(&mut walk, heat, heat * COOLED, limit, |walk, progress| {
        if progress < next || is_strict {
            return;
        }
        next += 1.0 / PRICINGS;
        let over_full = walk.model().over_full() as f64;
        is_strict = over_full == 0.0 && progress > OVER_FULL_UNTIL;
        let most = machines * OVER_FULL * (1.0 - progress / OVER_FULL_UNTIL).max(0.0);
        price *= if over_full > most { 1.1 } else { 0.96 };
        let prices = needs.iter().map(|needs| (price / needs).clamp(1.0, PRICE_MAX) as i64).collect();
        walk.revise(|model| model.price((!is_strict).then_some(prices)));
    });
    Found { cost: if is_strict { walk.best_cost() } else { f64::INFINITY }, ..found(&walk, proposals) }
}

/// Cools evenly by the clock, and lets the caller intervene. Returns how many moves were looked at.
fn anneal<M: Model>(
    walk: &mut Walk<M>,
    from: f64,
    to: f64,
    limit: Limit,
    mut meanwhile: impl FnMut(&mut Walk<M>, f64),
) -> u64 {
    let began = Instant::now();
    let now = || match limit.clock {
        Clock::Wall => began.elapsed(),
        Clock::Processor => processor_time(),
    };
    let (start, mut proposals) = (now(), 0);
    loop {
        let progress = (now() - start).as_secs_f64() / limit.time.as_secs_f64();
        if progress >= 1.0 {
            return proposals;
        }
        meanwhile(walk, progress);
        walk.anneal(from * (to / from).powf(progress), PORTION);
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

/// What a process needs of each resource, at least 1.
fn mean_needs(instance: &Instance) -> Vec<f64> {
    let count = instance.processes.len().max(1) as f64;
    let sum = |resource: usize| {
        instance.processes.iter().map(|process| process.needs[resource] as f64).sum::<f64>()
    };
    (0..instance.resources.len()).map(|resource| (sum(resource) / count).max(1.0)).collect()
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
