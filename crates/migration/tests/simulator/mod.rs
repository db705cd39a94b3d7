//! A deterministic world around the two state machines.
//!
//! Each step draws one of the things that could happen next: a message or a page arrives, an answer comes, the guest
//! writes, time passes. Messages of one connection keep their order; nothing else does.

mod arbiter;
mod network;
mod vm;

use std::collections::VecDeque;
use std::time::Duration;

use godwit_migration::destination::{self, Action as ToDo, Input as Told};
use godwit_migration::source::{self, Action, Harvest, Input, Sent};
use godwit_migration::wire::{Ack, Control, Hello, Role};
use godwit_migration::{Link, MachineError, Manifest, PageRange, Tuning};
use godwit_types::migration::{Budget, MigrationOutcome, OnDeadline};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, Epoch, ErrorCode, Gfn, MigrationId, VmId};

use arbiter::Arbiter;
use network::{Network, ToDestination};
use vm::{Memory, PAGES, SAVE_PAGE};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    CutAll,
    CutPages,
    Silence,
    Cancel,
    CrashSource,
    CrashDestination,
    /// The next call of the VM's methods fails.
    SourceCall,
    DestinationCall,
    RefuseCommit,
    LoseAnswer,
}

impl Fault {
    pub const ALL: [Self; 10] = [
        Self::CutAll,
        Self::CutPages,
        Self::Silence,
        Self::Cancel,
        Self::CrashSource,
        Self::CrashDestination,
        Self::SourceCall,
        Self::DestinationCall,
        Self::RefuseCommit,
        Self::LoseAnswer,
    ];
}

struct Source {
    engine: source::Engine,
    alive: bool,
    runs: bool,
    handed_over: bool,
    memory: Memory,
    /// Actions wait here, as they do behind a slow call.
    actions: VecDeque<Action>,
    sent_bytes: u64,
    outcome: Option<MigrationOutcome>,
    fail_next: bool,
}

struct Destination {
    engine: destination::Engine,
    alive: bool,
    greeted: bool,
    runs: bool,
    memory: [u32; PAGES],
    actions: VecDeque<ToDo>,
    acked: Ack,
    result: Option<Result<Epoch, ApiError>>,
    fail_next: bool,
    call_failed: bool,
}

pub struct Simulation {
    random: u64,
    now: Duration,
    step: u32,
    plan: Vec<(u32, Fault)>,
    source: Source,
    destination: Destination,
    network: Network,
    arbiter: Arbiter,
}

