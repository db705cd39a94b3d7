//! Drives the source's state machine.

mod following;

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use godwit_types::control::Question;
use godwit_types::migration::{MigrationOutcome, MigrationProgress, Phase, SLOWDOWN_PERCENT_MAX};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId, VmId};

use super::answer::{self, AnswerSlot};
use super::flow::Flow;
use super::gate::Gate;
use super::kept_there::KeptThere;
use super::link::{Connection, Greeting, LinkError, Reader};
use super::notifier::Notifier;
use super::outflow::Outflow;
use super::pace::Pace;
use super::page_sets::PageSets;
use super::pump::{Job, Pump};
use super::rest::Rest;
use super::threads::{linger, no_thread, spawn};
use super::{Arbiter, Connections, Connector, EVENTS_MAX, Outgoing, TICK, real_time_at, steps};
use crate::bitmap::PageBitmap;
use crate::failure::{self, Link};
use crate::machine::{GuestMemory, MachineError, Manifest, PageRange, Reclaimed, Section, Source};
use crate::proof::{self, MemoryDigest};
use crate::secure::End;
use crate::source::{Action, Engine, Harvest, Input, Setup};
use crate::tuning::Tuning;
use crate::wire::{
    Control, DigestKey, Hello, Missing, PAGE_STREAMS_MAX, PREAMBLE_BYTES, Role, Tag, Welcome, WireError,
};

/// Rounds that may wait for a page stream: one of pre-copy, two while the guest stands.
const JOBS_MAX: usize = 4;

/// What reaches the engine.
pub(super) enum Event {
    /// What came over the connections of one session; of no interest if that is not the newest.
    Input(u32, Input),
    /// On the connections of a session: the pages that the destination does not have.
    Missing(u32, PageBitmap),
    /// Look into the answer slots.
    Wake,
}

/// Starts the engine's threads.
pub(super) fn start(
    request: Outgoing,
    machine: Arc<dyn Source>,
    agent: Agent,
    progress: Box<dyn Fn(MigrationProgress) + Send>,
    ended: Ended,
    tuning: Tuning,
    (gate, pace): (Arc<Gate>, Arc<Pace>),
) {
    // The callback must be called even if no thread can be had for it.
    let ended = Arc::new(Mutex::new(Some(ended)));
    let theirs = Arc::clone(&ended);
    let spawned = thread::Builder::new().name("mig-source".into()).spawn(move || {
        let result =
            Run::begin(request, machine, agent, progress, tuning, (Arc::clone(&gate), Arc::clone(&pace)));
        let result = result.map(Run::drive);
        gate.lock().closed = Some("the migration has ended already");
        let outcome = match result {
            Ok(MigrationOutcome::Completed { mut report }) => {
                report.capped = pace.was_limited();
                MigrationOutcome::Completed { report }
            }
            Ok(outcome) => outcome,
            Err(error) => MigrationOutcome::Failed { phase: Phase::Preflight, error },
        };
        call(&theirs, outcome);
    });
    if let Err(error) = spawned {
        call(&ended, MigrationOutcome::Failed { phase: Phase::Preflight, error: no_thread(&error) });
    }
}

type Ended = Box<dyn FnOnce(MigrationOutcome) + Send>;

fn call(ended: &Mutex<Option<Ended>>, outcome: MigrationOutcome) {
    if let Some(ended) = ended.lock().unwrap_or_else(PoisonError::into_inner).take() {
        ended(outcome);
    }
}

/// The ways to the agent.
pub(super) struct Agent {
    pub(super) arbiter: Arc<dyn Arbiter>,
    pub(super) connector: Arc<dyn Connector>,
}

struct Run {
    engine: Engine,
    gate: Arc<Gate>,
    began: Instant,
    machine: Arc<dyn Source>,
    agent: Agent,
    answer: Arc<AnswerSlot>,
    /// Where new connections wait.
    connected: Arc<Mutex<Option<Result<Connections, ApiError>>>>,
    notifier: Notifier,
    tuning: Tuning,
    request: Outgoing,
    vm: VmId,
    epoch: Epoch,
    /// For the HELLO; taken when it is sent.
    manifest: Option<Manifest>,
    flow: Arc<Flow>,
    stop: Arc<AtomicBool>,
    control: Outflow,
    pages: Vec<TcpStream>,
    pumps: Vec<SyncSender<Job>>,
    pump_threads: Vec<JoinHandle<()>>,
    /// Of connections that have been replaced.
    old_threads: Vec<JoinHandle<()>>,
    control_reader: JoinHandle<()>,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    /// Counts how often the connections were made again.
    session: u32,
    pages_to_send: PageSets,
    /// The pages that are to follow, once that is decided.
    rest: Option<Arc<Rest>>,
    /// The round that they are sent as.
    rest_round: u32,
    sections: Vec<Section>,
    /// The guest stands.
    paused: bool,
    /// Why the VM could not be reclaimed the last time.
    stands: Option<String>,
    outcome: Option<MigrationOutcome>,
}

