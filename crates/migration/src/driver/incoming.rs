//! Drives the destination's state machine.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use godwit_types::control::Question;
use godwit_types::ownership::Witness;
use godwit_types::{ApiError, Epoch, MigrationId, VmId};

use super::acceptor::{Acceptor, Arrivals, Greeter, await_source};
use super::answer::{self, AnswerSlot};
use super::link::{Connection, LinkError, Reader};
use super::outflow::Outflow;
use super::sink::Seal;
use super::threads::{linger, no_thread, spawn};
use super::{Arbiter, EVENTS_MAX, Incoming, TICK, steps};
use crate::destination::{Action, Engine, Input, Setup};
use crate::failure::{self, Link};
use crate::machine::{Destination, Section};
use crate::tuning::Tuning;
use crate::wire::{Control, DeviceState, Hello, Tag, WireError};

/// What reaches the engine.
pub(super) enum Event {
    Input(Input),
    /// Device state, whole and undamaged.
    State(DeviceState),
    /// Look into the answer slot.
    Wake,
}

/// Waits for the source, then drives the engine until the VM runs here or never will.
pub(super) fn receive(
    request: Incoming,
    machine: Arc<dyn Destination>,
    arbiter: Arc<dyn Arbiter>,
    tuning: Tuning,
) -> Result<Epoch, ApiError> {
    let Incoming { listener, migration, epoch, secure } = request;
    let mut arrivals = Arrivals::new(listener).map_err(|error| listening(&error))?;
    let stop = Arc::new(AtomicBool::new(false));
    let greeter = Greeter { secure, connect: tuning.connect, stop: Arc::clone(&stop) };
    let (connection, hello) = await_source(&mut arrivals, migration, &tuning, &greeter)?;
    let Connection { reader, writer: control } = connection;
    let (sender, events) = sync_channel(EVENTS_MAX);
    let peer = format!("source {}", hello.source);
    let acceptor = Acceptor {
        arrivals,
        greeter,
        migration,
        epoch,
        tuning: tuning.clone(),
        machine: Arc::clone(&machine),
        sender: sender.clone(),
        peer: peer.clone(),
        seal: Arc::default(),
        opened: Arc::default(),
    };
    let control_reader = {
        let sender = sender.clone();
        spawn("mig-control", move || listen(reader, &sender, &peer))?
    };
    let run = Run {
        engine: Engine::new(Setup { migration, epoch, tuning }),
        began: Instant::now(),
        migration,
        epoch,
        machine,
        arbiter,
        answer: Arc::default(),
        control,
        seal: Arc::clone(&acceptor.seal),
        opened: Arc::clone(&acceptor.opened),
        acceptor: Some(acceptor),
        accepting: None,
        control_reader,
        events,
        sender,
        stop,
        sections: Vec::new(),
        result: None,
    };
    run.drive(hello)
}

struct Run {
    engine: Engine,
    began: Instant,
    migration: MigrationId,
    epoch: Epoch,
    machine: Arc<dyn Destination>,
    arbiter: Arc<dyn Arbiter>,
    answer: Arc<AnswerSlot>,
    control: Outflow,
    /// Taken when page streams may come.
    acceptor: Option<Acceptor>,
    accepting: Option<JoinHandle<Vec<JoinHandle<()>>>>,
    seal: Arc<Seal>,
    opened: Arc<Mutex<Vec<TcpStream>>>,
    control_reader: JoinHandle<()>,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    stop: Arc<AtomicBool>,
    sections: Vec<Section>,
    result: Option<Result<Epoch, ApiError>>,
}

impl Run {
    fn drive(mut self, hello: Hello) -> Result<Epoch, ApiError> {
        self.feed(Input::Hello(hello));
        let result = loop {
            if let Some(result) = self.result.take() {
                break result;
            }
            let input = match self.events.recv_timeout(TICK) {
                Ok(Event::Input(input)) => input,
                Ok(Event::State(DeviceState { last_round, sections })) => {
                    self.sections = sections;
                    Input::State { last_round }
                }
                Ok(Event::Wake) | Err(_) => Input::Tick,
            };
            if let Some(verdict) = self.answer.take() {
                self.feed(Input::Verdict(verdict));
            }
            self.feed(input);
        };
        self.close(result.is_ok());
        result
    }

