//! Which parts of a disk its guest has written since somebody last asked: what a copy that is made meanwhile lacks.
//!
//! ```text
//!        start                          harvest: the blocks written since, once each
//!  off --------> on: every write is noted -------------------------------------+
//!   ^             |  ^                                                         |
//!   +--- stop ----+  +---------------------------------------------------------+
//! ```
//!
//! A write is noted after it was done, whatever it came to, and before the guest hears of it. So a copy that reads a block
//! too early to have a write in it finds that block in a later harvest, and one that has a part of it, too. The other order
//! would lose writes: noted, harvested, read as it was before, and only then done. The last harvest is complete once the
//! device stands.

use std::sync::{Mutex, MutexGuard};

use godwit_migration::PageRange;
use godwit_migration::bitmap::PageBitmap;
use godwit_types::Gfn;

/// Writes are noted in blocks of so many bytes: the engine's page.
pub const BLOCK_BYTES: u64 = godwit_types::PAGE_SIZE_BYTES;

/// See the module. One for each disk; it holds a bit for each block while it is on, and nothing while it is off.
#[derive(Debug, Default)]
pub struct WriteLog(Mutex<Option<PageBitmap>>);

impl WriteLog {
    /// Notes writes from now on, on a disk of so many bytes. What was noted before is forgotten.
    pub fn start(&self, disk_bytes: u64) {
        *self.blocks() = Some(PageBitmap::new(disk_bytes.div_ceil(BLOCK_BYTES)));
    }

    /// Notes nothing any more.
    pub fn stop(&self) {
        *self.blocks() = None;
    }

    /// Notes a write of `bytes` at `offset`, which lie on the disk. To be called after it was done, or has failed.
    pub fn note(&self, offset: u64, bytes: u64) {
        if let Some(blocks) = &mut *self.blocks()
            && bytes > 0
        {
            let (start, end) = (offset / BLOCK_BYTES, (offset + bytes).div_ceil(BLOCK_BYTES));
            blocks.insert_range(PageRange { start: Gfn(start), pages: end - start });
        }
    }

    /// Gives `written` each run of blocks that were written since the last call, ascending; nothing while it is off.
    pub fn harvest(&self, mut written: impl FnMut(PageRange)) {
        if let Some(blocks) = &mut *self.blocks() {
            blocks.runs(blocks.all()).for_each(&mut written);
            blocks.clear();
        }
    }

    fn blocks(&self) -> MutexGuard<'_, Option<PageBitmap>> {
        self.0.lock().expect("nobody panics who notes a write")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harvested(log: &WriteLog) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        log.harvest(|run| runs.push((run.start.0, run.pages)));
        runs
    }

    #[test]
    fn every_block_that_a_write_touches_is_named_once() {
        let log = WriteLog::default();
        log.start(100 * BLOCK_BYTES + 512);
        log.note(BLOCK_BYTES - 512, 1024);
        log.note(70 * BLOCK_BYTES, 3 * BLOCK_BYTES);
        log.note(71 * BLOCK_BYTES, 512);
        log.note(100 * BLOCK_BYTES, 512);
        log.note(50 * BLOCK_BYTES, 0);
        assert_eq!(harvested(&log), [(0, 2), (70, 3), (100, 1)]);
        assert_eq!(harvested(&log), []);
    }

    #[test]
    fn nothing_is_noted_while_it_is_off_nor_kept_from_before() {
        let log = WriteLog::default();
        log.note(0, 512);
        assert_eq!(harvested(&log), []);
        log.start(8 * BLOCK_BYTES);
        log.note(0, 512);
        log.start(8 * BLOCK_BYTES);
        assert_eq!(harvested(&log), []);
        log.stop();
        log.note(0, 512);
        assert_eq!(harvested(&log), []);
    }
}
