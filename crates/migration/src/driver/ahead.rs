//! Guest memory is touched ahead of what arrives, as a file system reads ahead.
//!
//! The first touch of memory makes the kernel find and clear it, and where that kernel is itself a guest, another one below
//! it: often more work than everything else that is done with an arriving page. A thread beside the sink does it for the
//! pages that probably come next: those behind the pages that came one after the other so far.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, Scope};

use godwit_types::Gfn;

use crate::machine::{GuestMemory, PageRange};

/// It looks this far ahead at most, in pages: 32 MiB.
const WINDOW_PAGES_MAX: u64 = 8 << 10;
/// Orders are rounded up to this many pages, 2 MiB: what one fault brings where the kernel has huge pages.
const ORDER_PAGES: u64 = 512;

/// See the module.
pub(super) struct Ahead {
    window: Window,
    orders: SyncSender<PageRange>,
}

impl Ahead {
    /// Starts the thread, which ends when this is dropped. `gap_pages` may lie between pages that came one after the other,
    /// because other streams bring them. None where no thread can be had: then each page is touched when it arrives.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        stream: u32,
        gap_pages: u64,
        memory: &'scope dyn GuestMemory,
    ) -> Option<Self> {
        // One under way and one that waits: more would be late.
        let (orders, taken) = sync_channel(1);
        let touch = move |taken: Receiver<PageRange>| taken.iter().for_each(|pages| memory.prepare(pages));
        let named = Builder::new().name(format!("mig-ahead-{stream}"));
        named.spawn_scoped(scope, move || touch(taken)).ok()?;
        Some(Self { window: Window { gap_pages, ..Window::default() }, orders })
    }

    /// A run of pages with contents came.
    pub(super) fn came(&mut self, memory: &dyn GuestMemory, run: PageRange) {
        let within = memory.ranges().iter().find(|range| range.contains(run.start));
        let Some(order) = within.and_then(|range| self.window.came(run, *range)) else {
            return;
        };
        // The thread is behind: it is asked again with the next run.
        if !matches!(self.orders.try_send(order), Err(TrySendError::Full(_))) {
            self.window.ordered = order.end();
        }
    }
}

/// How far to look ahead: half as far as pages came one after the other, so that at most half as much as came is touched in
/// vain.
#[derive(Debug, Default)]
struct Window {
    gap_pages: u64,
    /// Pages that came one after the other, and where they end.
    came_pages: u64,
    end: u64,
    /// Up to here pages have been ordered.
    ordered: u64,
}

impl Window {
    /// The pages of `ram` to touch now.
    fn came(&mut self, run: PageRange, ram: PageRange) -> Option<PageRange> {
        let goes_on = run.start.0.checked_sub(self.end).is_some_and(|gap| gap <= self.gap_pages);
        self.came_pages = if goes_on { self.came_pages + run.pages } else { run.pages };
        self.end = run.end();
        self.ordered = if goes_on { self.ordered.max(self.end) } else { self.end };
        let ahead = (self.came_pages / 2).min(WINDOW_PAGES_MAX);
        let until = (self.end + ahead).next_multiple_of(ORDER_PAGES).min(ram.end());
        (ahead >= ORDER_PAGES && until > self.ordered)
            .then(|| PageRange { start: Gfn(self.ordered), pages: until - self.ordered })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::machine::MachineError;

    const RAM: PageRange = PageRange { start: Gfn(0), pages: 100_000 };

    fn run(start: u64, pages: u64) -> PageRange {
        PageRange { start: Gfn(start), pages }
    }

    /// Pages ordered when `runs` come.
    fn ordered(window: &mut Window, runs: impl IntoIterator<Item = PageRange>) -> u64 {
        let mut sum = 0;
        for run in runs {
            if let Some(order) = window.came(run, RAM) {
                assert!(order.start.0 >= run.end() && order.end() <= RAM.end(), "{order:?} after {run:?}");
                (sum, window.ordered) = (sum + order.pages, order.end());
            }
        }
        sum
    }

    #[test]
    fn no_page_is_ordered_twice_and_the_end_of_ram_is_the_end() {
        let mut window = Window::default();
        let pages = ordered(&mut window, (0..RAM.pages / 250).map(|index| run(index * 250, 250)));
        assert!((90_000..RAM.pages).contains(&pages), "{pages}");
        assert_eq!(window.ordered, RAM.pages);
    }

    #[test]
    fn little_is_touched_in_vain_where_memory_is_scattered() {
        for (pages, hole) in [(100, 100), (300, 3000), (5000, 5000), (40_000, 9_000)] {
            let count = RAM.pages / (pages + hole);
            let came = count * pages;
            let pieces = (0..count).flat_map(|index| {
                let start = index * (pages + hole);
                (0..pages / 100).map(move |piece| run(start + piece * 100, 100))
            });
            let mut window = Window::default();
            let touched = ordered(&mut window, pieces);
            let in_vain = touched.saturating_sub(came);
            assert!(
                in_vain <= came / 2 + ORDER_PAGES,
                "{in_vain} beside {came} of {pages} with holes of {hole}"
            );
        }
    }

    #[test]
    fn pages_that_other_streams_bring_are_no_end() {
        let shards = |gap_pages| {
            let mut window = Window { gap_pages, ..Window::default() };
            ordered(&mut window, (0..20).map(|index| run(index * 2048, 1024)))
        };
        assert!(shards(1024) > 20_000, "{}", shards(1024));
        assert_eq!(shards(0), 20 * 512, "each shard is a beginning");
    }

    struct Memory([PageRange; 1], Mutex<Vec<PageRange>>);

    impl GuestMemory for Memory {
        fn ranges(&self) -> &[PageRange] {
            &self.0
        }

        fn bytes(&self, _: PageRange) -> Result<&[u8], MachineError> {
            Ok(&[])
        }

        fn write(&self, _: Gfn, _: &[u8]) -> Result<(), MachineError> {
            Ok(())
        }

        fn zero(&self, _: Gfn, _: u64) -> Result<(), MachineError> {
            Ok(())
        }

        fn prepare(&self, pages: PageRange) {
            self.1.lock().unwrap().push(pages);
        }
    }

    #[test]
    fn the_thread_touches_what_was_ordered_and_ends() {
        let memory = Memory([RAM], Mutex::default());
        std::thread::scope(|scope| {
            let mut ahead = Ahead::start(scope, 0, 0, &memory).unwrap();
            ahead.came(&memory, run(0, 4096));
        });
        assert_eq!(memory.1.into_inner().unwrap(), [run(4096, 2048)]);
    }
}
