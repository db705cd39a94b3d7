//! One page stream's receiving side: checks frames and writes their pages straight into guest memory.

use std::io::Read;
use std::net::TcpStream;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_types::{ApiError, Gfn, PAGE_SIZE_BYTES};

use super::arriving::Arriving;
use super::incoming::Event;
use super::link::{LinkError, Reader};
use crate::destination::Input;
use crate::failure::{self, Link};
use crate::machine::{Destination, GuestMemory, MachineError, PageRange};
use crate::wire::{Ack, HEADER_BYTES, PageKind, PageRecord, RoundEnd, Run, Tag, WireError};

/// An acknowledgement follows after this many bytes on the wire,
const ACK_WIRE_BYTES: u64 = 4 << 20;
/// or after this many pages,
const ACK_PAGES: u64 = 16 << 10;
/// or with the first record after this time.
const ACK_INTERVAL: Duration = Duration::from_millis(50);

/// Once closed, nobody writes guest memory any more, whatever a source sends: only pages that are to follow are placed.
#[derive(Clone, Default)]
pub(super) struct Seal(Arc<RwLock<Stage>>);

#[derive(Default)]
enum Stage {
    #[default]
    Open,
    Closed,
    Following(Arc<Arriving>),
}

impl Seal {
    /// Returns when the writes that were under way have ended.
    pub(super) fn close(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Stage::Closed;
    }

    /// From now on, pages that are missing are placed.
    pub(super) fn follow(&self, arriving: Arc<Arriving>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Stage::Following(arriving);
    }

    /// The pages that are to follow, if any are.
    pub(super) fn arriving(&self) -> Option<Arc<Arriving>> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Following(arriving) => Some(Arc::clone(arriving)),
            Stage::Open | Stage::Closed => None,
        }
    }

    /// Brings the pages of a record into guest memory, the contents straight from where they arrived.
    pub(super) fn pages<S>(
        &self,
        record: &PageRecord,
        reader: &mut Reader<S>,
        memory: &dyn GuestMemory,
    ) -> Result<(), SinkError>
    where
        for<'a> &'a S: Read,
    {
        for Run { range, kind } in &record.runs {
            let (mut next, end) = (range.start.0, range.start.0 + range.pages);
            if *kind == PageKind::Zero {
                self.zero(memory, *range)?;
                continue;
            }
            while next < end {
                let bytes = ((end - next) * PAGE_SIZE_BYTES) as usize;
                let contents = reader.pages(bytes).map_err(SinkError::Link)?;
                self.write(memory, Gfn(next), contents)?;
                next += contents.len() as u64 / PAGE_SIZE_BYTES;
            }
        }
        Ok(())
    }

    fn zero(&self, memory: &dyn GuestMemory, range: PageRange) -> Result<(), SinkError> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Open => memory.zero(range.start, range.pages),
            Stage::Following(arriving) => arriving.place_zeros(range),
            Stage::Closed => return Err(sealed()),
        }
        .map_err(SinkError::Machine)
    }

    fn write(&self, memory: &dyn GuestMemory, first: Gfn, contents: &[u8]) -> Result<(), SinkError> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Stage::Open => memory.write(first, contents),
            Stage::Following(arriving) => arriving.place(first, contents),
            Stage::Closed => return Err(sealed()),
        }
        .map_err(SinkError::Machine)
    }
}

fn sealed() -> SinkError {
    WireError::malformed("page record", "pages after the device state").into()
}

/// See the module.
pub(super) struct Sink<S = TcpStream> {
    reader: Reader<S>,
    machine: Arc<dyn Destination>,
    seal: Seal,
    /// What the last acknowledgement said, and what the next will say.
    acked: Ack,
    next: Ack,
    acked_at: Instant,
    /// Kept to use its memory again.
    record: PageRecord,
}

pub(super) enum SinkError {
    Link(LinkError),
    Machine(MachineError),
}

impl From<WireError> for SinkError {
    fn from(error: WireError) -> Self {
        Self::Link(error.into())
    }
}

impl<S> Sink<S>
where
    for<'a> &'a S: Read,
{
    /// A stream whose handshake is done.
    pub(super) fn new(stream: u32, reader: Reader<S>, machine: Arc<dyn Destination>, seal: Seal) -> Self {
        let acked = Ack { stream, ..Ack::default() };
        Self {
            reader,
            machine,
            seal,
            acked,
            next: acked,
            acked_at: Instant::now(),
            record: PageRecord::default(),
        }
    }

    /// Receives until the connection ends.
    pub(super) fn run(mut self, events: &SyncSender<Event>, session: u32, peer: &str) {
        loop {
            let input = match self.frame() {
                Ok(false) => continue,
                Ok(true) => {
                    self.acked = self.next;
                    self.acked_at = Instant::now();
                    Input::Received(self.acked)
                }
                Err(error) => {
                    let link = Link::Pages(self.next.stream);
                    Input::Lost { link, error: describe(error, peer, link) }
                }
            };
            let failed = matches!(input, Input::Lost { .. });
            // The engine may have gone; then there is nobody left to tell.
            if events.send(Event::Of(session, input)).is_err() || failed {
                return;
            }
        }
    }

    /// Receives one frame; whether an acknowledgement is due.
    pub(super) fn frame(&mut self) -> Result<bool, SinkError> {
        let (tag, payload) = self.reader.frame().map_err(SinkError::Link)?;
        self.next.wire_bytes += (HEADER_BYTES + payload.len()) as u64;
        match tag {
            Tag::Pages => {
                self.record.decode_into(payload)?;
                check_round(self.record.round, self.next.round)?;
                self.seal.pages(&self.record, &mut self.reader, self.machine.memory())?;
                self.next.wire_bytes += self.record.raw_pages * PAGE_SIZE_BYTES;
                self.next.pages += self.record.pages;
                Ok(self.next.wire_bytes - self.acked.wire_bytes >= ACK_WIRE_BYTES
                    || self.next.pages - self.acked.pages >= ACK_PAGES
                    || self.acked_at.elapsed() >= ACK_INTERVAL)
            }
            Tag::RoundEnd => {
                let end = RoundEnd::decode(payload)?;
                check_round(end.round, self.next.round)?;
                if end.pages != self.next.pages {
                    let reason = format!("{} pages were sent, {} arrived", end.pages, self.next.pages);
                    return Err(WireError::malformed("round", reason).into());
                }
                self.next.round = end.round;
                Ok(true)
            }
            tag => Err(WireError::OutOfPlace { tag, expected: "pages" }.into()),
        }
    }
}

/// A round must follow the last one that ended.
fn check_round(round: u32, ended: u32) -> Result<(), WireError> {
    if round > ended {
        return Ok(());
    }
    Err(WireError::malformed("round", format!("round {round} after round {ended} had ended")))
}

pub(super) fn describe(error: SinkError, peer: &str, link: Link) -> ApiError {
    match error {
        SinkError::Link(error) => error.describe(peer, link),
        SinkError::Machine(error) => failure::machine(&error),
    }
}
