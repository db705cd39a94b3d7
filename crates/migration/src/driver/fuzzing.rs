//! What reads a peer's bytes, without the sockets: for the fuzz targets.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use super::flow::Flow;
use super::link::Reader;
use super::sink::{Seal, Sink};
use super::{incoming, outgoing};
use crate::machine::Destination;
use crate::{destination, source};

/// Frames that one call reads at most: nobody takes the events meanwhile.
pub const FRAMES_MAX: usize = 4096;

/// What the destination's engine is told of a control connection, until it ends.
pub fn destination_hears(bytes: impl Read) -> Vec<destination::Input> {
    let (sender, events) = sync_channel(FRAMES_MAX);
    incoming::listen(Reader::of(bytes), &sender, "source");
    drop(sender);
    inputs(&events)
}

/// What the source's engine is told of a control connection, until it ends.
pub fn source_hears(bytes: impl Read) -> Vec<source::Input> {
    let (sender, events) = sync_channel(FRAMES_MAX);
    outgoing::listen(Reader::of(bytes), &sender, &Flow::new(1), "destination");
    drop(sender);
    let input = |event| match event {
        outgoing::Event::Input(input) => input,
        outgoing::Event::Wake => source::Input::Tick,
    };
    events.iter().map(input).collect()
}

/// What the destination's engine is told of page stream 0, whose pages go into the machine's memory, until it ends.
pub fn destination_fills(bytes: impl Read, machine: Arc<dyn Destination>) -> Vec<destination::Input> {
    let (sender, events) = sync_channel(FRAMES_MAX);
    Sink::new(0, Reader::of(bytes), machine, Arc::<Seal>::default()).run(&sender, "source");
    drop(sender);
    inputs(&events)
}

fn inputs(events: &Receiver<incoming::Event>) -> Vec<destination::Input> {
    let input = |event| match event {
        incoming::Event::Input(input) => input,
        incoming::Event::State(state) => destination::Input::State { last_round: state.last_round },
        incoming::Event::Wake => destination::Input::Tick,
    };
    events.iter().map(input).collect()
}
