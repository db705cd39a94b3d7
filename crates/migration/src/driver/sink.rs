//! One page stream's receiving side: checks frames and writes their pages straight into guest memory.

use std::io::Read;
use std::net::TcpStream;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_types::{ApiError, Gfn, PAGE_SIZE_BYTES};

use super::ahead::Ahead;
use super::incoming::Event;
use super::link::{LinkError, Reader};
use super::pump::SHARD_PAGES;
use crate::codec::{Codec, Unpacker, delta};
use crate::destination::Input;
use crate::failure::{self, Link};
use crate::machine::{Destination, MachineError};
use crate::wire::{Ack, HEADER_BYTES, PageKind, PageRecord, RoundEnd, Run, Tag, WireError};

/// An acknowledgement follows after this many bytes on the wire,
const ACK_WIRE_BYTES: u64 = 4 << 20;
/// or after this many pages,
const ACK_PAGES: u64 = 16 << 10;
/// or with the first record after this time.
const ACK_INTERVAL: Duration = Duration::from_millis(50);

/// Once closed, no sink writes guest memory any more, whatever a source sends.
#[derive(Default)]
pub(super) struct Seal(RwLock<bool>);

impl Seal {
    /// Returns when the writes that were under way have ended.
    pub(super) fn close(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Writes guest memory, unless the seal is closed.
    fn write(&self, write: impl FnOnce() -> Result<(), MachineError>) -> Result<(), SinkError> {
        let closed = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(WireError::malformed("page record", "pages after the device state").into());
        }
        write().map_err(SinkError::Machine)
    }
}

/// See the module.
pub(super) struct Sink<S = TcpStream> {
    reader: Reader<S>,
    machine: Arc<dyn Destination>,
    seal: Arc<Seal>,
    /// What the last acknowledgement said, and what the next will say.
    acked: Ack,
    next: Ack,
    acked_at: Instant,
    /// Kept to use its memory again.
    record: PageRecord,
    unpacker: Unpacker,
    /// None outside of [`Sink::run`].
    ahead: Option<Ahead>,
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
    pub(super) fn new(
        stream: u32,
        reader: Reader<S>,
        machine: Arc<dyn Destination>,
        seal: Arc<Seal>,
    ) -> Self {
        let acked = Ack { stream, ..Ack::default() };
        Self {
            reader,
            machine,
            seal,
            acked,
            next: acked,
            acked_at: Instant::now(),
            record: PageRecord::default(),
            unpacker: Unpacker::default(),
            ahead: None,
        }
    }

    /// Receives until the connection ends, as one of `count` streams.
    pub(super) fn run(mut self, count: u32, events: &SyncSender<Event>, peer: &str) {
        let machine = Arc::clone(&self.machine);
        let gap_pages = u64::from(count - 1) * SHARD_PAGES;
        std::thread::scope(|scope| {
            self.ahead = Ahead::start(scope, self.next.stream, gap_pages, machine.memory());
            self.receive(events, peer);
            // Ends its thread.
            self.ahead = None;
        });
    }

    fn receive(&mut self, events: &SyncSender<Event>, peer: &str) {
        loop {
            let input = match self.frame() {
                Ok(false) => continue,
                Ok(true) => {
                    self.acked = self.next;
                    self.acked_at = Instant::now();
                    Input::Received(self.acked)
                }
                Err(error) => Input::Lost {
                    link: Link::Pages(self.next.stream),
                    error: describe(error, peer, self.next.stream),
                },
            };
            let failed = matches!(input, Input::Lost { .. });
            // The engine may have gone; then there is nobody left to tell.
            if events.send(Event::Input(input)).is_err() || failed {
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
                self.pages()?;
                self.next.wire_bytes += u64::from(self.record.contents_bytes);
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

    /// Brings the pages of the record into guest memory.
    fn pages(&mut self) -> Result<(), SinkError> {
        let memory = self.machine.memory();
        // Later rounds bring pages that have been touched.
        if let Some(ahead) = self.ahead.as_mut().filter(|_| self.record.round == 1) {
            self.record.raw().for_each(|run| ahead.came(memory, run));
        }
        for Run { range, kind } in &self.record.runs {
            if *kind == PageKind::Zero {
                self.seal.write(|| memory.zero(range.start, range.pages))?;
            }
        }
        if self.record.codec == Codec::None && self.record.delta_pages == 0 {
            self.plain_contents()
        } else {
            self.packed_contents()
        }
    }

    /// The contents go into guest memory straight from where they arrived.
    fn plain_contents(&mut self) -> Result<(), SinkError> {
        let memory = self.machine.memory();
        for range in self.record.raw() {
            let mut next = range.start.0;
            while next < range.end() {
                let bytes = ((range.end() - next) * PAGE_SIZE_BYTES) as usize;
                let contents = self.reader.pages(bytes).map_err(SinkError::Link)?;
                self.seal.write(|| memory.write(Gfn(next), contents))?;
                next += contents.len() as u64 / PAGE_SIZE_BYTES;
            }
        }
        Ok(())
    }

    fn packed_contents(&mut self) -> Result<(), SinkError> {
        let (memory, record) = (self.machine.memory(), &self.record);
        let packed = self.reader.contents(record.contents_bytes as usize).map_err(SinkError::Link)?;
        let unpacked = self.unpacker.unpack(record.codec, packed, record.raw_bytes() as usize);
        let mut rest = unpacked.map_err(|reason| WireError::malformed("page contents", reason))?;
        for Run { range, kind } in record.runs.iter().filter(|run| run.kind != PageKind::Zero) {
            // As many bytes as there are pages in all these runs were unpacked.
            let (contents, others) = rest.split_at_mut((range.pages * PAGE_SIZE_BYTES) as usize);
            rest = others;
            self.seal.write(|| {
                if *kind == PageKind::Delta {
                    delta::apply(memory.bytes(*range)?, contents);
                }
                memory.write(range.start, contents)
            })?;
        }
        Ok(())
    }
}

/// A round must follow the last one that ended.
fn check_round(round: u32, ended: u32) -> Result<(), WireError> {
    if round > ended {
        return Ok(());
    }
    Err(WireError::malformed("round", format!("round {round} after round {ended} had ended")))
}

fn describe(error: SinkError, peer: &str, stream: u32) -> ApiError {
    match error {
        SinkError::Link(error) => error.describe(peer, Link::Pages(stream)),
        SinkError::Machine(error) => failure::machine(&error),
    }
}
