//! What changed in a page since it was last sent, for guests that write a little of it again and again.
//!
//! The sender keeps copies of pages that it sent in rounds after the first; the destination needs none, since its memory is
//! what was sent. A delta is the exclusive or of the two, mostly zeros, which any codec makes short. In the spirit of
//! XBZRLE (Svärd et al., VEE 2011), with the codec in place of its run lengths.

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;
/// A delta is worth it if fewer than half of the page's words of 8 bytes have changed.
const CHANGED_WORDS_MAX: usize = PAGE_BYTES / 8 / 2;

/// Copies of pages as they were last sent, each in the one slot that its number leads to.
#[derive(Default)]
pub struct SentPages {
    /// All slots, once there is anything to keep.
    slots: Vec<Option<Box<Kept>>>,
    count: usize,
}

struct Kept {
    gfn: Gfn,
    page: [u8; PAGE_BYTES],
}

impl SentPages {
    /// Keeps at most `count` pages.
    pub fn new(count: usize) -> Self {
        Self { slots: Vec::new(), count }
    }

    /// `page` is about to be sent: keeps a copy, and if it knows what was sent last and that little has changed, makes a
    /// delta of `page` and returns true.
    pub fn send(&mut self, gfn: Gfn, page: &mut [u8]) -> bool {
        if self.slots.is_empty() {
            self.slots.resize_with(self.count, || None);
        }
        let Some(slot) = slot(&mut self.slots, gfn) else { return false };
        match slot {
            Some(copy) if copy.gfn == gfn => {
                let worth = changed_words(&copy.page, page) < CHANGED_WORDS_MAX;
                if worth {
                    // What is kept must be the page, and what is sent the difference.
                    apply(&copy.page, page);
                    apply(page, &mut copy.page);
                } else {
                    copy.page.copy_from_slice(page);
                }
                worth
            }
            Some(copy) => {
                copy.gfn = gfn;
                copy.page.copy_from_slice(page);
                false
            }
            none => {
                let mut copy = Box::new(Kept { gfn, page: [0; PAGE_BYTES] });
                copy.page.copy_from_slice(page);
                *none = Some(copy);
                false
            }
        }
    }

    /// A page is sent that is not known here, or as zeros: what is kept of it is no longer what the destination has.
    pub fn forget(&mut self, gfn: Gfn) {
        if let Some(slot) = slot(&mut self.slots, gfn)
            && slot.as_ref().is_some_and(|copy| copy.gfn == gfn)
        {
            *slot = None;
        }
    }
}

fn slot(slots: &mut [Option<Box<Kept>>], gfn: Gfn) -> Option<&mut Option<Box<Kept>>> {
    let index = gfn.0.checked_rem(slots.len() as u64)?;
    slots.get_mut(index as usize)
}

/// Makes `page` of its delta, or the other way round; both have the same length.
pub fn apply(from: &[u8], page: &mut [u8]) {
    page.iter_mut().zip(from).for_each(|(byte, other)| *byte ^= other);
}

fn changed_words(old: &[u8], new: &[u8]) -> usize {
    old.chunks_exact(8).zip(new.chunks_exact(8)).filter(|(old, new)| old != new).count()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The destination is a map of pages, to which deltas are applied.
        #[test]
        fn the_destination_always_has_what_was_sent(
            writes in prop::collection::vec((0u64..12, 0usize..PAGE_BYTES, any::<u8>(), 0u8..8), 1..200),
        ) {
            let mut sent = SentPages::new(5);
            let (mut here, mut there) = (HashMap::<u64, Vec<u8>>::new(), HashMap::<u64, Vec<u8>>::new());
            for (gfn, at, byte, how) in writes {
                let page = here.entry(gfn).or_insert_with(|| vec![0; PAGE_BYTES]);
                let length = if how == 0 { PAGE_BYTES - at } else { 1 };
                page[at..at + length].fill(byte);
                let mut contents = page.clone();
                if how == 1 {
                    sent.forget(Gfn(gfn));
                } else if sent.send(Gfn(gfn), &mut contents) {
                    apply(&there[&gfn], &mut contents);
                }
                there.insert(gfn, contents);
                prop_assert_eq!(&there[&gfn], &here[&gfn]);
            }
        }
    }

    #[test]
    fn a_page_that_changed_a_little_is_sent_as_little() {
        let mut sent = SentPages::new(8);
        let mut page = vec![9; PAGE_BYTES];
        assert!(!sent.send(Gfn(1), &mut page.clone()));
        page[100] = 1;
        let mut delta = page.clone();
        assert!(sent.send(Gfn(1), &mut delta));
        assert_eq!(delta.iter().filter(|byte| **byte != 0).count(), 1);
        page.fill(3);
        assert!(!sent.send(Gfn(1), &mut page.clone()), "everything has changed");
    }

    #[test]
    fn without_room_there_are_no_deltas() {
        let mut sent = SentPages::new(0);
        assert!(!sent.send(Gfn(1), &mut [1; PAGE_BYTES]) && !sent.send(Gfn(1), &mut [1; PAGE_BYTES]));
        sent.forget(Gfn(1));
    }
}
