//! What may be written into guest memory, and onto disks, at their destination, and by whom.
//!
//! ```text
//!   Open: all that comes --state is loaded--> Closed --pages are to follow--> Following: pages that are missing
//! ```

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock};

use godwit_types::{Gfn, PAGE_SIZE_BYTES};

use super::arriving::Arriving;
use super::inflow::Inflow;
use super::link::Reader;
use super::places::Places;
use super::sink::SinkError;
use crate::codec::{Codec, Unpacker, delta};
use crate::machine::{GuestMemory, MachineError, PageRange};
use crate::proof::Tally;
use crate::wire::{PageKind, PageRecord, Run, WireError};

/// Once closed, nobody writes guest memory or disks any more, whatever a source sends: only pages that are to follow are placed.
#[derive(Clone, Default)]
pub(super) struct Seal {
    stage: Arc<RwLock<Stage>>,
    /// What was put where, if memory is to be compared.
    tally: Option<Arc<Tally>>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Open,
    Closed,
    Following(Arc<Arriving>),
}

impl Seal {
    /// Open, and keeping account of what is put where.
    pub(super) fn counted(tally: Option<Arc<Tally>>) -> Self {
        Self { tally, ..Self::default() }
    }

    /// Returns when the writes that were under way have ended.
    pub(super) fn close(&self) {
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = Stage::Closed;
    }

    /// From now on, pages that are missing are placed.
    pub(super) fn follow(&self, arriving: Arc<Arriving>) {
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = Stage::Following(arriving);
    }

    /// The pages that are to follow, if any are.
    pub(super) fn arriving(&self) -> Option<Arc<Arriving>> {
        match &*self.stage.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Following(arriving) => Some(Arc::clone(arriving)),
            Stage::Open | Stage::Closed => None,
        }
    }

    /// Brings the pages of a record to their places.
    pub(super) fn pages<S>(
        &self,
        record: &PageRecord,
        reader: &mut Reader<S>,
        unpacker: &mut Unpacker,
        places: Places<'_>,
    ) -> Result<(), SinkError>
    where
        for<'a> &'a S: Read,
    {
        for run in record.runs.iter().filter(|run| run.kind == PageKind::Zero) {
            self.zero(places, run.range)?;
        }
        if record.codec == Codec::None && record.delta_pages == 0 {
            self.plain(record, reader, places)
        } else {
            self.packed(record, reader, unpacker, places)
        }
    }

    /// The contents go to their places straight from where they arrived: a buffer, or the connection itself.
    fn plain<S>(
        &self,
        record: &PageRecord,
        reader: &mut Reader<S>,
        places: Places<'_>,
    ) -> Result<(), SinkError>
    where
        for<'a> &'a S: Read,
    {
        for range in record.raw() {
            let mut next = range.start.0;
            while next < range.end() {
                let rest = PageRange { start: Gfn(next), pages: range.end() - next };
                let bytes = (rest.pages * PAGE_SIZE_BYTES) as usize;
                if let Some(inflow) = reader.straight(bytes)
                    && self.is_open()
                    && places.disks_with(rest.start).is_none()
                {
                    self.receive(places.memory, rest, inflow)?;
                    break;
                }
                let contents = reader.pages(bytes).map_err(SinkError::Link)?;
                self.write(places, rest.start, contents)?;
                next += contents.len() as u64 / PAGE_SIZE_BYTES;
            }
        }
        Ok(())
    }

    /// Reads all of these pages from the connection into memory.
    fn receive<S>(
        &self,
        memory: &dyn GuestMemory,
        pages: PageRange,
        inflow: &Inflow<S>,
    ) -> Result<(), SinkError>
    where
        for<'a> &'a S: Read,
    {
        // They are refused here if they are not RAM.
        let bytes = memory.bytes(pages).map_err(SinkError::Machine)?.len();
        let mut done = 0;
        while done < bytes {
            // The lock is held for one call, which waits only for a moment, so that whoever closes does not wait for a peer.
            let read = |from: &TcpStream| match &*self.stage.read().unwrap_or_else(PoisonError::into_inner) {
                Stage::Open => memory.receive(pages, done, from.as_fd()),
                Stage::Closed | Stage::Following(_) => Err(io::Error::other(LATE)),
            };
            done += inflow.straight(read).map_err(SinkError::Link)?;
        }
        self.count(memory, pages.start, bytes).map_err(SinkError::Machine)
    }

    fn is_open(&self) -> bool {
        matches!(*self.stage.read().unwrap_or_else(PoisonError::into_inner), Stage::Open)
    }

    fn packed<S>(
        &self,
        record: &PageRecord,
        reader: &mut Reader<S>,
        unpacker: &mut Unpacker,
        places: Places<'_>,
    ) -> Result<(), SinkError>
    where
        for<'a> &'a S: Read,
    {
        let packed = reader.contents(record.contents_bytes as usize).map_err(SinkError::Link)?;
        let unpacked = unpacker.unpack(record.codec, packed, record.raw_bytes() as usize);
        let mut rest = unpacked.map_err(|reason| WireError::malformed("page contents", reason))?;
        for Run { range, kind } in record.runs.iter().filter(|run| run.kind.has_contents()) {
            // As many bytes as there are pages in all these runs were unpacked.
            let (contents, others) = rest.split_at_mut((range.pages * PAGE_SIZE_BYTES) as usize);
            rest = others;
            if *kind == PageKind::Delta {
                self.apply(places, *range, contents)?;
            }
            self.write(places, range.start, contents)?;
        }
        Ok(())
    }

    /// Makes pages of deltas, which are of memory only. Pages that are to follow are not here: nobody may touch them, and no delta can be to them.
    fn apply(&self, places: Places<'_>, range: PageRange, deltas: &mut [u8]) -> Result<(), SinkError> {
        match &*self.stage.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Open => delta::apply(places.memory.bytes(range).map_err(SinkError::Machine)?, deltas),
            Stage::Following(_) => {
                return Err(WireError::malformed("page record", "deltas to pages that are missing").into());
            }
            Stage::Closed => return Err(sealed()),
        }
        Ok(())
    }

    fn zero(&self, places: Places<'_>, range: PageRange) -> Result<(), SinkError> {
        match &*self.stage.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Open => places.zero(range).inspect(|()| self.count_zeros(range)),
            Stage::Following(arriving) => arriving.place_zeros(range),
            Stage::Closed => return Err(sealed()),
        }
        .map_err(SinkError::Machine)
    }

    pub(super) fn write(&self, places: Places<'_>, first: Gfn, contents: &[u8]) -> Result<(), SinkError> {
        match &*self.stage.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Open => places.write(first, contents).and_then(|()| match places.disks_with(first) {
                Some(_) => Ok(()),
                None => self.count(places.memory, first, contents.len()),
            }),
            Stage::Following(arriving) => arriving.place(first, contents),
            Stage::Closed => return Err(sealed()),
        }
        .map_err(SinkError::Machine)
    }

    /// Of what now lies there, not of what came.
    fn count(&self, memory: &dyn GuestMemory, first: Gfn, bytes: usize) -> Result<(), MachineError> {
        if let Some(tally) = &self.tally {
            let pages = PageRange { start: first, pages: bytes as u64 / PAGE_SIZE_BYTES };
            tally.put(first, memory.bytes(pages)?);
        }
        Ok(())
    }

    /// A tally knows of memory alone: pages of disks are none of its own.
    fn count_zeros(&self, pages: PageRange) {
        self.tally.iter().for_each(|tally| tally.zero(pages));
    }
}