    /// Tells the state machine what happened, does what it wants, and tells it the answers.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.engine.handle(self.began.elapsed(), input) {
                inputs.extend(self.perform(action));
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Input> {
        steps::destination(&action).into_iter().for_each(godwit_faults::reached);
        match action {
            Action::Admit(manifest) => return Some(Input::Admitted(self.machine.admit(&manifest))),
            Action::AcceptStreams { count } => return self.accept_streams(count),
            Action::Send(message) => {
                if let Err(error) = self.control.control(&message) {
                    let error = error.describe("source", Link::Control);
                    return Some(Input::Lost { link: Link::Control, error });
                }
            }
            Action::Load => {
                self.seal.close();
                let sections = std::mem::take(&mut self.sections);
                return Some(Input::Loaded(self.machine.load(sections)));
            }
            Action::AskClaim { vm, witness } => self.ask_claim(vm, witness),
            Action::TakeOver => return Some(Input::TookOver(self.machine.take_over(self.migration))),
            Action::Run { epoch } => {
                let ran = self.machine.run(epoch);
                if let Err(error) = &ran {
                    tracing::warn!("the VM is this host's and does not run yet: {error}");
                }
                return Some(Input::Ran(ran));
            }
            Action::End(result) => self.result = Some(result),
        }
        None
    }

    fn accept_streams(&mut self, count: u32) -> Option<Input> {
        let acceptor = self.acceptor.take()?;
        let spawned = thread::Builder::new().name("mig-accept".into()).spawn(move || acceptor.run(count));
        match spawned {
            Ok(thread) => self.accepting = Some(thread),
            Err(error) => return Some(Input::Lost { link: Link::Pages(0), error: no_thread(&error) }),
        }
        None
    }

    fn ask_claim(&self, vm: VmId, witness: Witness) {
        let question = Question::Claim { migration: self.migration, vm, epoch: self.epoch, witness };
        let sender = self.sender.clone();
        // A full queue means that the engine is awake anyway.
        let wake = move || drop(sender.try_send(Event::Wake));
        self.arbiter.ask(question, answer::callback(&self.answer, wake));
    }

    /// Ends all threads. If the VM runs here that happens by itself soon, without being waited for; if not, the source
    /// first gets the time to read why.
    fn close(self, running: bool) {
        if running {
            self.stop.store(true, Relaxed);
            return;
        }
        let _ = self.control.stream().shutdown(Shutdown::Write);
        linger(&self.events, &self.control_reader);
        self.stop.store(true, Relaxed);
        // Threads that wait to tell the engine something stop waiting.
        drop(self.events);
        let _ = self.control.stream().shutdown(Shutdown::Both);
        let sinks = self.accepting.map(|thread| thread.join().unwrap_or_default()).unwrap_or_default();
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        drop(opened);
        for thread in sinks.into_iter().chain([self.control_reader]) {
            let _ = thread.join();
        }
    }
}

/// Reads the control connection until it ends.
fn listen(mut reader: Reader, events: &SyncSender<Event>, peer: &str) {
    loop {
        let event = match reader.frame() {
            Ok((Tag::Control, payload)) => {
                Control::from_payload(payload).map(|message| Event::Input(Input::Control(message)))
            }
            Ok((Tag::State, payload)) => DeviceState::decode(payload).map(Event::State),
            Ok((tag, _)) => Err(WireError::OutOfPlace { tag, expected: "a control message or device state" }),
            Err(error) => Ok(lost(error, peer)),
        };
        let event = event.unwrap_or_else(|error| lost(error.into(), peer));
        let last = matches!(event, Event::Input(Input::Lost { .. }));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn lost(error: LinkError, peer: &str) -> Event {
    Event::Input(Input::Lost { link: Link::Control, error: error.describe(peer, Link::Control) })
}

fn listening(error: &std::io::Error) -> ApiError {
    failure::lost("source", Link::Control, &error.to_string())
}
