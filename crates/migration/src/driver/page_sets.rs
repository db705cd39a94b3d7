//! The set of pages that wait to be sent, and the sets that are on their way.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::bitmap::PageBitmap;
use crate::machine::PageRange;

/// Sets that exist at once: one being filled, two being sent.
const SETS: usize = 3;

/// See the module. All sets are allocated beforehand and used again.
pub(super) struct PageSets {
    ranges: Vec<PageRange>,
    waiting: Arc<PageBitmap>,
    /// On their way, or free once nobody else holds them.
    others: VecDeque<Arc<PageBitmap>>,
}

impl PageSets {
    pub(super) fn new(ranges: &[PageRange]) -> Self {
        let empty = || Arc::new(PageBitmap::covering(ranges));
        Self { ranges: ranges.to_vec(), waiting: empty(), others: (1..SETS).map(|_| empty()).collect() }
    }

    /// The set to add pages to.
    pub(super) fn waiting(&mut self) -> &mut PageBitmap {
        Arc::make_mut(&mut self.waiting)
    }

    /// Adds all RAM, and all disks that move.
    pub(super) fn add_all(&mut self) {
        let waiting = Arc::make_mut(&mut self.waiting);
        self.ranges.iter().for_each(|range| waiting.insert_range(*range));
    }

    /// How many of these pages wait.
    pub(super) fn count(&self) -> u64 {
        self.ranges.iter().map(|range| self.waiting.len_within(*range)).sum()
    }

    /// Gives away the waiting set; an empty one takes its place.
    pub(super) fn take(&mut self) -> Arc<PageBitmap> {
        let free = self.others.iter().position(|set| Arc::strong_count(set) == 1);
        let mut next = match free.and_then(|index| self.others.remove(index)) {
            Some(set) => set,
            None => Arc::new(PageBitmap::covering(&self.ranges)),
        };
        Arc::make_mut(&mut next).clear();
        let taken = std::mem::replace(&mut self.waiting, next);
        self.others.push_back(Arc::clone(&taken));
        taken
    }
}

#[cfg(test)]
mod tests {
    use godwit_types::Gfn;

    use super::*;

    #[test]
    fn a_set_on_its_way_is_not_touched_and_a_returned_one_starts_empty() {
        let mut sets = PageSets::new(&[PageRange { start: Gfn(10), pages: 100 }]);
        sets.add_all();
        let all = sets.take();
        let mut kept = Vec::new();
        for page in 10..20 {
            sets.waiting().insert(Gfn(page));
            // Not RAM, so it does not count.
            sets.waiting().insert(Gfn(3));
            assert_eq!(sets.count(), 1);
            let set = sets.take();
            assert!(set.contains(Gfn(page)) && set.len() == 2);
            if page % 2 == 0 {
                kept.push((page, set));
            }
        }
        assert_eq!(all.len(), 100);
        assert!(kept.iter().all(|(page, set)| set.contains(Gfn(*page)) && set.len() == 2));
    }
}
