//! One page stream's receiving side: checks frames and writes their pages straight into guest memory, or onto a disk.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use godwit_types::ApiError;

use super::ahead::Ahead;
use super::incoming::Event;
use super::link::{LinkError, Reader};
use super::offer::{self, Offer};
use super::places::Places;
use super::seal::Seal;
use crate::codec::Unpacker;
use crate::destination::Input;
use crate::disks::ArrivingDisks;
use crate::failure::{self, Link};
use crate::machine::{Destination, MachineError};
use crate::wire::{Ack, HEADER_BYTES, PIECE_PAGES, PageKind, PageRecord, RoundEnd, Tag, WireError};

/// An acknowledgement follows after this many bytes on the wire,
const ACK_WIRE_BYTES: u64 = 4 << 20;
/// or after this many pages,
const ACK_PAGES: u64 = 16 << 10;
/// or with the first record after this time.
const ACK_INTERVAL: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Sink<S = TcpStream> {
    reader: Reader<S>,
    machine: Arc<dyn Destination>,
    /// Those that arrive with the VM.
    disks: Option<Arc<dyn ArrivingDisks>>,
    seal: Seal,
    /// What was offered of kept memory.
    offer: Option<Arc<Offer>>,
    /// What the last acknowledgement said, and what the next will say.
    acked: Ack,
    next: Ack,
    acked_at: Instant,
    /// Kept to use its memory again.
    record: PageRecord,
    unpacker: Unpacker,
    chunk: Vec<u8>,
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
        seal: Seal,
        offer: Option<Arc<Offer>>,
    ) -> Self {
        let acked = Ack { stream, ..Ack::default() };
        Self {
            reader,
            disks: machine.disks(),
            machine,
            seal,
            offer,
            acked,
            next: acked,
            acked_at: Instant::now(),
            record: PageRecord::default(),
            unpacker: Unpacker::default(),
            chunk: Vec::new(),
            ahead: None,
        }
    }

    /// Receives until the connection ends, as one of `count` streams.
    pub(super) fn run(mut self, count: u32, events: &SyncSender<Event>, session: u32, peer: &str) {
        let machine = Arc::clone(&self.machine);
        let gap_pages = u64::from(count - 1) * PIECE_PAGES;
        std::thread::scope(|scope| {
            self.ahead = Ahead::start(scope, self.next.stream, gap_pages, machine.memory());
            self.receive(events, session, peer);
            self.offer.iter().for_each(|offer| offer.end());
            // Ends its thread.
            self.ahead = None;
        });
    }

    fn receive(&mut self, events: &SyncSender<Event>, session: u32, peer: &str) {
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
                let memory = self.machine.memory();
                let places = Places { memory, disks: self.disks.as_deref() };
                // Disks and memory never share a record.
                let of_disk =
                    self.record.runs.first().is_some_and(|run| places.disks_with(run.range.start).is_some());
                // Later rounds bring pages that have been touched.
                if let Some(ahead) = self.ahead.as_mut().filter(|_| self.record.round == 1) {
                    let filled = self.record.of_kind(|kind| kind != PageKind::Zero);
                    filled.for_each(|run| ahead.came(memory, run));
                }
                match self.offer.as_ref().filter(|_| self.record.round == 1 && !of_disk) {
                    Some(offer) => offer.take(&self.record, &self.seal, &mut self.chunk)?,
                    None => offer::refuse(&self.record)?,
                }
                self.seal.pages(&self.record, &mut self.reader, &mut self.unpacker, places)?;
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
                // So that rounds take as long as disks take to be durable, which the blackout is predicted by.
                self.disks.as_ref().map_or(Ok(()), |disks| disks.flush()).map_err(SinkError::Machine)?;
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