impl Run {
    /// Greets the destination on the control connection.
    fn begin(
        request: Outgoing,
        machine: Arc<dyn Source>,
        agent: Agent,
        progress: Box<dyn Fn(MigrationProgress) + Send>,
        tuning: Tuning,
        (gate, pace): (Arc<Gate>, Arc<Pace>),
    ) -> Result<Self, ApiError> {
        let began = Instant::now();
        check(&request, &*machine)?;
        let stop = Arc::new(AtomicBool::new(false));
        let peer = format!("destination {} at {}", request.destination, request.address);
        let describe = |error: LinkError| error.describe(&peer, Link::Control);
        let stream = request.control.try_clone().map_err(|error| describe(error.into()))?;
        let connection = greeting(&request, &tuning, &stop).greet(stream).map_err(describe)?;
        let Connection { reader, writer: control } =
            connection.established(Link::Control, &tuning).map_err(describe)?;
        let (sender, events) = sync_channel(EVENTS_MAX);
        let flow = Arc::new(Flow::new(tuning.page_streams, pace));
        flow.other_bytes.fetch_add(2 * PREAMBLE_BYTES as u64, Relaxed);
        let manifest = machine.manifest();
        let ranges = machine.memory().ranges();
        // In any order: each set of pages covers all of them.
        let pages: Vec<PageRange> =
            manifest.disks.iter().map(|disk| disk.range).chain(ranges.iter().copied()).collect();
        let setup = Setup {
            migration: request.migration,
            source: request.source.clone(),
            destination: request.destination.clone(),
            budget: request.budget.clone(),
            ram_pages: ranges.iter().map(|range| range.pages).sum(),
            disk_pages: manifest.disks.iter().map(|disk| disk.range.pages).sum(),
            unix: real_time_at(began, || machine.real_time()),
            tuning: tuning.clone(),
        };
        let pages_to_send = PageSets::new(&pages);
        let notifier = Notifier::start(progress).map_err(|error| no_thread(&error))?;
        let control_reader = {
            let (sender, flow, ram) = (sender.clone(), Arc::clone(&flow), ranges.to_vec());
            let peer = format!("destination {}", request.destination);
            spawn("mig-control", move || listen(reader, (0, &ram), &sender, &flow, &peer))?
        };
        Ok(Self {
            engine: Engine::new(setup),
            gate,
            began,
            vm: manifest.vm,
            epoch: manifest.epoch,
            manifest: Some(manifest),
            machine,
            agent,
            answer: Arc::default(),
            connected: Arc::default(),
            notifier,
            tuning,
            request,
            flow,
            stop,
            control,
            pages: Vec::new(),
            pumps: Vec::new(),
            pump_threads: Vec::new(),
            old_threads: Vec::new(),
            control_reader,
            events,
            sender,
            session: 0,
            pages_to_send,
            rest: None,
            rest_round: 0,
            sections: Vec::new(),
            paused: false,
            stands: None,
            outcome: None,
        })
    }

    fn drive(mut self) -> MigrationOutcome {
        self.feed(Input::Start);
        let outcome = loop {
            if let Some(outcome) = self.outcome.take() {
                break outcome;
            }
            let input = match self.events.recv_timeout(TICK) {
                Ok(Event::Input(session, input)) if session == self.session => input,
                Ok(Event::Missing(session, pages)) if session == self.session => {
                    self.rest = Some(Arc::new(Rest::new(self.machine.memory().ranges(), pages)));
                    Input::Missing
                }
                Ok(Event::Input(..) | Event::Missing(..) | Event::Wake)
                | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Input::Tick,
            };
            if let Some(verdict) = self.answer.take() {
                self.feed(Input::Verdict(verdict));
            }
            let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(connections) = connected {
                let rejoined = connections.and_then(|connections| self.rejoin(connections));
                self.feed(Input::Reconnected(rejoined));
            }
            self.feed(input);
        };
        let linger_on = matches!(outcome, MigrationOutcome::Failed { .. }) || self.rest.is_some();
        self.close(linger_on);
        outcome
    }

