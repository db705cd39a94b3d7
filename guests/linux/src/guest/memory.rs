//! The memory workload: every page is verified against what was written to it last, and then written anew. With every
//! step one more page, anywhere in the working set, is verified: a slow pass must not leave errors undiscovered.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use godwit_guest_contract::page::{Content, PAGE_WORDS, Page, Stamp};
use godwit_guest_contract::params::{Parameters, Rate};

use super::{State, count};

const PAGE_BYTES: u64 = (PAGE_WORDS * size_of::<u64>()) as u64;
/// Pages a second that are read when none is to be rewritten.
const IDLE_CHECKS_PER_SECOND: u64 = 200;
/// How often the paced loops wake up, a second.
const TURNS_PER_SECOND: u64 = 50;
/// How many pages the unpaced loop handles between two looks at the clock.
const UNPACED_TURN_PAGES: u64 = 256;

/// The working set, with the generation that each page is of.
struct WorkingSet<'a> {
    state: &'a State,
    content: Content,
    seed: u64,
    pages: Vec<AlignedPage>,
    generations: Vec<u64>,
    next: usize,
    steps: u64,
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct AlignedPage(Page);

/// Works for ever.
pub(super) fn run(state: &State, parameters: &Parameters) {
    let count = usize::try_from(parameters.working_set / PAGE_BYTES).unwrap_or(usize::MAX).max(1);
    state.memory.working_set_bytes.store(count as u64 * PAGE_BYTES, Relaxed);
    let mut set = WorkingSet {
        state,
        content: parameters.content,
        seed: parameters.seed,
        pages: vec![AlignedPage([0; PAGE_WORDS]); count],
        generations: vec![0; count],
        next: 0,
        steps: 0,
    };
    match parameters.rate {
        Rate::Unlimited => loop {
            set.turn(UNPACED_TURN_PAGES, true);
        },
        Rate::PagesPerSecond(pages) => paced(pages, |turn| set.turn(turn, true)),
        Rate::Idle => {
            set.turn(count as u64, true);
            paced(IDLE_CHECKS_PER_SECOND, |turn| set.turn(turn, false))
        }
    }
}

impl WorkingSet<'_> {
    /// Verifies the next pages, and rewrites them if asked to.
    fn turn(&mut self, pages: u64, rewrite: bool) {
        for _ in 0..pages {
            let page = self.next;
            self.verify(page);
            let other = self.anywhere();
            self.verify(other);
            if rewrite {
                self.generations[page] += 1;
                self.stamp(page).fill(self.content, &mut self.pages[page].0);
            }
            self.next = (page + 1) % self.pages.len();
            if self.next == 0 && rewrite {
                count(&self.state.memory.passes);
            }
        }
    }

    /// A page that differs from step to step (Fibonacci hashing).
    fn anywhere(&mut self) -> usize {
        self.steps += 1;
        (self.steps.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % self.pages.len()
    }

    fn verify(&mut self, page: usize) {
        let stamp = self.stamp(page);
        // Reading a page never written would make the kernel map the zero page, which proves nothing.
        if stamp.generation == 0 {
            return;
        }
        count(&self.state.memory.pages_checked);
        if let Err(fault) = stamp.verify(self.content, &self.pages[page].0) {
            self.state.memory.faults.add(|| format!("memory: {fault}"));
        }
    }

    fn stamp(&self, page: usize) -> Stamp {
        Stamp { page: page as u64, generation: self.generations[page], seed: self.seed }
    }
}

/// Spreads `per_second` evenly over turns. What a slow machine cannot do in its turn is not made up for later.
fn paced(per_second: u64, mut turn: impl FnMut(u64)) {
    let period = Duration::from_secs(1) / TURNS_PER_SECOND as u32;
    let mut due = 0;
    loop {
        let started = Instant::now();
        due += per_second;
        turn(due / TURNS_PER_SECOND);
        due %= TURNS_PER_SECOND;
        thread::sleep(period.saturating_sub(started.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_changed_behind_the_workloads_back_is_counted_and_named() {
        let state = State::default();
        let mut set = WorkingSet {
            state: &state,
            content: Content::Random,
            seed: 7,
            pages: vec![AlignedPage([0; PAGE_WORDS]); 8],
            generations: vec![0; 8],
            next: 0,
            steps: 0,
        };
        set.turn(16, true);
        assert!(state.memory.pages_checked.load(Relaxed) >= 16);
        assert!(state.report().contains("\"errors\":0,\"first_error\":null},\"disk\""), "{}", state.report());
        set.pages[5].0[100] ^= 1;
        set.turn(8, false);
        let report = state.report();
        assert!(report.contains("\"first_error\":\"memory: page 5"), "{report}");
    }
}
