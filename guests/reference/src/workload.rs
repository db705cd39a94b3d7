//! The memory workload: each vCPU rewrites its share of the working set, and checks it all the time.
//!
//! Every page is checked in three ways: it must be, byte for byte, the page of its number and generation; its generation
//! is kept in a table apart; and since a pass writes each page once, the table must agree with the number of passes.
//! The first pass gives every page its content; with `godwit.hot` those after it write the first pages only.

use core::sync::atomic::{AtomicU64, Ordering};

use godwit_guest_contract::Pacer;
use godwit_guest_contract::page::{Content, Page, Stamp};
use godwit_guest_contract::params::{Parameters, Rate};

use crate::clock::{self, Micros};
use crate::fault;
use crate::memory::{Memory, Pages};

/// Most pages checked a second by each vCPU, beside those that it is about to rewrite; of a small share no more than it has.
const CHECKS_PER_SECOND_MAX: u64 = 8000;
/// Most pages, and most TSC ticks, between two looks at everything else, so that the network does not wait: not even
/// when each page's first touch takes its time, as after a post-copy.
const BATCH_PAGES: u64 = 16;
const BATCH_TICKS: u64 = 200_000;

/// How often somebody has asked for a sweep: every page checked once, as fast as can be.
static SWEEPS_WANTED: AtomicU64 = AtomicU64::new(0);

/// Asks for a sweep of every vCPU.
pub fn sweep() {
    SWEEPS_WANTED.fetch_add(1, Ordering::Relaxed);
}

/// What a vCPU has done, for the report.
pub struct Tally {
    written: AtomicU64,
    checked: AtomicU64,
    sweeps: AtomicU64,
}

impl Tally {
    pub const fn new() -> Self {
        Self { written: AtomicU64::new(0), checked: AtomicU64::new(0), sweeps: AtomicU64::new(0) }
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    pub fn sweeps(&self) -> u64 {
        self.sweeps.load(Ordering::Relaxed)
    }
}

/// One vCPU's share of the working set.
pub struct Share {
    pages: Pages,
    /// How often each page has been written. 0: not yet, or found wrong; its content means nothing.
    generations: &'static mut [u64],
    content: Content,
    seed: u64,
    rate: Rate,
    writes: Pacer,
    checks: Pacer,
    /// Passes completed, how many pages the present one covers, and how far it is.
    pass: u64,
    span: usize,
    position: usize,
    next_write: usize,
    /// Distance of successive writes: coprime to the pass's number of pages, so that it meets each page once.
    stride: usize,
    /// How many pages all passes but the first cover.
    hot: usize,
    next_check: usize,
    /// Sweeps completed, and how far the present one is.
    sweeps: u64,
    swept: usize,
    random: u64,
    written: u64,
    checked: u64,
}

impl Share {
    /// Takes the share of vCPU `index` of `count` from memory; `None` if there is not enough.
    pub fn new(parameters: &Parameters, index: u64, count: u64, memory: &mut Memory) -> Option<Self> {
        let part = |whole: u64| whole / count + u64::from(index < whole % count);
        let length = part(parameters.working_set / 4096) as usize;
        // SAFETY: zeroes are valid numbers.
        let generations = unsafe { memory.zeroed(length) }?;
        let hot = parameters.hot.map_or(length, |hot| (part(hot / 4096) as usize).clamp(1, length.max(1)));
        let writes = parameters.writers.is_none_or(|writers| index < writers);
        let rate = if writes { parameters.rate } else { Rate::Idle };
        let per_second = match rate {
            Rate::PagesPerSecond(rate) => part(rate),
            Rate::Idle | Rate::Unlimited => 0,
        };
        Some(Self {
            pages: memory.pages(length)?,
            generations,
            content: parameters.content,
            seed: parameters.seed,
            rate,
            writes: Pacer::new(per_second, 0).with_burst(parameters.burst_us),
            checks: Pacer::new(CHECKS_PER_SECOND_MAX.min(length as u64), 0),
            pass: 0,
            span: length,
            position: 0,
            next_write: 0,
            stride: stride(length),
            hot,
            next_check: 0,
            sweeps: 0,
            swept: 0,
            random: parameters.seed ^ (index + 1) << 32,
            written: 0,
            checked: 0,
        })
    }