    /// Tells the state machine what happened, does what it wants, and tells it the answers.
    fn feed(&mut self, input: Input) {
        if let Input::Control(Control::Ack(ack)) = &input {
            self.flow.settle(ack.stream, ack.wire_bytes);
        }
        let mut inputs = VecDeque::from([
            Input::Sent(self.flow.sent(self.rest.as_ref().map_or(0, |rest| rest.left()))),
            input,
        ]);
        while let Some(input) = inputs.pop_front() {
            for action in self.step(input) {
                inputs.extend(self.perform(action));
            }
        }
    }

    fn step(&mut self, input: Input) -> Vec<Action> {
        let mut gate = self.gate.lock();
        let now = self.began.elapsed();
        let mut actions = Vec::new();
        if std::mem::take(&mut gate.cancel) {
            actions = self.engine.handle(now, Input::Cancel);
        }
        actions.extend(self.engine.handle(now, input));
        if self.engine.is_commit_asked() {
            gate.closed = Some("the handover has begun, so the migration can no longer be cancelled");
        }
        actions
    }

    fn perform(&mut self, action: Action) -> Option<Input> {
        let machine = Arc::clone(&self.machine);
        steps::source(&action).into_iter().for_each(godwit_faults::reached);
        match action {
            Action::Greet => return self.greet(),
            Action::Send(message) => return self.send(Tag::Control, &message.to_payload()),
            Action::OpenStreams => {
                let streams = std::mem::take(&mut self.request.pages);
                return Some(Input::StreamsOpened(self.open_streams(streams)));
            }
            Action::StartLog => return Some(Input::LogStarted(self.start_log())),
            Action::Harvest => return Some(Input::Harvested(self.harvest())),
            Action::SendRound { round } => self.send_round(round),
            Action::Slow { shares } => machine.slow(&shares),
            Action::Pause => {
                let paused = machine.pause();
                self.paused = paused.is_ok();
                return Some(Input::Paused(paused));
            }
            Action::Save { ahead_ns } => {
                let saved = machine.save(ahead_ns).map(|sections| self.sections = sections);
                return Some(Input::Saved(saved));
            }
            Action::SendState { last_round, rest } => return self.send_state(last_round, rest),
            Action::Serve { pages } => return self.serve_pages(&pages),
            Action::PushRest => self.push_rest(),
            Action::Disconnect => self.disconnect(),
            Action::Reconnect { session } => self.reconnect(session),
            Action::LetGo => machine.let_go(),
            Action::Reclaim => return Some(Input::Reclaimed(self.reclaim())),
            Action::Resume => return Some(Input::Resumed(machine.resume())),
            Action::StopLog => machine.stop_dirty_log(),
            Action::AskCommit => self.ask_commit(),
            Action::HandOver => {
                machine.hand_over();
                return Some(Input::HandedOver);
            }
            Action::Digest => return self.digest(),
            Action::Progress(progress) => self.notifier.report(progress),
            Action::End(outcome) => self.outcome = Some(outcome),
        }
        None
    }

    fn reclaim(&mut self) -> Result<Reclaimed, MachineError> {
        let reclaimed = self.machine.reclaim(self.request.migration);
        let why = reclaimed.as_ref().err().map(ToString::to_string);
        if let Some(why) = why.as_ref().filter(|_| why != self.stands) {
            tracing::warn!("the VM stands until its disks can be reclaimed: {why}");
        }
        self.stands = why;
        reclaimed
    }

    fn hello(&self, role: Role) -> Vec<u8> {
        let source = self.request.source.to_string();
        let (migration, session) = (self.request.migration, self.session);
        Hello { migration, epoch: self.epoch.next(), source, session, role }.encode()
    }

    fn greet(&mut self) -> Option<Input> {
        let manifest = self.manifest.take()?;
        let role = self.control_role(manifest);
        self.send(Tag::Hello, &self.hello(role))
    }

    fn control_role(&self, manifest: Manifest) -> Role {
        let (page_streams, post_copy) = (self.tuning.page_streams, self.request.budget.post_copy);
        Role::Control { manifest, page_streams, post_copy, reuse: true, verify: self.request.budget.verify }
    }

    /// Sends a frame on the control connection; what went wrong, if anything.
    fn send(&mut self, tag: Tag, payload: &[u8]) -> Option<Input> {
        match self.control.frame(tag, payload, &[]) {
            Ok(took) => {
                let counter = if tag == Tag::State { &self.flow.state_bytes } else { &self.flow.other_bytes };
                counter.fetch_add(took.frame, Relaxed);
                self.flow.other_bytes.fetch_add(took.sealing, Relaxed);
            }
            Err(error) => {
                let error =
                    error.describe(&format!("destination {}", self.request.destination), Link::Control);
                return Some(Input::Lost { link: Link::Control, error });
            }
        };
        None
    }

