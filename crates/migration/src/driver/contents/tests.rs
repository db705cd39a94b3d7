//! What is sent, packed in any way, against what the receiving side makes of it.

use std::collections::BTreeSet;
use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_types::ownership::Witness;
use godwit_types::{Epoch, MigrationId};
use proptest::prelude::*;

use super::*;
use crate::bitmap::PageBitmap;
use crate::driver::inflow::Inflow;
use crate::driver::link::Reader;
use crate::driver::seal::Seal;
use crate::driver::sink::Sink;
use crate::machine::{Absent, Destination, Loaded, Manifest, PageRange, Section};
use crate::wire::{Header, Tag};

const PAGES: u64 = 40;
const RAM: [PageRange; 1] = [PageRange { start: Gfn(0), pages: PAGES }];

/// Memory whose pages are replaced as a whole, so that references to them can be given out.
struct Memory(Mutex<Vec<&'static [u8]>>);

impl Memory {
    fn new() -> Self {
        Self(Mutex::new(vec![&[0; PAGE_BYTES]; PAGES as usize]))
    }

    fn page(&self, gfn: u64) -> &'static [u8] {
        self.0.lock().unwrap()[gfn as usize]
    }
}

impl GuestMemory for Memory {
    fn ranges(&self) -> &[PageRange] {
        &RAM
    }

    fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
        Ok(pages.gfns().flat_map(|gfn| self.page(gfn.0)).copied().collect::<Vec<u8>>().leak())
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        let mut all = self.0.lock().unwrap();
        for (page, from) in all[first.0 as usize..].iter_mut().zip(from.chunks_exact(PAGE_BYTES)) {
            *page = from.to_vec().leak();
        }
        Ok(())
    }

    fn zero(&self, first: Gfn, pages: u64) -> Result<(), MachineError> {
        self.write(first, &vec![0; pages as usize * PAGE_BYTES])
    }
}

impl Destination for Memory {
    fn admit(&self, _: &Manifest) -> Result<(), Vec<String>> {
        Ok(())
    }

    fn memory(&self) -> &dyn GuestMemory {
        self
    }

    fn can_follow(&self) -> Result<(), String> {
        Err("memory stays with its guest here".into())
    }

    fn await_pages(&self, _: &PageBitmap) -> Result<Arc<dyn Absent>, MachineError> {
        Err(MachineError { step: "waiting for pages".into(), reason: "they never follow here".into() })
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

/// The two ends of a stream whose bytes wait in between.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Cursor<Vec<u8>>>>);

impl Read for &Wire {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(into)
    }
}

impl Wire {
    fn put(&self, record: &PageRecord, contents: &[&[u8]]) {
        let mut payload = Vec::new();
        record.encode_into(&mut payload);
        let header = Header::encode(Tag::Pages, &payload).unwrap();
        let mut wire = self.0.lock().unwrap();
        let end = wire.get_mut();
        end.extend_from_slice(&header);
        end.extend_from_slice(&payload);
        contents.iter().for_each(|part| end.extend_from_slice(part));
    }
}

fn packings() -> impl Strategy<Value = Packing> {
    prop_oneof![Just(Packing::None), Just(Packing::Lz4), Just(Packing::ZstdFast)]
}

/// A page, a place in it, and a byte that is written there or everywhere.
type Write = (u64, usize, u8, bool);

/// How each round is packed, and what was written before it.
fn rounds() -> impl Strategy<Value = Vec<(Packing, Vec<Write>)>> {
    let write = (0..PAGES, 0..PAGE_BYTES, 0u8..4, any::<bool>());
    prop::collection::vec((packings(), prop::collection::vec(write, 0..12)), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_between_the_rounds_the_destination_has_it(rounds in rounds()) {
        let (here, there) = (Memory::new(), Arc::new(Memory::new()));
        let wire = Wire::default();
        let reader = Reader::new(Inflow::new(wire.clone(), None, Arc::default(), None)).carrying(Tag::Pages);
        let mut sink = Sink::new(0, reader, Arc::clone(&there) as _, Seal::default(), None);
        let mut contents = Contents::new(1);
        for (round, (packing, writes)) in (1..).zip(rounds) {
            // As if all others had been far slower.
            contents.chooser = Chooser::default();
            contents.chooser.learn(packing, 1, 0, Duration::from_nanos(1));
            let mut dirty = BTreeSet::new();
            for (gfn, at, byte, all) in writes {
                let mut page = here.page(gfn).to_vec();
                page[if all { 0..PAGE_BYTES } else { at..at + 1 }].fill(byte);
                here.write(Gfn(gfn), &page).unwrap();
                dirty.insert(gfn);
            }
            let mut record = PageRecord::default();
            record.begin(round);
            for gfn in dirty {
                let zero = here.page(gfn).iter().all(|byte| *byte == 0);
                record.push(Gfn(gfn), if zero { PageKind::Zero } else { PageKind::Raw });
            }
            let sent = contents.send(&mut record, (Pages::Memory(&here), Guest::Stands), 256, |record, contents| {
                wire.put(record, contents);
                Ok::<(), MachineError>(())
            });
            sent.unwrap();
            prop_assert!(sink.frame().is_ok());
            for gfn in 0..PAGES {
                prop_assert!(here.page(gfn) == there.page(gfn), "page {gfn} differs after round {round}");
            }
        }
    }
}
