//! The reading ends of a migration's connections without sockets: what the fuzzing targets feed.

use std::io::Read;
use std::sync::Arc;

use godwit_types::Gfn;

use super::inflow::Inflow;
use super::link::Reader;
use super::offer::Offer;
use super::seal::Seal;
use super::sink::Sink;
use crate::machine::{Destination, PageRange};
use crate::wire::{Control, DeviceState, Digests, Hello, Missing, PageRecord, RoundEnd, Tag};

/// Reads frames as the control connection's reader does, and decodes each, until the stream ends or is refused.
/// Returns how many were accepted.
pub fn read_frames<S>(stream: S) -> usize
where
    for<'a> &'a S: Read,
{
    let mut reader = Reader::new(Inflow::new(stream, None, Arc::default(), None)).carrying(Tag::State);
    let ram = [PageRange { start: Gfn(0), pages: 8 }, PageRange { start: Gfn(16), pages: 4 }];
    let (mut accepted, mut missing) = (0, Missing::of(&ram));
    while let Ok((tag, payload)) = reader.frame() {
        let decoded = match tag {
            Tag::Hello => Hello::decode(payload).map(drop),
            Tag::Control => Control::from_payload(payload).map(drop),
            Tag::State => DeviceState::decode(payload).map(drop),
            Tag::Pages => PageRecord::default().decode_into(payload),
            Tag::RoundEnd => RoundEnd::decode(payload).map(drop),
            Tag::Missing => missing.take(payload).map(drop),
            Tag::Digests => Digests::decode(payload).map(drop),
        };
        accepted += usize::from(decoded.is_ok());
    }
    accepted
}

/// Receives a page stream into `machine`'s memory until it ends or is refused.
pub fn receive_pages<S>(stream: S, machine: Arc<dyn Destination>)
where
    for<'a> &'a S: Read,
{
    let reader = Reader::new(Inflow::new(stream, None, Arc::default(), None)).carrying(Tag::Pages);
    let offer = Offer::of(&machine).map(Arc::new);
    let mut sink = Sink::new(0, reader, machine, Seal::default(), offer);
    while sink.frame().is_ok() {}
}
