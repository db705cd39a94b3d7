//! Reads the control connections of a destination, one for each session.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use godwit_types::ApiError;

use super::incoming::Event;
use super::link::Reader;
use super::offer;
use super::places::Places;
use super::seal::Seal;
use super::sink::{SinkError, describe};
use super::threads::spawn;
use crate::codec::Unpacker;
use crate::destination::Input;
use crate::failure::Link;
use crate::machine::Destination;
use crate::wire::{Control, DeviceState, Missing, PageRecord, Tag, WireError};

/// See the module.
pub(super) struct Ear {
    pub(super) machine: Arc<dyn Destination>,
    pub(super) seal: Seal,
    pub(super) peer: String,
    pub(super) events: SyncSender<Event>,
}

impl Ear {
    /// Reads one until it ends, on a thread of its own.
    pub(super) fn listen(&self, session: u32, mut reader: Reader) -> Result<JoinHandle<()>, ApiError> {
        let (machine, seal) = (Arc::clone(&self.machine), self.seal.clone());
        let (events, peer) = (self.events.clone(), self.peer.clone());
        spawn("mig-control", move || {
            let missing = Missing::of(machine.memory().ranges());
            let mut parts = Parts { missing, record: PageRecord::default(), unpacker: Unpacker::default() };
            loop {
                let event = match parts.next(&mut reader, session, &seal, &*machine) {
                    Ok(None) => continue,
                    Ok(Some(event)) => event,
                    Err(error) => {
                        let link = Link::Control;
                        Event::Of(session, Input::Lost { link, error: describe(error, &peer, link) })
                    }
                };
                let last = matches!(event, Event::Of(_, Input::Lost { .. }));
                if events.send(event).is_err() || last {
                    return;
                }
            }
        })
    }
}

/// What comes in several frames; kept also to use its memory again.
struct Parts {
    missing: Missing,
    record: PageRecord,
    unpacker: Unpacker,
}

impl Parts {
    /// Reads one frame. Pages that somebody waits for are placed at once.
    fn next(
        &mut self,
        reader: &mut Reader,
        session: u32,
        seal: &Seal,
        machine: &dyn Destination,
    ) -> Result<Option<Event>, SinkError> {
        let (tag, payload) = reader.frame().map_err(SinkError::Link)?;
        Ok(match tag {
            Tag::Control => Some(Event::Of(session, Input::Control(Control::from_payload(payload)?))),
            Tag::State => Some(Event::State(DeviceState::decode(payload)?)),
            Tag::Missing => self.missing.take(payload)?.map(Event::Missing),
            Tag::Pages if seal.arriving().is_some() => {
                self.record.decode_into(payload)?;
                offer::refuse(&self.record)?;
                // What follows is memory.
                let places = Places { memory: machine.memory(), disks: None };
                seal.pages(&self.record, reader, &mut self.unpacker, places)?;
                None
            }
            tag => {
                return Err(
                    WireError::OutOfPlace { tag, expected: "a control message or device state" }.into()
                );
            }
        })
    }
}
