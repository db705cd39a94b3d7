//! What a source does when part of memory follows its guest: names the pages, serves them, and connects again.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use godwit_types::{ApiError, ErrorCode, Gfn, PAGE_SIZE_BYTES};

use super::{Event, Run, greeting, listen, welcomed};
use crate::bitmap::PageBitmap;
use crate::driver::flow::Flow;
use crate::driver::link::{Connection, LinkError};
use crate::driver::pump::{Job, kind};
use crate::driver::rest::Rest;
use crate::driver::threads::spawn;
use crate::driver::{Connections, Outgoing, Reach};
use crate::failure::{self, Link};
use crate::machine::{MachineError, PageRange, Source};
use crate::source::Input;
use crate::wire::{DeviceState, PageRecord, RAW_PAGES_MAX, Tag, missing};

impl Run {
    /// Sends the state; before it, with `rest`, the names of all pages that wait.
    pub(super) fn send_state(&mut self, last_round: u32, rest: bool) -> Option<Input> {
        if rest {
            let pages = PageBitmap::clone(&self.pages_to_send.take());
            let rest = Rest::new(self.machine.memory().ranges(), pages);
            self.rest_round = last_round.saturating_add(1);
            for payload in missing(rest.runs().into_iter()) {
                if let Some(lost) = self.send(Tag::Missing, &payload) {
                    return Some(lost);
                }
            }
            self.rest = Some(Arc::new(rest));
        }
        let sections = std::mem::take(&mut self.sections);
        self.send(Tag::State, &DeviceState { last_round, sections }.encode())
    }

    /// Sends pages that the guest waits for.
    pub(super) fn serve_pages(&mut self, wanted: &[u64]) -> Option<Input> {
        let (rest, machine) = (Arc::clone(self.rest.as_ref()?), Arc::clone(&self.machine));
        let mut wanted = wanted.iter().filter_map(|gfn| rest.take_asked(Gfn(*gfn))).peekable();
        let mut record = PageRecord::default();
        while wanted.peek().is_some() {
            record.begin(self.rest_round);
            while let Some(run) = wanted.next_if(|run| record.pages + run.pages <= RAW_PAGES_MAX) {
                if let Err(error) = name_pages(&mut record, &*machine, run) {
                    return Some(Input::Lost { link: Link::Control, error: failure::machine(&error) });
                }
            }
            record.contents_bytes = record.raw_bytes() as u32;
            if let Err(lost) = self.send_pages(&record, &*machine) {
                return Some(lost);
            }
        }
        None
    }

    fn send_pages(&mut self, record: &PageRecord, machine: &dyn Source) -> Result<(), Input> {
        let lost = |error| Input::Lost { link: Link::Control, error };
        let contents: Result<Vec<_>, _> = record.raw().map(|run| machine.memory().bytes(run)).collect();
        let contents = contents.map_err(|error| lost(failure::machine(&error)))?;
        let mut payload = Vec::new();
        record.encode_into(&mut payload);
        let peer = format!("destination {}", self.request.destination);
        let took = self.control.frame(Tag::Pages, &payload, &contents);
        let took = took.map_err(|error| lost(error.describe(&peer, Link::Control)))?;
        self.flow.page_stream_bytes.fetch_add(took.frame, Relaxed);
        self.flow.other_bytes.fetch_add(took.sealing, Relaxed);
        self.flow.count(record);
        Ok(())
    }

    pub(super) fn push_rest(&self) {
        let Some(rest) = &self.rest else { return };
        for pump in &self.pumps {
            // A pump that is gone has reported why.
            let _ = pump.send(Job::Rest { round: self.rest_round, rest: Arc::clone(rest) });
        }
    }

    /// Ends the connections and the threads that send on them.
    pub(super) fn disconnect(&mut self) {
        self.flow.stop();
        self.pumps.clear();
        self.pages.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        let _ = self.control.stream().shutdown(Shutdown::Both);
        // They may wait for the engine to hear of their end, and so are not waited for here.
        self.old_threads.append(&mut self.pump_threads);
        self.old_threads.retain(|thread| !thread.is_finished());
    }

    /// Asks for new connections.
    pub(super) fn reconnect(&mut self, session: u32) {
        self.session = session;
        let (slot, sender) = (Arc::clone(&self.connected), self.sender.clone());
        let answer = move |connections| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(connections);
            // A full queue means that the engine is awake anyway.
            drop(sender.try_send(Event::Wake));
        };
        let Outgoing { migration, destination, address, .. } = &self.request;
        let (migration, address, page_streams) = (*migration, *address, self.tuning.page_streams);
        let reach = Reach { migration, destination, address, page_streams };
        self.agent.connector.connect(reach, Box::new(answer));
    }

    /// Shakes hands on new connections, as on the first ones.
    pub(super) fn rejoin(&mut self, connections: Connections) -> Result<(), ApiError> {
        let peer = format!("destination {}", self.request.destination);
        let describe = |error: LinkError| error.describe(&peer, Link::Control);
        if connections.pages.len() != self.tuning.page_streams as usize {
            return Err(ApiError::new(ErrorCode::Invalid, "other than the first number of page connections"));
        }
        let Connection { mut reader, mut writer } =
            greeting(&self.request, &self.tuning, &self.stop).greet(connections.control).map_err(describe)?;
        let hello = self.hello(self.control_role(self.machine.manifest()));
        writer.frame(Tag::Hello, &hello, &[]).map_err(describe)?;
        welcomed(reader.control().map_err(describe)?, &peer)?;
        let connection = Connection { reader, writer }.established(Link::Control, &self.tuning);
        let Connection { reader, writer } = connection.map_err(describe)?;
        self.control = writer;
        self.flow = Arc::new(Flow::after(&self.flow, self.tuning.page_streams));
        let opened = self.open_streams(connections.pages);
        if let Err(error) = opened {
            self.disconnect();
            return Err(error);
        }
        let (sender, flow, session) = (self.sender.clone(), Arc::clone(&self.flow), self.session);
        let ram = self.machine.memory().ranges().to_vec();
        let control_reader =
            spawn("mig-control", move || listen(reader, (session, &ram), &sender, &flow, &peer))?;
        self.old_threads.push(std::mem::replace(&mut self.control_reader, control_reader));
        Ok(())
    }
}

/// Adds the pages of a run, each as what it holds.
fn name_pages(record: &mut PageRecord, machine: &dyn Source, run: PageRange) -> Result<(), MachineError> {
    let bytes = machine.memory().bytes(run)?;
    for (gfn, page) in (run.start.0..).zip(bytes.chunks_exact(PAGE_SIZE_BYTES as usize)) {
        record.push(Gfn(gfn), kind(page));
    }
    Ok(())
}
