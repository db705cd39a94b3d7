use godwit_types::ownership::Witness;
use godwit_types::{Epoch, Gfn, MigrationId};

use super::*;
use crate::bitmap::PageBitmap;
use crate::machine::{Absent, GuestMemory, Loaded, Manifest, Section};

const RAM: [PageRange; 1] = [PageRange { start: Gfn(0), pages: 100 * PIECE_PAGES }];

/// Of which each kept page holds the number of the page, and that notes what is done with it.
#[derive(Default)]
struct Host {
    written: Mutex<Vec<(Gfn, Vec<u8>)>>,
    forgotten: Mutex<Vec<PageRange>>,
}

impl GuestMemory for Host {
    fn ranges(&self) -> &[PageRange] {
        &RAM
    }

    fn bytes(&self, _: PageRange) -> Result<&[u8], MachineError> {
        Ok(&[])
    }

    fn write(&self, first: Gfn, from: &[u8]) -> Result<(), MachineError> {
        self.written.lock().unwrap().push((first, from.to_vec()));
        Ok(())
    }

    fn zero(&self, _: Gfn, _: u64) -> Result<(), MachineError> {
        Ok(())
    }
}

impl Kept for Host {
    fn key(&self) -> DigestKey {
        [1; 32]
    }

    fn read(&self, first: Gfn, into: &mut [u8]) -> Result<(), MachineError> {
        for (gfn, page) in (first.0..).zip(into.chunks_exact_mut(PAGE_BYTES)) {
            page.fill(gfn as u8);
        }
        Ok(())
    }

    fn forget(&self, pages: PageRange) {
        self.forgotten.lock().unwrap().push(pages);
    }
}

impl Destination for Host {
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
        Err(MachineError { step: "awaiting".into(), reason: "nobody does".into() })
    }

    fn load(&self, _: Vec<Section>) -> Result<Loaded, MachineError> {
        Ok(Loaded::default())
    }

    fn take_over(&self, _: MigrationId) -> Witness {
        Witness::None
    }

    fn run(&self, _: Epoch) -> Result<std::time::Duration, MachineError> {
        Ok(std::time::Duration::ZERO)
    }
}

fn offer() -> (Arc<Host>, Offer) {
    let host = Arc::new(Host::default());
    let machine: Arc<dyn Destination> = Arc::clone(&host) as _;
    (host, Offer::of(&machine).unwrap())
}

fn run(start: u64, pages: u64) -> PageRange {
    PageRange { start: Gfn(start), pages }
}

fn record(runs: &[(u64, u64, PageKind)]) -> PageRecord {
    let mut record = PageRecord::default();
    record.begin(1);
    for (start, pages, kind) in runs {
        run(*start, *pages).gfns().for_each(|gfn| record.push(gfn, *kind));
    }
    record
}

#[test]
fn reused_pages_go_to_their_places_and_all_that_were_named_are_kept_no_longer() {
    let (host, offer) = offer();
    let named = [
        (3, 2, PageKind::Zero),
        (5, 100, PageKind::Reused),
        (105, 1, PageKind::Raw),
        (200, 7, PageKind::Reused),
    ];
    assert!(offer.take(&record(&named), &Seal::default(), &mut Vec::new()).is_ok());
    let written = host.written.lock().unwrap();
    let pages = written.iter().flat_map(|(first, bytes)| (first.0..).zip(bytes.chunks_exact(PAGE_BYTES)));
    let pages: Vec<u64> = pages
        .inspect(|(gfn, page)| assert!(page.iter().all(|byte| *byte == *gfn as u8), "page {gfn}"))
        .map(|(gfn, _)| gfn)
        .collect();
    assert_eq!(pages, (5..105).chain(200..207).collect::<Vec<_>>());
    assert_eq!(*host.forgotten.lock().unwrap(), [run(3, 103), run(200, 7)]);
}

#[test]
fn once_memory_is_sealed_nothing_is_reused_any_more() {
    let (host, offer) = offer();
    let seal = Seal::default();
    seal.close();
    let reused = record(&[(5, 1, PageKind::Reused)]);
    assert!(offer.take(&reused, &seal, &mut Vec::new()).is_err());
    assert!(host.written.lock().unwrap().is_empty());
    assert!(refuse(&reused).is_err() && refuse(&record(&[(5, 1, PageKind::Raw)])).is_ok());
}

#[test]
fn digests_wait_for_the_pages_and_no_longer_than_any_come() {
    let (_, offer) = offer();
    assert!(offer.may_offer(AHEAD_PAGES_MAX - 1));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| offer.may_offer(AHEAD_PAGES_MAX));
        let came = record(&[(0, 1, PageKind::Raw)]);
        assert!(offer.take(&came, &Seal::default(), &mut Vec::new()).is_ok());
        assert!(waits.join().unwrap());
        let waits = scope.spawn(|| offer.may_offer(AHEAD_PAGES_MAX + 1));
        offer.end();
        assert!(!waits.join().unwrap());
    });
}

#[test]
fn a_piece_has_a_digest_for_each_page_that_holds_anything() {
    let (host, _) = offer();
    let piece = run(2 * PIECE_PAGES, PIECE_PAGES);
    let digester = Digester::new(&[1; 32]);
    let digests = digests(&*host, &digester, piece, &mut Vec::new()).unwrap();
    for gfn in piece.gfns() {
        let expected = (gfn.0 as u8 != 0).then(|| digester.digest(&[gfn.0 as u8; PAGE_BYTES]));
        assert_eq!(digests.of(gfn), expected.as_ref(), "{gfn:?}");
    }
}