const MIGRATION: MigrationId = MigrationId(uuid::Uuid::from_u128(1));
/// On the wire; every record counts the same.
const RECORD_BYTES: u64 = 4096;
/// Long enough for every bound of the engines to pass.
const TIME_MAX: Duration = Duration::from_secs(600);

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let setup = source::Setup {
            migration: MIGRATION,
            source: "a".parse().unwrap(),
            destination: "b".parse().unwrap(),
            budget: Budget {
                blackout_ms_max: 1000,
                deadline_ms: 5000,
                on_deadline: OnDeadline::Switch,
                ..Budget::default()
            },
            ram_pages: PAGES as u64,
            tuning: Tuning::default(),
        };
        let theirs = destination::Setup { migration: MIGRATION, epoch: Epoch(2), tuning: Tuning::default() };
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: Duration::ZERO,
            step: 0,
            plan: Vec::new(),
            source: Source {
                engine: source::Engine::new(setup),
                alive: true,
                runs: true,
                handed_over: false,
                memory: Memory::default(),
                actions: VecDeque::new(),
                sent_bytes: 0,
                outcome: None,
                fail_next: false,
            },
            destination: Destination {
                engine: destination::Engine::new(theirs),
                alive: true,
                greeted: false,
                runs: false,
                memory: [0; PAGES],
                actions: VecDeque::new(),
                acked: Ack::default(),
                result: None,
                fail_next: false,
                call_failed: false,
            },
            network: Network::default(),
            arbiter: Arbiter::default(),
        }
    }

    /// A number below `limit`.
    pub fn random(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Injects a fault before a step.
    pub fn plan(&mut self, step: u32, fault: Fault) {
        self.plan.push((step, fault));
    }

    /// Runs until both sides have ended, checking after every step.
    pub fn run(mut self, fault: Option<(u32, Fault)>) -> Self {
        self.plan.extend(fault);
        self.tell_source(Input::Start);
        while !self.has_ended() {
            assert!(self.now < TIME_MAX, "step {}: somebody waits for ever: {:?}", self.step, self.plan);
            for (step, fault) in self.plan.clone() {
                if step == self.step {
                    self.inject(fault);
                }
            }
            self.one_step();
            self.check();
            self.step += 1;
        }
        self
    }

    fn has_ended(&self) -> bool {
        let source = self.source.outcome.is_some() || !self.source.alive;
        // The wait for the first connection is the driver's, and bounded there.
        let stranded = source && !self.destination.greeted;
        let destination = self.destination.result.is_some() || !self.destination.alive || stranded;
        source && destination
    }

    fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::CutAll => {
                let (keep_to, keep_back) = (self.random(4) as usize, self.random(4) as usize);
                self.network.cut(keep_to, keep_back);
            }
            Fault::CutPages => self.network.cut_pages(),
            Fault::Silence => self.network.silent = true,
            Fault::Cancel => self.tell_source(Input::Cancel),
            Fault::CrashSource => {
                (self.source.alive, self.source.runs) = (false, false);
                self.network.cut(3, 0);
            }
            Fault::CrashDestination => {
                (self.destination.alive, self.destination.runs) = (false, false);
                self.network.cut(0, 3);
            }
            Fault::SourceCall => self.source.fail_next = true,
            Fault::DestinationCall => self.destination.fail_next = true,
            Fault::RefuseCommit => self.arbiter.refuse = true,
            Fault::LoseAnswer => self.arbiter.lose_next = true,
        }
    }

    fn one_step(&mut self) {
        match self.random(9) {
            0 => self.source_acts(),
            1 => self.destination_acts(),
            2 => self.destination_hears(),
            3 => self.source_hears(),
            4 => self.page_is_sent(),
            5 => self.page_arrives(),
            6 => self.verdict_comes(),
            7 if self.source.runs => {
                let page = self.random(PAGES as u64) as usize;
                self.source.memory.write(page);
            }
            _ => self.time_passes(),
        }
    }

    fn time_passes(&mut self) {
        // While something can still happen, little time passes; otherwise the bounds are to be reached soon.
        let idle =
            self.source.actions.is_empty() && self.destination.actions.is_empty() && self.network.is_quiet();
        let ms = if idle { 1 + self.random(200) } else { 1 + self.random(5) };
        self.now += Duration::from_millis(ms);
        self.arbiter.learn(&self.source.outcome, self.source.alive);
        self.tell_source(Input::Tick);
        self.tell_destination(Told::Tick);
    }

    fn tell_source(&mut self, input: Input) {
        if self.source.alive {
            let sent = Sent { page_stream_bytes: self.source.sent_bytes, ..Sent::default() };
            for input in [Input::Sent(sent), input] {
                let actions = self.source.engine.handle(self.now, input);
                self.source.actions.extend(actions);
            }
        }
    }

    fn tell_destination(&mut self, input: Told) {
        if self.destination.alive {
            let actions = self.destination.engine.handle(self.now, input);
            self.destination.actions.extend(actions);
        }
    }

    fn source_call(&mut self) -> Result<(), MachineError> {
        if std::mem::take(&mut self.source.fail_next) { Err(injected()) } else { Ok(()) }
    }

    fn destination_call(&mut self) -> Result<(), MachineError> {
        if std::mem::take(&mut self.destination.fail_next) {
            self.destination.call_failed = true;
            return Err(injected());
        }
        Ok(())
    }

    fn source_acts(&mut self) {
        if !self.source.alive {
            return;
        }
        let Some(action) = self.source.actions.pop_front() else { return };
        match action {
            Action::Greet => self.network.to_destination.push_back(ToDestination::Hello(Box::new(hello()))),
            Action::Send(message) => self.network.to_destination.push_back(ToDestination::Control(message)),
            Action::OpenStreams => {
                let result = if self.network.pages_open() { Ok(()) } else { Err(broken()) };
                if result.is_ok() {
                    self.tell_destination(Told::StreamOpened);
                }
                self.tell_source(Input::StreamsOpened(result));
            }
            Action::StartLog => {
                self.source.memory.mark_all();
                let result = self.source_call();
                self.tell_source(Input::LogStarted(result));
            }
            Action::Harvest => {
                let pages = self.source.memory.harvest();
                let took = Duration::from_millis(1);
                let result = self.source_call().map(|()| Harvest { pages, took });
                self.tell_source(Input::Harvested(result));
            }
            Action::SendRound { round } => self.network.rounds.push_back((round, self.source.memory.take())),
            Action::Pause => {
                let result = self.source_call();
                if result.is_ok() {
                    assert!(self.source.runs, "a VM that stands was paused");
                    self.source.runs = false;
                }
                self.tell_source(Input::Paused(result));
            }
            Action::Save => {
                self.source.memory.write(SAVE_PAGE);
                let result = self.source_call();
                self.tell_source(Input::Saved(result));
            }
            Action::SendState { last_round } => {
                self.network.to_destination.push_back(ToDestination::State(last_round));
            }
            Action::Resume => {
                assert!(!self.source.handed_over, "resumed after the handover");
                assert!(!self.source.runs, "a VM that runs was resumed");
                // A VM that cannot be resumed is lost without any fault of the engine.
                self.source.fail_next = false;
                self.source.runs = true;
                self.tell_source(Input::Resumed(Ok(())));
            }
            Action::AskCommit => self.arbiter.ask_commit(),
            Action::HandOver => {
                assert!(!self.source.runs);
                self.source.handed_over = true;
                self.tell_source(Input::HandedOver);
            }
            Action::StopLog | Action::Progress(_) => {}
            Action::End(outcome) => {
                self.source.outcome = Some(outcome);
                self.network.close_to_destination();
            }
        }
    }

    fn destination_acts(&mut self) {
        if !self.destination.alive {
            return;
        }
        let Some(action) = self.destination.actions.pop_front() else { return };
        match action {
            ToDo::Admit(_) => {
                let result = self.destination_call().map_err(|error| vec![error.to_string()]);
                self.tell_destination(Told::Admitted(result));
            }
            ToDo::AcceptStreams { .. } => {}
            ToDo::Send(message) => self.network.to_source.push_back(message),
            ToDo::Load => {
                let result = self.destination_call();
                self.tell_destination(Told::Loaded(result));
            }
            ToDo::AskClaim { .. } => self.arbiter.ask_claim(),
            ToDo::Run { .. } => {
                let result = self.destination_call();
                if result.is_ok() {
                    assert!(self.arbiter.is_claimed(), "ran without a granted claim");
                    assert_eq!(self.destination.memory, self.source.memory.pages, "a write was lost");
                    self.destination.runs = true;
                }
                self.tell_destination(Told::Ran(result));
            }
            ToDo::End(result) => {
                self.destination.result = Some(result);
                self.network.close_to_source();
            }
        }
    }

    fn destination_hears(&mut self) {
        match self.network.next_to_destination() {
            Some(ToDestination::Hello(hello)) => {
                self.destination.greeted = true;
                self.tell_destination(Told::Hello(*hello));
            }
            Some(ToDestination::Control(message)) => self.tell_destination(Told::Control(message)),
            Some(ToDestination::State(last_round)) => self.tell_destination(Told::State { last_round }),
            Some(ToDestination::End) => {
                self.tell_destination(Told::Lost { link: Link::Control, error: broken() });
            }
            None => {}
        }
    }

    fn source_hears(&mut self) {
        if let Some(message) = self.network.next_to_source() {
            self.tell_source(Input::Control(message));
        } else if self.network.source_sees_the_end() {
            self.tell_source(Input::Lost { link: Link::Control, error: broken() });
        }
    }

    /// The page stream reads one page of the round under way, or ends the round.
    fn page_is_sent(&mut self) {
        if !self.source.alive {
            return;
        }
        if !self.network.pages_open() {
            if self.network.source_sees_broken_pages() {
                self.tell_source(Input::Lost { link: Link::Pages(0), error: broken() });
            }
            return;
        }
        let Some((round, pages)) = self.network.rounds.front_mut() else { return };
        let round = *round;
        let page = pages.pop();
        let record = page.map(|page| (page, self.source.memory.pages[page]));
        self.network.records.push_back((round, record));
        self.source.sent_bytes += RECORD_BYTES;
        if record.is_none() {
            self.network.rounds.pop_front();
            self.tell_source(Input::RoundSent { stream: 0, round });
        }
    }

    fn page_arrives(&mut self) {
        let Some((round, record)) = self.network.next_record() else {
            if self.network.destination_sees_broken_pages() {
                self.tell_destination(Told::Lost { link: Link::Pages(0), error: broken() });
            }
            return;
        };
        self.destination.acked.wire_bytes += RECORD_BYTES;
        match record {
            Some((page, content)) => {
                self.destination.memory[page] = content;
                self.destination.acked.pages += 1;
            }
            None => self.destination.acked.round = round,
        }
        self.tell_destination(Told::Received(self.destination.acked));
    }

    fn verdict_comes(&mut self) {
        if let Some(verdict) = self.arbiter.commit_answer() {
            self.tell_source(Input::Verdict(verdict));
        } else if let Some(verdict) = self.arbiter.claim_answer() {
            self.tell_destination(Told::Verdict(verdict));
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        let place = || format!("step {}, {:?}", self.step, self.plan);
        assert!(!(self.source.runs && self.destination.runs), "two runners at {}", place());
        let asked = self.arbiter.commit_asked;
        assert!(!self.source.handed_over || self.arbiter.is_granted(), "handed over at {}", place());
        assert!(!self.destination.runs || asked, "runs without a commit at {}", place());
    }

    /// What must hold in the end, whatever happened.
    pub fn check_the_invariants_of_the_end(&self) {
        if let Some(MigrationOutcome::Failed { .. }) = self.source.outcome {
            assert!(
                self.source.runs || !self.source.alive,
                "a failed attempt left the VM stopped: {:?}",
                self.plan
            );
            assert!(!self.destination.runs, "{:?}", self.plan);
        }
        let crashed = !self.source.alive || !self.destination.alive;
        let abandoned = self.destination.call_failed && self.source.handed_over;
        let runners = u32::from(self.source.runs) + u32::from(self.destination.runs);
        assert!(runners == 1 || crashed || abandoned, "nobody runs the VM: {:?}", self.plan);
    }

    /// The same, and what this fault alone must not do.
    pub fn check_the_end(&self, fault: Fault) {
        self.check_the_invariants_of_the_end();
        match fault {
            Fault::CrashSource if !self.arbiter.is_granted() => {
                assert!(!self.destination.runs, "ran without a commit: {:?}", self.plan);
            }
            // A destination dies: before the commit the source runs on.
            Fault::CrashDestination if !self.arbiter.is_granted() => {
                assert!(self.source.runs, "{:?}", self.plan);
            }
            Fault::Cancel | Fault::LoseAnswer | Fault::DestinationCall => {
                assert!(self.source.runs || self.destination.runs, "{:?}", self.plan);
            }
            _ => {}
        }
    }

    pub fn outcome(&self) -> Option<&MigrationOutcome> {
        self.source.outcome.as_ref()
    }

    /// Steps taken so far.
    pub fn step(&self) -> u32 {
        self.step
    }

    pub fn destination_runs(&self) -> bool {
        self.destination.runs
    }

    pub fn ending(&self) -> &'static str {
        match self.source.outcome {
            Some(MigrationOutcome::Completed { .. }) => "completed",
            Some(MigrationOutcome::Failed { .. }) => "failed",
            Some(MigrationOutcome::HandedOver { .. }) => "handed over",
            None => "crashed",
        }
    }
}

fn hello() -> Hello {
    let ranges = vec![PageRange { start: Gfn(0), pages: PAGES as u64 }];
    let vm = VmId(uuid::Uuid::from_u128(2));
    let manifest = Manifest { vm, epoch: Epoch(1), spec_json: Vec::new(), ranges, cpu: Vec::new() };
    Hello {
        migration: MIGRATION,
        epoch: Epoch(2),
        source: "a".into(),
        role: Role::Control { manifest, page_streams: 1 },
    }
}

fn injected() -> MachineError {
    MachineError { step: "calling".into(), reason: "injected".into() }
}

fn broken() -> ApiError {
    ApiError::new(ErrorCode::Unreachable, "cut")
}

/// The verdicts that the model arbiter gives.
pub(crate) fn granted() -> Verdict {
    Verdict::Granted { epoch: Epoch(2) }
}

/// Messages towards the source.
pub(crate) type ToSource = Control;
