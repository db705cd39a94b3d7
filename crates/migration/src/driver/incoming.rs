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
use super::arriving::Arriving;
use super::durable::Durable;
use super::ear::Ear;
use super::link::Connection;
use super::outflow::Outflow;
use super::seal::Seal;
use super::threads::{linger, no_thread, spawn};
use super::worker::{Work, Worker};
use super::{Arbiter, EVENTS_MAX, Incoming, TICK, real_time_at, steps};
use crate::bitmap::PageBitmap;
use crate::destination::{Action, Engine, Input, Setup};
use crate::failure::{self, Link};
use crate::machine::{Destination, MachineError, Manifest, Section};
use crate::proof::Tally;
use crate::tuning::Tuning;
use crate::wire::{Control, DeviceState, Hello, Role, Tag, WANT_PAGES_MAX, Want, missing};

/// What reaches the engine.
pub(super) enum Event {
    Input(Input),
    /// What came over the connections of one session; of no interest if that is not the newest.
    Of(u32, Input),
    /// The pages that are to follow, before the device state.
    Missing(PageBitmap),
    /// Device state, whole and undamaged.
    State(DeviceState),
    /// The source has connected again.
    Rejoined {
        session: u32,
        connection: Connection,
    },
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
    let post_copy = matches!(hello.role, Role::Control { post_copy: true, .. });
    let reuse = matches!(hello.role, Role::Control { reuse: true, .. });
    let verify = matches!(hello.role, Role::Control { verify: true, .. });
    let tally = verify.then(|| Arc::new(Tally::new(migration, machine.memory().ranges())));
    let acceptor = Acceptor {
        arrivals,
        greeter,
        migration,
        epoch,
        tuning: tuning.clone(),
        machine: Arc::clone(&machine),
        sender: sender.clone(),
        peer: peer.clone(),
        seal: Seal::counted(tally.clone()),
        opened: Arc::default(),
        post_copy,
        reuse,
        session: 0,
    };
    let durable = machine.disks().map(Durable::start).transpose()?;
    let worker = Worker::start(&machine, migration, tally.clone(), &sender)?;
    let ear =
        Ear { machine: Arc::clone(&machine), seal: acceptor.seal.clone(), peer, events: sender.clone() };
    let control_reader = ear.listen(0, reader)?;
    let began = Instant::now();
    let run = Run {
        engine: Engine::new(Setup {
            migration,
            epoch,
            unix: real_time_at(began, || machine.real_time()),
            tuning,
        }),
        began,
        migration,
        epoch,
        machine,
        arbiter,
        answer: Arc::default(),
        control,
        session: 0,
        ear,
        worker,
        missing: None,
        faults: None,
        tally,
        durable,
        seal: acceptor.seal.clone(),
        opened: Arc::clone(&acceptor.opened),
        acceptor: Some(acceptor),
        accepting: None,
        control_reader,
        old_readers: Vec::new(),
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
    /// The source's newest connections.
    session: u32,
    ear: Ear,
    worker: Worker,
    /// The pages that are to follow, until they are awaited.
    missing: Option<PageBitmap>,
    /// Sees to the faults of those who touch them.
    faults: Option<JoinHandle<()>>,
    /// What was put where, if memory is to be compared.
    tally: Option<Arc<Tally>>,
    /// Flushes the disks that arrive.
    durable: Option<Durable>,
    seal: Seal,
    opened: Arc<Mutex<Vec<TcpStream>>>,
    control_reader: JoinHandle<()>,
    /// Of connections that have been replaced.
    old_readers: Vec<JoinHandle<()>>,
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
                Ok(Event::Of(session, input)) if session == self.session => input,
                Ok(Event::Rejoined { session, connection }) => match self.rejoin(session, connection) {
                    Some(input) => input,
                    None => continue,
                },
                Ok(Event::Missing(pages)) => {
                    self.missing = Some(pages);
                    continue;
                }
                Ok(Event::State(DeviceState { last_round, sections })) => {
                    self.sections = sections;
                    Input::State { last_round, rest: self.missing.is_some() }
                }
                Ok(Event::Of(..) | Event::Wake) | Err(_) => Input::Tick,
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
            Action::Admit { manifest, post_copy } => {
                return Some(Input::Admitted(self.admit(&manifest, post_copy)));
            }
            Action::AcceptStreams { count } => return self.accept_streams(count),
            Action::Send(message) => return self.send(Tag::Control, &message.to_payload()),
            Action::SendMissing => return self.send_missing(),
            Action::Disconnect => self.disconnect(),
            Action::Load => return self.load(),
            Action::AskClaim { vm, witness } => self.ask_claim(vm, witness),
            Action::TakeOver => self.worker.give(Work::TakeOver),
            Action::Run { epoch } => {
                let follows = self.seal.arriving().is_some();
                self.worker.give(Work::Run { epoch, follows });
            }
            Action::End(result) => self.result = Some(result),
        }
        None
    }

    fn admit(&self, manifest: &Manifest, post_copy: bool) -> Result<(), Vec<String>> {
        let follows = if post_copy { self.machine.can_follow() } else { Ok(()) };
        let follows =
            follows.map_err(|reason| format!("memory cannot follow the guest by post-copy: {reason}"));
        let follows = follows.and_then(|()| {
            let disks_follow = post_copy && !manifest.disks.is_empty();
            if disks_follow { Err(failure::DISKS_DO_NOT_FOLLOW.to_owned()) } else { Ok(()) }
        });
        match (self.machine.admit(manifest), follows) {
            (Ok(()), follows) => follows.map_err(|reason| vec![reason]),
            (Err(mut reasons), follows) => {
                reasons.extend(follows.err());
                Err(reasons)
            }
        }
    }

    /// Sends a frame on the control connection; what went wrong, if anything.
    fn send(&mut self, tag: Tag, payload: &[u8]) -> Option<Input> {
        let error = self.control.frame(tag, payload, &[]).err()?.describe("source", Link::Control);
        Some(Input::Lost { link: Link::Control, error })
    }

    /// Who touches a page that is to follow waits from here on, and so may the loading.
    fn load(&mut self) -> Option<Input> {
        self.seal.close();
        if let Some(missing) = self.missing.take()
            && let Err(error) = self.await_pages(missing)
        {
            return Some(Input::Loaded(Err(error)));
        }
        self.worker.give(Work::Load(std::mem::take(&mut self.sections)));
        None
    }

    fn await_pages(&mut self, missing: PageBitmap) -> Result<(), MachineError> {
        let absent = self.machine.await_pages(&missing)?;
        let ranges = self.machine.memory().ranges();
        let arriving =
            Arc::new(Arriving::new(absent, (ranges, missing), self.tally.clone(), self.sender.clone()));
        self.seal.follow(Arc::clone(&arriving));
        let watch = move || arriving.watch();
        let failed =
            |error: ApiError| MachineError { step: "awaiting pages".into(), reason: error.to_string() };
        self.faults = Some(spawn("mig-faults", watch).map_err(failed)?);
        Ok(())
    }

    fn send_missing(&mut self) -> Option<Input> {
        let (runs, waiting) = self.seal.arriving()?.missing();
        let named = missing(runs.into_iter()).into_iter().map(|payload| (Tag::Missing, payload));
        let want = |pages: &[u64]| Control::Want(Want { pages: pages.to_vec() });
        let wanted = waiting.chunks(WANT_PAGES_MAX).map(|pages| (Tag::Control, want(pages).to_payload()));
        named.chain(wanted).find_map(|(tag, payload)| self.send(tag, &payload))
    }

    /// Takes up new connections of the source in place of the old ones; what to tell the engine, if it may do so.
    fn rejoin(&mut self, session: u32, connection: Connection) -> Option<Input> {
        if !self.engine.awaits_source() {
            return None;
        }
        self.disconnect();
        self.old_readers.push(std::mem::replace(
            &mut self.control_reader,
            self.ear.listen(session, connection.reader).ok()?,
        ));
        self.old_readers.retain(|reader| !reader.is_finished());
        (self.session, self.control) = (session, connection.writer);
        Some(Input::Rejoined)
    }

    fn disconnect(&self) {
        let _ = self.control.stream().shutdown(Shutdown::Both);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
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
            // The source may read on to the last word, and then ends too.
            let _ = self.control.stream().shutdown(Shutdown::Write);
            self.stop.store(true, Relaxed);
            return;
        }
        let arriving = self.seal.arriving();
        arriving.iter().for_each(|arriving| arriving.abandon());
        let _ = self.control.stream().shutdown(Shutdown::Write);
        linger(&self.events, &self.control_reader);
        self.stop.store(true, Relaxed);
        self.disconnect();
        // Threads that wait to tell the engine something stop waiting.
        drop(self.events);
        let sinks = self.accepting.map(|thread| thread.join().unwrap_or_default()).unwrap_or_default();
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        drop(opened);
        let readers = self.old_readers.into_iter().chain([self.control_reader, self.worker.finish()]);
        for thread in sinks.into_iter().chain(readers).chain(self.faults) {
            let _ = thread.join();
        }
        self.durable.into_iter().for_each(Durable::end);
    }
}

fn listening(error: &std::io::Error) -> ApiError {
    failure::lost("source", Link::Control, &error.to_string())
}