const LATE: &str = "pages after the device state";

fn sealed() -> SinkError {
    WireError::malformed("page record", LATE).into()
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};
    use std::net::TcpListener;
    use std::os::fd::BorrowedFd;
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::*;
    use crate::bitmap::PageBitmap;
    use crate::driver::link::LinkError;
    use crate::machine::Absent;

    const RAM: [PageRange; 1] = [PageRange { start: Gfn(0), pages: 64 }];

    /// Memory in which nobody may look for anything.
    struct Untouchable;

    impl GuestMemory for Untouchable {
        fn ranges(&self) -> &[PageRange] {
            &RAM
        }

        fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
            panic!("whoever touches {pages:?} waits for it")
        }

        fn write(&self, first: Gfn, _: &[u8]) -> Result<(), MachineError> {
            panic!("whoever touches {first:?} waits for it")
        }

        fn zero(&self, first: Gfn, _: u64) -> Result<(), MachineError> {
            panic!("whoever touches {first:?} waits for it")
        }
    }

    struct Placed(Mutex<Vec<Gfn>>);

    impl Absent for Placed {
        fn touched(&self, _: &mut Vec<Gfn>, _: Duration) -> Result<(), MachineError> {
            Ok(())
        }

        fn place(&self, first: Gfn, _: &[u8]) -> Result<(), MachineError> {
            self.0.lock().unwrap().push(first);
            Ok(())
        }

        fn place_zeros(&self, pages: PageRange) -> Result<(), MachineError> {
            self.place(pages.start, &[])
        }

        fn end(&self) {}

        fn is_forgotten(&self) -> bool {
            false
        }
    }

    struct Bytes(Mutex<Cursor<Vec<u8>>>);

    impl Read for &Bytes {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().read(into)
        }
    }

    /// Gives the seal a record of one page.
    fn take(seal: &Seal, gfn: u64, kind: PageKind) -> Result<(), SinkError> {
        let mut record = PageRecord::default();
        record.begin(2);
        record.push(Gfn(gfn), kind);
        record.contents_bytes = record.raw_bytes() as u32;
        let contents = Bytes(Mutex::new(Cursor::new(vec![7; record.raw_bytes() as usize])));
        let mut reader = Reader::new(Inflow::new(contents, None, Arc::default(), None));
        let places = Places { memory: &Untouchable, disks: None };
        seal.pages(&record, &mut reader, &mut Unpacker::default(), places)
    }

    #[test]
    fn pages_that_follow_are_placed_and_a_delta_to_a_missing_page_is_refused_untouched() {
        let (events, _kept) = sync_channel(8);
        let mut missing = PageBitmap::covering(&RAM);
        missing.insert_range(PageRange { start: Gfn(0), pages: 10 });
        let placed = Arc::new(Placed(Mutex::default()));
        let seal = Seal::default();
        seal.follow(Arc::new(Arriving::new(Arc::clone(&placed) as _, (&RAM, missing), None, events)));
        assert!(take(&seal, 1, PageKind::Raw).is_ok());
        assert!(take(&seal, 2, PageKind::Zero).is_ok());
        assert!(take(&seal, 3, PageKind::Delta).is_err());
        assert_eq!(*placed.0.lock().unwrap(), [Gfn(1), Gfn(2)]);
    }

    /// Memory of which it is only known what was read into it.
    #[derive(Default)]
    struct Straight(Mutex<Vec<u8>>);

    impl GuestMemory for Straight {
        fn ranges(&self) -> &[PageRange] {
            &RAM
        }

        fn bytes(&self, pages: PageRange) -> Result<&[u8], MachineError> {
            Ok(vec![0; (pages.pages * PAGE_SIZE_BYTES) as usize].leak())
        }

        fn write(&self, _: Gfn, from: &[u8]) -> Result<(), MachineError> {
            self.0.lock().unwrap().extend_from_slice(from);
            Ok(())
        }

        fn receive(&self, pages: PageRange, done: usize, from: BorrowedFd<'_>) -> io::Result<usize> {
            let mut came = vec![0; (pages.pages * PAGE_SIZE_BYTES) as usize - done];
            let count = TcpStream::from(from.try_clone_to_owned()?).read(&mut came)?;
            self.0.lock().unwrap().extend_from_slice(&came[..count]);
            Ok(count)
        }

        fn zero(&self, _: Gfn, _: u64) -> Result<(), MachineError> {
            Ok(())
        }
    }

    /// A seal's reader of a connection in clear over which `sent` came, and that then ended.
    fn in_clear(sent: Vec<u8>) -> Reader {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let there = listener.accept().unwrap().0;
        std::thread::spawn(move || here.write_all(&sent));
        let past = there.try_clone().unwrap();
        Reader::new(Inflow::new(there, None, Arc::default(), None).with_straight(past))
    }

    #[test]
    fn in_clear_long_runs_pass_the_buffer_by_and_nothing_is_lost_between() {
        let mut record = PageRecord::default();
        record.begin(1);
        let runs = [(0, 1), (2, 40), (50, 3), (60, 17), (100, 1), (120, 120), (300, 16)];
        for (start, pages) in runs {
            record.push_run(Run { range: PageRange { start: Gfn(start), pages }, kind: PageKind::Raw });
        }
        let contents: Vec<u8> = (0..record.raw_bytes()).map(|at| (at % 251) as u8).collect();
        let twice = contents.repeat(2);
        let (memory, seal, mut reader) = (Straight::default(), Seal::default(), in_clear(twice.clone()));
        let places = Places { memory: &memory, disks: None };
        for _ in 0..2 {
            assert!(seal.pages(&record, &mut reader, &mut Unpacker::default(), places).is_ok());
        }
        assert!(*memory.0.lock().unwrap() == twice);
        let cut = seal.pages(&record, &mut reader, &mut Unpacker::default(), places);
        assert!(matches!(cut, Err(SinkError::Link(LinkError::Truncated))));
    }

    #[test]
    fn once_closed_nothing_is_written() {
        let seal = Seal::default();
        seal.close();
        for kind in [PageKind::Raw, PageKind::Zero, PageKind::Delta] {
            assert!(take(&seal, 1, kind).is_err(), "{kind:?}");
        }
    }
}