    fn open_streams(&mut self, streams: Vec<TcpStream>) -> Result<(), ApiError> {
        let count = self.tuning.page_streams;
        let (session, peer) = (self.session, format!("destination {}", self.request.destination));
        for (index, stream) in (0..).zip(streams) {
            let (connection, key) = self.open_stream(index, stream, &peer)?;
            let own = connection.stream().map_err(|error| error.describe(&peer, Link::Pages(index)))?;
            let (machine, flow) = (Arc::clone(&self.machine), Arc::clone(&self.flow));
            let mut kept = None;
            if let Some(key) = key {
                let (known, thread) = KeptThere::listen(
                    index,
                    key,
                    connection.reader,
                    Arc::clone(&flow),
                    self.tuning.peer_silent,
                )?;
                self.pump_threads.push(thread);
                kept = Some(known);
            }
            let pump = Pump::new((index, count), connection.writer, (machine, kept), flow);
            let (jobs, queue) = sync_channel(JOBS_MAX);
            let (sender, peer) = (self.sender.clone(), peer.clone());
            let body = move || pump.run(&queue, &sender, session, &peer);
            self.pump_threads.push(spawn(&format!("mig-pages-{index}"), body)?);
            self.pages.push(own);
            self.pumps.push(jobs);
        }
        Ok(())
    }

    /// With the key of the digests that the destination will send, if it has kept memory of the VM.
    fn open_stream(
        &self,
        index: u32,
        stream: TcpStream,
        peer: &str,
    ) -> Result<(Connection, Option<DigestKey>), ApiError> {
        let describe = |error: LinkError| error.describe(peer, Link::Pages(index));
        let mut connection =
            greeting(&self.request, &self.tuning, &self.stop).greet(stream).map_err(describe)?;
        let hello = self.hello(Role::Pages { stream: index });
        connection.writer.frame(Tag::Hello, &hello, &[]).map_err(describe)?;
        let welcome = welcomed(connection.reader.control().map_err(describe)?, peer)?;
        let key = welcome.key().map_err(|error| describe(error.into()))?;
        Ok((connection.established(Link::Pages(index), &self.tuning).map_err(describe)?, key))
    }

    fn start_log(&mut self) -> Result<(), MachineError> {
        self.machine.start_dirty_log()?;
        self.pages_to_send.add_all();
        Ok(())
    }

    fn harvest(&mut self) -> Result<Harvest, MachineError> {
        let began = Instant::now();
        self.machine.harvest_dirty(self.pages_to_send.waiting())?;
        let vcpus = self.machine.vcpus();
        Ok(Harvest { pages: self.pages_to_send.count(), took: began.elapsed(), vcpus })
    }

    fn send_round(&mut self, round: u32) {
        let pages = self.pages_to_send.take();
        for pump in &self.pumps {
            // A pump that is gone has reported why.
            let _ = pump.send(Job::Round { round, pages: Arc::clone(&pages), stands: self.paused });
        }
    }

    /// On a thread of its own, and more: it takes as long as it takes to read all memory.
    fn digest(&mut self) -> Option<Input> {
        let (machine, migration, sender) =
            (Arc::clone(&self.machine), self.request.migration, self.sender.clone());
        let (session, threads) = (self.session, self.tuning.page_streams);
        let spawned = spawn("mig-proof", move || {
            let digest = read_all(machine.memory(), migration, threads);
            // The engine waits for nothing else.
            let _ = sender.send(Event::Input(session, Input::Digested(digest)));
        });
        let step = || "reading memory once more".into();
        match spawned {
            Ok(thread) => self.old_threads.push(thread),
            Err(error) => {
                let reason = error.to_string();
                return Some(Input::Digested(Err(MachineError { step: step(), reason })));
            }
        }
        None
    }

    fn ask_commit(&self) {
        let (migration, destination) = (self.request.migration, self.request.destination.clone());
        let question = Question::Commit { migration, vm: self.vm, epoch: self.epoch, destination };
        let sender = self.sender.clone();
        // A full queue means that the engine is awake anyway.
        let wake = move || drop(sender.try_send(Event::Wake));
        self.agent.arbiter.ask(question, answer::callback(&self.answer, wake));
    }

