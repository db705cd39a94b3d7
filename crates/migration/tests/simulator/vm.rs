//! The guest's memory: a few pages, each a number that grows with every write.

pub(crate) const PAGES: usize = 8;
/// The page that saving writes.
pub(crate) const SAVE_PAGE: usize = 3;

#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) pages: [u32; PAGES],
    dirty: [bool; PAGES],
    waiting: [bool; PAGES],
    written: u32,
}

impl Memory {
    pub(crate) fn write(&mut self, page: usize) {
        self.written += 1;
        self.pages[page] = self.written;
        self.dirty[page] = true;
    }

    pub(crate) fn mark_all(&mut self) {
        self.waiting = [true; PAGES];
        self.dirty = [false; PAGES];
    }

    /// Moves what is dirty to what waits to be sent; how much waits then.
    pub(crate) fn harvest(&mut self) -> u64 {
        for (waiting, dirty) in self.waiting.iter_mut().zip(&mut self.dirty) {
            *waiting |= std::mem::take(dirty);
        }
        self.waiting.iter().filter(|waiting| **waiting).count() as u64
    }

    /// The pages that wait, to be sent.
    pub(crate) fn take(&mut self) -> Vec<usize> {
        let waiting = std::mem::take(&mut self.waiting);
        (0..PAGES).filter(|page| waiting[*page]).collect()
    }
}
