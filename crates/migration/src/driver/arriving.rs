//! The pages that are to follow, at their destination: which are not here, who waits for them, since when.
//!
//! ```text
//!  fault thread: touched --> to follow? --yes--> Want (through the engine)
//!                                '-------no----> a page of zeros: nobody has written it before
//!  readers:      contents --> still missing? --yes--> placed, then struck off --> all here: Whole
//! ```
//!
//! A page is struck off only after it was placed: whoever touches it meanwhile waits for it, and never gets zeros.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::incoming::Event;
use crate::bitmap::PageBitmap;
use crate::destination::Input;
use crate::machine::{Absent, MachineError, PageRange};
use crate::proof::Tally;
use crate::wire::{WANT_PAGES_MAX, Whole};

/// How often a thread that waits for faults looks whether it shall stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Arriving {
    absent: Arc<dyn Absent>,
    /// What was put where, if memory is to be compared.
    tally: Option<Arc<Tally>>,
    events: SyncSender<Event>,
    state: Mutex<State>,
}

struct State {
    missing: PageBitmap,
    ranges: Vec<PageRange>,
    left: u64,
    waiting: BTreeMap<u64, Instant>,
    so_far: Whole,
    ended: bool,
}

impl Arriving {
    /// The missing pages must be RAM.
    pub(super) fn new(
        absent: Arc<dyn Absent>,
        (ranges, missing): (&[PageRange], PageBitmap),
        tally: Option<Arc<Tally>>,
        events: SyncSender<Event>,
    ) -> Self {
        let left = missing.len();
        let (ranges, waiting, so_far) = (ranges.to_vec(), BTreeMap::new(), Whole::default());
        let state = Mutex::new(State { missing, ranges, left, waiting, so_far, ended: false });
        Self { absent, tally, events, state }
    }

    /// Sees to faults until all is here, or it is ended.
    pub(super) fn watch(&self) {
        let mut pages = Vec::new();
        while !self.lock().ended {
            pages.clear();
            if let Err(error) = self.absent.touched(&mut pages, LOOK_INTERVAL) {
                tracing::error!("faults of the guest are not seen any more: {error}");
                return;
            }
            if self.absent.is_forgotten() {
                return self.forget();
            }
            let wanted = self.sort(&pages);
            for pages in wanted.chunks(WANT_PAGES_MAX) {
                let _ = self.events.send(Event::Input(Input::Touched(pages.to_vec())));
            }
        }
    }

    /// The pages of those touched that have to be asked for. The others are here, or were never written.
    fn sort(&self, touched: &[Gfn]) -> Vec<u64> {
        let mut wanted = Vec::new();
        for gfn in touched {
            match self.lock().touch(*gfn) {
                Touched::Missing => wanted.push(gfn.0),
                Touched::Awaited => {}
                Touched::Unknown => {
                    let placed = self.absent.place_zeros(PageRange { start: *gfn, pages: 1 });
                    placed.unwrap_or_else(|error| tracing::error!("a page of zeros: {error}"));
                }
            }
        }
        wanted
    }

    /// Brings pages in, but for those that are here.
    pub(super) fn place(&self, first: Gfn, contents: &[u8]) -> Result<(), MachineError> {
        let pages = contents.len() as u64 / PAGE_SIZE_BYTES;
        // Before: with the last page, the sum is taken. A page that is here has the same contents, since none changes any more.
        self.tally.iter().for_each(|tally| tally.put(first, contents));
        self.each_missing(PageRange { start: first, pages }, |run| {
            let at = ((run.start.0 - first.0) * PAGE_SIZE_BYTES) as usize;
            self.absent.place(run.start, &contents[at..at + (run.pages * PAGE_SIZE_BYTES) as usize])
        })
    }

    /// The same for zeros.
    pub(super) fn place_zeros(&self, pages: PageRange) -> Result<(), MachineError> {
        self.tally.iter().for_each(|tally| tally.zero(pages));
        self.each_missing(pages, |run| self.absent.place_zeros(run))
    }

    fn each_missing(
        &self,
        pages: PageRange,
        place: impl Fn(PageRange) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let runs: Vec<PageRange> = self.lock().missing.runs(pages).collect();
        for run in runs {
            place(run)?;
            let whole = self.lock().strike_off(run, Instant::now());
            if let Some(whole) = whole {
                self.absent.end();
                let memory = self.tally.as_ref().map(|tally| tally.sum().into());
                let whole = Whole { memory, ..whole };
                let _ = self.events.send(Event::Input(Input::Whole(whole)));
            }
        }
        Ok(())
    }

    /// The pages that are not here, and those of them that somebody waits for.
    pub(super) fn missing(&self) -> (Vec<PageRange>, Vec<u64>) {
        let state = self.lock();
        let runs = state.ranges.iter().flat_map(|range| state.missing.runs(*range).collect::<Vec<_>>());
        (runs.collect(), state.waiting.keys().copied().collect())
    }

    /// The guest has begun anew: it needs nothing more.
    fn forget(&self) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        state.missing.clear();
        state.left = 0;
        let whole = state.so_far;
        drop(state);
        self.absent.end();
        let _ = self.events.send(Event::Input(Input::Whole(whole)));
    }

    /// Lets go of whoever waits: this copy never runs.
    pub(super) fn abandon(&self) {
        self.lock().ended = true;
        self.absent.end();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a page that somebody has touched.
enum Touched {
    /// To follow, and nobody has asked for it yet.
    Missing,
    Awaited,
    /// Not to follow.
    Unknown,
}

impl State {
    fn touch(&mut self, gfn: Gfn) -> Touched {
        if !self.missing.contains(gfn) {
            return Touched::Unknown;
        }
        match self.waiting.entry(gfn.0) {
            Entry::Occupied(_) => Touched::Awaited,
            Entry::Vacant(entry) => {
                entry.insert(Instant::now());
                Touched::Missing
            }
        }
    }

    /// Notes that pages are here; if they were the last, what waiting there has been.
    fn strike_off(&mut self, run: PageRange, now: Instant) -> Option<Whole> {
        for gfn in run.start.0..run.start.0 + run.pages {
            self.left -= u64::from(self.missing.remove(Gfn(gfn)));
            if let Some(since) = self.waiting.remove(&gfn) {
                let waited = now.saturating_duration_since(since).as_micros() as u64;
                self.so_far.faults += 1;
                self.so_far.waited_us += waited;
                self.so_far.longest_us = self.so_far.longest_us.max(waited);
            }
        }
        (self.left == 0 && !std::mem::replace(&mut self.ended, true)).then_some(self.so_far)
    }
}