    /// Does some of the work that is due. True if there is more.
    pub fn step(&mut self, now: Micros, tally: &Tally) -> bool {
        if self.generations.is_empty() {
            return false;
        }
        let writes = match self.rate {
            // The first pass gives every page its content, at any rate.
            _ if self.pass == 0 => BATCH_PAGES,
            Rate::Unlimited => BATCH_PAGES,
            Rate::PagesPerSecond(_) => self.writes.take(now, BATCH_PAGES),
            Rate::Idle => 0,
        };
        let checks = self.checks.take(now, BATCH_PAGES);
        let start = clock::timestamp();
        let in_time = |_: &u64| clock::timestamp().wrapping_sub(start) < BATCH_TICKS;
        (0..writes).take_while(in_time).for_each(|_| self.rewrite());
        (0..checks).take_while(in_time).for_each(|_| self.check_another());
        let sweeps = self.sweeps < SWEEPS_WANTED.load(Ordering::Relaxed);
        if sweeps {
            (0..BATCH_PAGES).take_while(in_time).for_each(|_| self.sweep_on());
        }
        tally.written.store(self.written, Ordering::Relaxed);
        tally.checked.store(self.checked, Ordering::Relaxed);
        tally.sweeps.store(self.sweeps, Ordering::Relaxed);
        writes == BATCH_PAGES || checks == BATCH_PAGES || sweeps
    }

    fn rewrite(&mut self) {
        let page = self.next_write;
        let generation = self.generations[page];
        if generation != self.pass && generation != 0 {
            let gfn = self.stamp(page).page;
            fault::MEMORY.add(format_args!(
                "page {gfn:#x}: the table says generation {generation} after {} passes",
                self.pass
            ));
        }
        self.check(page);
        self.generations[page] = self.pass + 1;
        let stamp = self.stamp(page);
        stamp.fill(self.content, self.pages.get(page));
        self.written += 1;
        self.next_write = (page + self.stride) % self.span;
        self.position += 1;
        if self.position == self.span {
            self.pass += 1;
            self.position = 0;
            if self.span != self.hot {
                self.span = self.hot;
                self.stride = stride(self.hot);
                self.next_write = 0;
            }
        }
    }

    fn sweep_on(&mut self) {
        self.check(self.swept);
        self.swept += 1;
        if self.swept == self.generations.len() {
            self.swept = 0;
            self.sweeps += 1;
        }
    }

    /// Checks pages in order and at random by turns.
    fn check_another(&mut self) {
        if self.checked & 1 == 0 {
            self.next_check = (self.next_check + 1) % self.generations.len();
            self.check(self.next_check);
        } else {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.check((self.random % self.generations.len() as u64) as usize);
        }
    }

    fn check(&mut self, page: usize) {
        self.checked += 1;
        if self.generations[page] == 0 {
            return;
        }
        let stamp = self.stamp(page);
        if let Err(error) = stamp.verify(self.content, self.pages.get(page)) {
            fault::MEMORY.add(format_args!("{error}"));
            self.generations[page] = 0;
        }
    }

    /// What the page must hold. Its number is its guest frame number.
    fn stamp(&mut self, page: usize) -> Stamp {
        let gfn = core::ptr::from_ref(self.pages.get(page)) as u64 / size_of::<Page>() as u64;
        Stamp { page: gfn, generation: self.generations[page], seed: self.seed }
    }
}

/// About 0.6 of `length`, coprime to it: far jumps that still meet every page.
fn stride(length: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (length * 5 / 8 + 1..).find(|stride| gcd(*stride, length) <= 1).unwrap_or(1)
}