    /// Ends all threads; with `linger_on`, first gives the destination the time to read the last word.
    fn close(mut self, linger_on: bool) {
        self.flow.stop();
        self.pumps.clear();
        self.pages.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        let _ = self.control.stream().shutdown(Shutdown::Write);
        if linger_on {
            linger(&self.events, &self.control_reader);
        }
        self.stop.store(true, Relaxed);
        let _ = self.control.stream().shutdown(Shutdown::Both);
        // Threads that wait to tell the engine something stop waiting.
        drop(self.events);
        drop(self.notifier);
        for thread in self.pump_threads.into_iter().chain(self.old_threads).chain([self.control_reader]) {
            let _ = thread.join();
        }
    }
}

/// Makes the digest of all memory on so many threads.
fn read_all(
    memory: &dyn GuestMemory,
    migration: MigrationId,
    threads: u32,
) -> Result<MemoryDigest, MachineError> {
    let panicked = || {
        let reason = "a thread panicked".into();
        Err(MachineError { step: "reading memory once more".into(), reason })
    };
    let of = threads as usize;
    thread::scope(|scope| {
        let read = |share| move || proof::read(memory, migration, (share, of));
        let shares: Vec<_> = (1..of).map(|share| scope.spawn(read(share))).collect();
        let first = read(0)();
        let rest = shares.into_iter().map(|share| share.join().unwrap_or_else(|_| panicked()));
        std::iter::once(first).chain(rest).sum()
    })
}

fn greeting<'a>(request: &'a Outgoing, tuning: &Tuning, stop: &'a Arc<AtomicBool>) -> Greeting<'a> {
    Greeting { end: End::Source, secure: request.secure.as_deref(), within: tuning.connect, stop }
}

/// Whether the destination's first words are a welcome.
fn welcomed(answer: Control, peer: &str) -> Result<Welcome, ApiError> {
    match answer {
        Control::Welcome(welcome) => Ok(welcome),
        Control::Error(failure) => Err(failure.into_error(peer)),
        _ => Err(failure::out_of_turn(peer, "an answer to a hello")),
    }
}

/// Reads the control connection of a session until it ends.
fn listen(
    mut reader: Reader,
    (session, ram): (u32, &[PageRange]),
    events: &SyncSender<Event>,
    flow: &Flow,
    peer: &str,
) {
    let mut missing = Missing::of(ram);
    loop {
        let event = match reader.frame() {
            Ok((Tag::Control, payload)) => {
                flow.other_bytes.fetch_add((crate::wire::HEADER_BYTES + payload.len()) as u64, Relaxed);
                Control::from_payload(payload)
                    .map(|message| Event::Input(session, Input::Control(message)))
                    .map_err(LinkError::from)
            }
            Ok((Tag::Missing, payload)) => match missing.take(payload) {
                Ok(None) => continue,
                Ok(Some(pages)) => Ok(Event::Missing(session, pages)),
                Err(error) => Err(error.into()),
            },
            Ok((tag, _)) => Err(WireError::OutOfPlace { tag, expected: "a control message" }.into()),
            Err(error) => Err(error),
        };
        let link = Link::Control;
        let lost = |error: LinkError| Input::Lost { link, error: error.describe(peer, link) };
        let event = event.unwrap_or_else(|error| Event::Input(session, lost(error)));
        let last = matches!(event, Event::Input(_, Input::Lost { .. }));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

/// What can be refused before anything is said.
fn check(request: &Outgoing, machine: &dyn Source) -> Result<(), ApiError> {
    let blockers = machine.blockers();
    if !blockers.is_empty() {
        let message = format!("the VM cannot migrate: {}", blockers.join("; "));
        return Err(
            ApiError::new(ErrorCode::Refused, message).remedy("remove what blocks it, then migrate again")
        );
    }
    if request.budget.post_copy && machine.disks().is_some() {
        return Err(ApiError::new(ErrorCode::Refused, failure::DISKS_DO_NOT_FOLLOW)
            .remedy("migrate without --post-copy, or put the disks where both hosts reach them"));
    }
    if !(1..=PAGE_STREAMS_MAX).contains(&(request.pages.len() as u32)) {
        let message =
            format!("a migration has 1 to {PAGE_STREAMS_MAX} page streams, not {}", request.pages.len());
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    if request.budget.slowdown_percent_max > SLOWDOWN_PERCENT_MAX {
        let message = format!("a guest can be slowed by at most {SLOWDOWN_PERCENT_MAX} %");
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    check_cap(request.budget.bandwidth_bytes_per_s_max)
}

pub(super) fn check_cap(bytes_per_s_max: Option<u64>) -> Result<(), ApiError> {
    if bytes_per_s_max == Some(0) {
        return Err(ApiError::new(ErrorCode::Invalid, "a bandwidth cap of 0 lets nothing through")
            .remedy("leave the cap out, or allow at least some bytes per second"));
    }
    Ok(())
}
