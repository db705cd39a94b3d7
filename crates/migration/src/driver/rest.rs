//! The pages that are to follow, at their source: which have not been sent, and where to go on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_types::Gfn;

use crate::bitmap::PageBitmap;
use crate::machine::PageRange;

/// Pages that are sent with one that is asked for, that one included: who touches a page often touches the next.
const ASKED_PAGES: u64 = 8;

/// See the module.
pub(super) struct Rest {
    ranges: Vec<PageRange>,
    state: Mutex<State>,
}

struct State {
    pages: PageBitmap,
    left: u64,
    /// Where the next page is looked for.
    next: u64,
}

impl Rest {
    /// Of these pages, those that are RAM.
    pub(super) fn new(ranges: &[PageRange], pages: PageBitmap) -> Self {
        let left = ranges.iter().map(|range| pages.len_within(*range)).sum();
        Self { ranges: ranges.to_vec(), state: Mutex::new(State { pages, left, next: 0 }) }
    }

    /// The pages that were not sent, as runs, ascending.
    pub(super) fn runs(&self) -> Vec<PageRange> {
        let state = self.lock();
        self.ranges.iter().flat_map(|range| state.pages.runs(*range).collect::<Vec<_>>()).collect()
    }

    /// How many pages were not sent.
    pub(super) fn left(&self) -> u64 {
        self.lock().left
    }

    /// Takes the next run to send, of at most so many pages; none if all are sent.
    pub(super) fn take(&self, pages_max: u64) -> Option<PageRange> {
        let mut state = self.lock();
        let from = state.next;
        let run = self.run_from(&state, from).or_else(|| self.run_from(&state, 0))?;
        Some(state.take(run, pages_max))
    }

    /// Takes a page that is asked for, and those after it that were not sent; sending goes on from there. None if it is not
    /// RAM. A page that was sent before may still be on its way behind many others, and is sent again.
    pub(super) fn take_asked(&self, gfn: Gfn) -> Option<PageRange> {
        let range =
            self.ranges.iter().find(|range| (range.start.0..range.start.0 + range.pages).contains(&gfn.0))?;
        let mut state = self.lock();
        let end = (gfn.0 + ASKED_PAGES).min(range.start.0 + range.pages);
        let last = (gfn.0 + 1..end).find(|next| !state.pages.contains(Gfn(*next))).unwrap_or(end);
        Some(state.take(PageRange { start: gfn, pages: last - gfn.0 }, ASKED_PAGES))
    }

    /// The first run of a page at or after `from`.
    fn run_from(&self, state: &State, from: u64) -> Option<PageRange> {
        self.ranges.iter().find_map(|range| {
            let (start, end) = (range.start.0.max(from), range.start.0 + range.pages);
            let within = PageRange { start: Gfn(start), pages: end.checked_sub(start)? };
            state.pages.runs(within).next()
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, run: PageRange, pages_max: u64) -> PageRange {
        let pages = run.pages.min(pages_max);
        self.next = run.start.0 + pages;
        for gfn in run.start.0..self.next {
            self.left -= u64::from(self.pages.remove(Gfn(gfn)));
        }
        PageRange { start: run.start, pages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> PageRange {
        PageRange { start: Gfn(start), pages }
    }

    fn rest(runs: &[PageRange]) -> Rest {
        let ranges = [range(0, 100), range(200, 100)];
        let mut pages = PageBitmap::covering(&ranges);
        runs.iter().for_each(|run| pages.insert_range(*run));
        Rest::new(&ranges, pages)
    }

    #[test]
    fn every_page_is_taken_once_and_those_around_the_last_one_asked_for_come_first() {
        let rest = rest(&[range(10, 5), range(90, 10), range(200, 50)]);
        assert_eq!((rest.left(), rest.runs()), (65, vec![range(10, 5), range(90, 10), range(200, 50)]));
        assert_eq!(rest.take(2), Some(range(10, 2)));
        assert_eq!(rest.take_asked(Gfn(210)), Some(range(210, ASKED_PAGES)));
        assert_eq!(rest.take(100), Some(range(218, 32)));
        let mut taken = Vec::new();
        while let Some(run) = rest.take(4) {
            taken.extend(run.start.0..run.start.0 + run.pages);
        }
        assert_eq!(taken, (12..15).chain(90..100).chain(200..210).collect::<Vec<_>>());
        assert_eq!(rest.left(), 0);
    }

    #[test]
    fn a_page_that_was_sent_is_sent_again_if_it_is_asked_for_and_what_is_not_ram_is_not() {
        let rest = rest(&[range(10, 2)]);
        assert_eq!(rest.take(1), Some(range(10, 1)));
        assert_eq!(rest.take_asked(Gfn(10)), Some(range(10, 2)));
        assert_eq!(rest.take_asked(Gfn(10)), Some(range(10, 1)));
        assert_eq!(rest.take_asked(Gfn(99)), Some(range(99, 1)));
        assert_eq!((rest.take_asked(Gfn(150)), rest.take_asked(Gfn(u64::MAX))), (None, None));
    }
}
