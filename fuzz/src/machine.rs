//! A destination that has a little memory and takes everything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::wire::{DigestKey, RAW_PAGES_MAX};
use godwit_migration::{
    Absent, Destination, GuestMemory, Kept, Loaded, MachineError, Manifest, PageRange, Section,
};
use godwit_types::ownership::Witness;
use godwit_types::{Epoch, Gfn, MigrationId, PAGE_SIZE_BYTES};

/// Its RAM, with a hole.
pub const RANGES: [PageRange; 2] =
    [PageRange { start: Gfn(0), pages: 4 }, PageRange { start: Gfn(16), pages: 4 }];

/// See the module.
#[derive(Default)]
pub struct Model {
    pages: Mutex<[u8; 8]>,
}

impl Model {
    /// Every page must lie in RAM, as the trait demands of an implementation.
    fn touch(&self, first: Gfn, pages: u64, value: u8) -> Result<(), MachineError> {
        let end = first.0.checked_add(pages).ok_or_else(outside)?;
        let fits = |range: &PageRange| first.0 >= range.start.0 && end <= range.start.0 + range.pages;
        if !RANGES.iter().any(fits) {
            return Err(outside());
        }
        let mut known = self.pages.lock().expect("nobody panics with it");
        (first.0..end).for_each(|gfn| known[(gfn % 8) as usize] = value);
        Ok(())
    }
}

fn outside() -> MachineError {
    MachineError { step: "touching memory".into(), reason: "outside RAM".into() }
}

impl GuestMemory for Model {
    fn ranges(&self) -> &[PageRange] {
        &RANGES
    }

    /// What a delta is to, for as many pages as one record has.
    fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
        const ZEROS: &[u8] = &[0; (RAW_PAGES_MAX * PAGE_SIZE_BYTES) as usize];
        if !RANGES.iter().any(|range| range.contains(pages.start) && pages.end() <= range.end()) {
            return Err(outside());
        }
        Ok(&ZEROS[..(pages.pages * PAGE_SIZE_BYTES) as usize])
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        assert!((from.len() as u64).is_multiple_of(PAGE_SIZE_BYTES), "{} bytes are no pages", from.len());
        self.touch(first, from.len() as u64 / PAGE_SIZE_BYTES, 1)
    }

    fn zero(&self, first: Gfn, pages: u64) -> Result<(), MachineError> {
        self.touch(first, pages, 0)
    }
}

impl Kept for Model {
    fn key(&self) -> DigestKey {
        [3; 32]
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        let pages = PageRange { start: first, pages: into.len() as u64 / PAGE_SIZE_BYTES };
        if !RANGES.iter().any(|range| range.contains(pages.start) && pages.end() <= range.end()) {
            return Err(outside());
        }
        into.fill(2);
        Ok(())
    }

    fn forget(&self, _: PageRange) {}
}

impl Destination for Model {
    fn admit(&self, _: &Manifest) -> Result<(), Vec<String>> {
        Ok(())
    }

    fn memory(&self) -> &dyn GuestMemory {
        self
    }

    fn kept(&self) -> Option<&dyn Kept> {
        Some(self)
    }

    fn can_follow(&self) -> Result<(), String> {
        Ok(())
    }

    fn await_pages(&self, _: &PageBitmap) -> Result<Arc<dyn Absent>, MachineError> {
        Err(MachineError { step: "awaiting memory".into(), reason: "no guest touches this".into() })
    }

    fn load(&self, _: Vec<Section>) -> Result<Loaded, MachineError> {
        Ok(Loaded::default())
    }

    fn take_over(&self, _: MigrationId) -> Witness {
        Witness::None
    }

    fn run(&self, _: Epoch) -> Result<Duration, MachineError> {
        Ok(Duration::ZERO)
    }
}
