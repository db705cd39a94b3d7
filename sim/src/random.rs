//! A seed draws the rules, the faults and the order of all steps.

use std::mem::discriminant;

use crate::rules::{Commit, Protocol, Rules};
use crate::shrink::{self, Failure};
use crate::world::{Choice, Fault, Violation, World};

const PAGES: usize = 6;
/// Faults of one run, at most; a third of the runs has none.
const FAULTS_MAX: u64 = 4;
/// Faults come within so many steps; an undisturbed run takes about as many.
const FAULT_STEPS: u64 = 260;
/// The network's faults while memory follows the guest, at most: a short time that others seldom meet.
const FOLLOWING_FAULTS_MAX: u32 = 4;
/// Steps after which the faults stop and everybody only goes on.
const STEPS_MAX: usize = 1200;

/// What guests write that may be slowed for it: from less than the link mostly carries to much more.
const WRITES_PAGES_PER_MS: [u16; 3] = [1, 10, 1000];

/// A small generator of numbers (xorshift64*), for nothing but variety.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // splitmix64, so that neighbouring seeds have nothing in common.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One run to its end.
#[derive(Debug)]
pub struct Run {
    pub rules: Rules,
    /// Before the first step.
    pub begin: World,
    /// What was drawn; everybody only goes on afterwards.
    pub steps: Vec<Choice>,
    pub faults: u32,
    pub world: World,
    pub violation: Option<Violation>,
}

impl Run {
    /// What went wrong with the fewest steps that still lead to it.
    pub fn shrink(&self) -> Option<Failure> {
        let violation = self.violation.clone()?;
        Some(shrink::shrink(&self.begin, &self.steps, violation))
    }
}

/// Runs a seed under a protocol.
pub fn run(seed: u64, protocol: Protocol, commit: Commit) -> Run {
    let mut random = Random::new(seed);
    let shared_locks = random.below(2) == 0;
    let slow_calls = random.below(4) == 0;
    // Drawn apart, so that a run without it is what it was before.
    let post_copy = protocol == Protocol::TrustSent || Random::new(!seed).below(3) == 0;
    let mut writes = Random::new(seed.rotate_left(32));
    let slows = protocol == Protocol::NeverLift || writes.below(4) == 0;
    let rules = Rules {
        protocol,
        commit,
        shared_locks,
        slow_calls,
        grants_outlive_sources: false,
        post_copy,
        slowdown_percent_max: if slows { 1 + writes.below(99) as u8 } else { 0 },
        writes_pages_per_ms: if slows { writes.pick(&WRITES_PAGES_PER_MS) } else { 0 },
    };
    let planned = random.below(FAULTS_MAX + 2).saturating_sub(1);
    let mut plan: Vec<u64> = (0..planned).map(|_| random.below(FAULT_STEPS)).collect();
    plan.sort_unstable_by(|one, other| other.cmp(one));
    let disturbed = !plan.is_empty();
    let mut following = if disturbed && post_copy { FOLLOWING_FAULTS_MAX } else { 0 };
    let world = World::new(rules, PAGES);
    let mut run = Run { rules, begin: world.clone(), steps: Vec::new(), faults: 0, world, violation: None };
    while run.steps.len() < STEPS_MAX && (!plan.is_empty() || !run.world.is_settled()) {
        let struck = plan.last().is_some_and(|at| *at <= run.steps.len() as u64);
        let choice = if following > 0 && run.world.lacks_memory() && random.below(6) == 0 {
            following -= 1;
            run.faults += 1;
            draw_fault_of(&mut random, &run.world, Fault::is_of_the_network)
        } else if struck {
            plan.pop();
            run.faults += 1;
            draw_fault(&mut random, &run.world)
        } else {
            draw(&mut random, &run.world, disturbed)
        };
        run.steps.push(choice);
        if let Err(violation) = run.world.apply(choice) {
            run.violation = Some(violation);
            return run;
        }
    }
    run.violation = run.world.finish(|_, _| ()).err();
    run
}

fn draw_fault(random: &mut Random, world: &World) -> Choice {
    draw_fault_of(random, world, |_| true)
}

/// A fault of those wanted, if any can strike now.
fn draw_fault_of(random: &mut Random, world: &World, wanted: impl Fn(&Fault) -> bool) -> Choice {
    let mut open = world.faults();
    if open.iter().any(&wanted) {
        open.retain(wanted);
    }
    // First the kind, or the many ways to cut would drown the rest.
    let mut kinds: Vec<Fault> = Vec::new();
    for fault in &open {
        if !kinds.iter().any(|kind| discriminant(kind) == discriminant(fault)) {
            kinds.push(*fault);
        }
    }
    let kind = random.pick(&kinds);
    let alike: Vec<Fault> =
        open.into_iter().filter(|fault| discriminant(fault) == discriminant(&kind)).collect();
    Choice::Fault(random.pick(&alike))
}

fn draw(random: &mut Random, world: &World, disturbed: bool) -> Choice {
    let mut open = world.choices();
    // An undisturbed manager does not lose patience, and a disturbed one seldom does.
    if !disturbed || random.below(20) != 0 {
        open.retain(|choice| *choice != Choice::Poll { late: true });
    }
    let idle = open.iter().all(|choice| matches!(choice, Choice::Poll { .. } | Choice::Hear | Choice::Sync));
    let guest = world.guest_choices();
    let reports: Vec<Choice> = world.reports().collect();
    match random.below(12) {
        0 if !guest.is_empty() => random.pick(&guest),
        1 if !reports.is_empty() => random.pick(&reports),
        // Somebody's deadline fires, before whatever else might have happened.
        2 | 3 if idle && disturbed => {
            let deadlines: Vec<Choice> =
                world.times().into_iter().filter(|time| matches!(time, Choice::Deadline(_))).collect();
            if deadlines.is_empty() {
                Choice::Tick { ms: 1 + random.below(200) as u16 }
            } else {
                random.pick(&deadlines)
            }
        }
        2..=4 if idle => Choice::Tick { ms: 1 + random.below(200) as u16 },
        5 => Choice::Tick { ms: 1 + random.below(5) as u16 },
        _ if !open.is_empty() => random.pick(&open),
        _ => Choice::Tick { ms: 1 + random.below(50) as u16 },
    }
}
