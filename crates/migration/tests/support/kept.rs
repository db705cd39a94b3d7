//! Memory that a host has kept, in a vector.

use std::sync::Mutex;

use godwit_migration::wire::DigestKey;
use godwit_migration::{Kept, MachineError, PageRange};
use godwit_types::{Gfn, PAGE_SIZE_BYTES};

const PAGE_BYTES: usize = PAGE_SIZE_BYTES as usize;

/// By frame number. What was forgotten is overwritten, so that nobody finds it who looks for it all the same.
pub struct ModelKept(Mutex<Vec<u8>>);

/// What forgotten pages are overwritten with.
const FORGOTTEN: u8 = 0xdb;

impl ModelKept {
    pub fn new(image: Vec<u8>) -> Self {
        Self(Mutex::new(image))
    }

    /// Bytes that were not forgotten, zeros left out.
    pub fn filled(&self) -> usize {
        self.0.lock().unwrap().iter().filter(|byte| ![0, FORGOTTEN].contains(*byte)).count()
    }
}

impl Kept for ModelKept {
    fn key(&self) -> DigestKey {
        [9; 32]
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        let at = first.0 as usize * PAGE_BYTES;
        into.copy_from_slice(&self.0.lock().unwrap()[at..at + into.len()]);
        Ok(())
    }

    fn forget(&self, pages: PageRange) {
        let [start, end] = [pages.start.0, pages.end()].map(|page| page as usize * PAGE_BYTES);
        self.0.lock().unwrap()[start..end].fill(FORGOTTEN);
    }
}
