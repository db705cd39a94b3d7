//! The destination's side of a migration: a state machine without I/O.
//!
//! ```text
//!  Waiting --HELLO--> Admitting --fits--> Receiving --STATE, all pages of its round--> Loading --loaded, PREPARED--+
//!     |                   |                   |                                          |                         |
//!     +-------------------+-------------------+--- any failure, silence, ERROR ----------+                         |
//!                                             v                                                                    v
//!                                       Ended: discarded <----------------- ERROR from the source ------------ Prepared
//!                                             ^                                                                    |
//!                                             |                      COMMITTED, or in doubt: lost, silent          |
//!                                             +------ refused ------ Claiming <------------------------------------+
//!                                                                      |   ^ undecided: tries the locks, asks again
//!                                              granted                 v   | not COMMITTED, and the disks stay locked
//!  Ended: runs here <---- the vCPUs run ----- Running <----------------+---+
//!          ^                                   | part of memory is still at the source
//!          +----- all of it is here -------- Following     see `following`
//! ```
//!
//! The guest runs here only after a granted claim. No timer leads to Running. A source that dies before its commit leaves
//! its disk locks behind: a destination that gets them, and sees that the guest has not run on, tells the arbiter so with
//! its claim, and is granted the VM.

mod event;
mod following;

use std::hash::{Hash, Hasher};
use std::time::Duration;

use godwit_types::ownership::{Verdict, Witness};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId, VmId};

pub use event::{Action, Input, Ran};

use self::following::Rest;
use crate::failure::{self, Link};
use crate::machine::{Loaded, MachineError};
use crate::tuning::Tuning;
use crate::wire::{Ack, Control, Heartbeat, Hello, Prepared, Ready, Resumed, Role, Welcome};

/// What a destination's state machine needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Setup {
    pub migration: MigrationId,
    /// The epoch at which this host will run the VM.
    pub epoch: Epoch,
    /// This host's real time when the engine's was zero, since 1970.
    pub unix: Duration,
    pub tuning: Tuning,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Waiting,
    Admitting,
    Receiving,
    Loading,
    Prepared,
    Claiming(Claim),
    Running { epoch: Epoch, doubt_at: Duration, try_at: Option<Duration> },
    Following { epoch: Epoch },
    Ended,
}

/// What a destination in doubt is at.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Claim {
    Asking,
    TakingOver,
    Resting { until: Duration },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Engine {
    setup: Setup,
    state: State,
    now: Duration,
    actions: Vec<Action>,
    source: String,
    vm: Option<VmId>,
    streams_open: u32,
    streams: Vec<Ack>,
    /// The round that the received device state belongs to.
    state_round: Option<u32>,
    heard: Duration,
    /// When memory or state last arrived.
    advanced: Duration,
    /// When COMMITTED arrived.
    committed: Option<Duration>,
    /// When the claim was granted.
    claimed: Duration,
    /// What the disks' locks say about the source.
    witness: Witness,
    /// A page stream broke: the error to report unless the source says why before this time.
    broken: Option<(Duration, ApiError)>,
    deaf: bool,
    /// The source may let a part of memory follow.
    post_copy: bool,
    /// The source will compare memory.
    verify: bool,
    /// Part of memory follows the guest: once the source has said so.
    rest: Option<Rest>,
}

impl Engine {
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            state: State::Waiting,
            now: Duration::ZERO,
            actions: Vec::new(),
            source: "source".into(),
            vm: None,
            streams_open: 0,
            streams: Vec::new(),
            state_round: None,
            heard: Duration::ZERO,
            advanced: Duration::ZERO,
            committed: None,
            claimed: Duration::ZERO,
            witness: Witness::None,
            broken: None,
            deaf: false,
            post_copy: false,
            verify: false,
            rest: None,
        }
    }

    /// Takes in what happened at `now`, since this side began to wait, and says what to do.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Action> {
        self.now = self.now.max(now);
        if self.state == State::Ended {
            return Vec::new();
        }
        match input {
            Input::Hello(hello) => self.hello(hello),
            Input::Admitted(result) => self.admitted(result),
            Input::StreamOpened => self.stream_opened(),
            Input::Received(ack) => self.received(ack),
            Input::State { last_round, rest } => self.device_state(last_round, rest),
            Input::Control(message) => self.control(message),
            Input::Loaded(result) => self.loaded(result),
            Input::Verdict(verdict) => self.verdict(verdict),
            Input::TookOver(witness) => self.took_over(witness),
            Input::Ran(result) => self.ran(result),
            Input::Touched(pages) => self.touched(pages),
            Input::Whole(whole) => self.whole(whole),
            Input::Rejoined => self.rejoined(),
            Input::Lost { link, error } => self.lost(link, error),
            Input::Tick => self.tick(),
        }
        std::mem::take(&mut self.actions)
    }

    /// Feeds everything that decides how this side goes on, but for when: two engines with the same fingerprint do the
    /// same if their timers fire in the same order.
    pub fn fingerprint(&self, hasher: &mut impl Hasher) {
        std::mem::discriminant(&self.state).hash(hasher);
        match &self.state {
            State::Claiming(claim) => std::mem::discriminant(claim).hash(hasher),
            State::Running { epoch, doubt_at, try_at } => {
                (epoch, self.now >= *doubt_at, try_at.is_some()).hash(hasher);
            }
            _ => {}
        }
        (self.vm, self.streams_open, self.state_round).hash(hasher);
        for stream in &self.streams {
            (stream.pages, stream.round).hash(hasher);
        }
        self.witness.hash(hasher);
        (self.committed.is_some(), self.broken.is_some(), self.deaf).hash(hasher);
        self.rest.as_ref().map(|rest| (rest.whole, rest.ran.is_some())).hash(hasher);
    }

    fn hello(&mut self, hello: Hello) {
        self.heard = self.now;
        self.source = format!("source {}", hello.source);
        let Role::Control { manifest, page_streams, post_copy, verify, .. } = hello.role else {
            return self.fail(failure::out_of_turn(&self.source, "a page stream"), true);
        };
        if self.state != State::Waiting {
            return self.fail(failure::out_of_turn(&self.source, "a second hello"), true);
        }
        if hello.migration != self.setup.migration {
            let message = format!("this is migration {}, not {}", self.setup.migration, hello.migration);
            return self.fail(ApiError::new(ErrorCode::Refused, message), true);
        }
        let follows = manifest.epoch.0.checked_add(1) == Some(self.setup.epoch.0);
        if hello.epoch != self.setup.epoch || !follows {
            let message = format!(
                "the source runs the VM at epoch {} and offers epoch {}, but this host expects epoch {}",
                manifest.epoch, hello.epoch, self.setup.epoch
            );
            let error = ApiError::new(ErrorCode::Refused, message).remedy("migrate again");
            return self.fail(error, true);
        }
        self.vm = Some(manifest.vm);
        self.streams = (0..page_streams).map(|stream| Ack { stream, ..Ack::default() }).collect();
        self.state = State::Admitting;
        (self.post_copy, self.verify) = (post_copy, verify);
        self.actions.push(Action::Admit { manifest: Box::new(manifest), post_copy });
    }

    fn admitted(&mut self, result: Result<(), Vec<String>>) {
        if self.state != State::Admitting {
            return;
        }
        match result {
            Ok(()) => {
                self.state = State::Receiving;
                self.advanced = self.now;
                self.actions.push(Action::AcceptStreams { count: self.streams.len() as u32 });
                let (post_copy, verify) = (self.post_copy, self.verify);
                let welcome = Welcome { post_copy, verify, ..Welcome::default() };
                self.actions.push(Action::Send(Control::Welcome(welcome)));
            }
            Err(reasons) => {
                let message = format!("the machine built here does not fit the VM: {}", reasons.join("; "));
                let error = ApiError::new(ErrorCode::Refused, message)
                    .remedy("choose a destination whose release, CPU and devices match");
                self.fail(error, true);
            }
        }
    }

    fn stream_opened(&mut self) {
        self.advanced = self.now;
        self.streams_open += 1;
        if self.state == State::Receiving && self.streams_open == self.streams.len() as u32 {
            self.actions.push(Action::Send(Control::Ready(Ready {})));
        }
    }

    fn received(&mut self, ack: Ack) {
        if self.state != State::Receiving {
            return self.acknowledge_rest(ack);
        }
        self.advanced = self.now;
        if let Some(known) = self.streams.get_mut(ack.stream as usize) {
            *known = ack;
            self.actions.push(Action::Send(Control::Ack(ack)));
        }
        self.load_if_complete();
    }

    fn device_state(&mut self, last_round: u32, rest: bool) {
        self.heard = self.now;
        let expected = self.state == State::Receiving && self.state_round.is_none();
        if !expected || (rest && !self.post_copy) {
            return self.fail(failure::out_of_turn(&self.source, "device state"), true);
        }
        (self.state_round, self.advanced) = (Some(last_round), self.now);
        if rest {
            self.expect_rest();
        }
        self.load_if_complete();
    }

    fn load_if_complete(&mut self) {
        let all_open = self.streams_open == self.streams.len() as u32;
        let complete = |round| self.streams.iter().all(|stream| stream.round >= round);
        if all_open && self.state_round.is_some_and(complete) {
            self.state = State::Loading;
            self.actions.push(Action::Load);
        }
    }

    fn loaded(&mut self, result: Result<Loaded, MachineError>) {
        if self.state != State::Loading {
            return;
        }
        match result {
            Ok(Loaded { clock_error_ns }) => {
                self.state = State::Prepared;
                self.actions.push(Action::Send(Control::Prepared(Prepared { clock_error_ns })));
            }
            Err(error) => self.fail(failure::machine(&error), true),
        }
    }

    fn control(&mut self, message: Control) {
        self.heard = self.now;
        match (message, &self.state) {
            (Control::Heartbeat(beat), _) => {
                let unix_us = (self.setup.unix + self.now).as_micros() as u64;
                self.actions.push(Action::Send(Control::Heartbeat(Heartbeat { unix_us, ..beat })));
            }
            (Control::Done(_), State::Following { epoch }) if self.is_whole() => self.end(Ok(*epoch)),
            (Control::Committed(_), State::Following { .. }) => {}
            // The source never asks for the commit after it has said that it gave up; so nothing can be in doubt.
            (Control::Error(failure), State::Running { .. } | State::Following { .. }) => drop(failure),
            (Control::Error(failure), _) => {
                let error = failure.into_error(&self.source);
                self.fail(error, false);
            }
            (Control::Committed(_), State::Prepared) => {
                self.committed = Some(self.now);
                self.claim();
            }
            (Control::Committed(_), State::Claiming(claim)) => {
                let rests = matches!(claim, Claim::Resting { .. });
                self.committed.get_or_insert(self.now);
                if rests {
                    self.claim();
                }
            }
            (Control::Committed(_), State::Running { epoch, try_at, .. }) => {
                let (epoch, try_at, doubt_at) = (*epoch, *try_at, self.now + self.setup.tuning.run);
                self.committed.get_or_insert(self.now);
                self.state = State::Running { epoch, doubt_at, try_at };
            }
            (message, _) => {
                self.doubt_or_fail(failure::out_of_turn(&self.source, message.name()), true);
            }
        }
    }

    fn claim(&mut self) {
        self.state = State::Claiming(Claim::Asking);
        if let Some(vm) = self.vm {
            self.actions.push(Action::AskClaim { vm, witness: self.witness.clone() });
        }
    }

    fn verdict(&mut self, verdict: Verdict) {
        if self.state != State::Claiming(Claim::Asking) {
            return;
        }
        match verdict {
            Verdict::Granted { epoch } => {
                self.claimed = self.now;
                let doubt_at = self.now + self.setup.tuning.run;
                self.state = State::Running { epoch, doubt_at, try_at: None };
                self.actions.push(Action::Run { epoch });
            }
            Verdict::Undecided if self.witness == Witness::None => {
                self.state = State::Claiming(Claim::TakingOver);
                self.actions.push(Action::TakeOver);
            }
            Verdict::Undecided => self.rest(),
            Verdict::Refused { reason } => {
                let message = format!("the manager did not give the VM to this host: {reason}");
                self.fail(ApiError::new(ErrorCode::Refused, message), true);
            }
        }
    }

    fn took_over(&mut self, witness: Witness) {
        if self.state != State::Claiming(Claim::TakingOver) {
            return;
        }
        let news = witness != Witness::None || self.committed.is_some();
        self.witness = witness;
        if news { self.claim() } else { self.rest() }
    }

    fn rest(&mut self) {
        self.state = State::Claiming(Claim::Resting { until: self.now + self.setup.tuning.ask_again });
    }

    /// A VM that was granted is tried again for a while: the source's locks may take a moment to fall. Until COMMITTED says
    /// that they have, a source that cannot hear of its grant still holds them, for as long as it is cut off; this copy
    /// is the only one that may ever run, so only the arbiter's word that the VM has moved on ends it.
    fn ran(&mut self, result: Result<Ran, MachineError>) {
        let State::Running { epoch, doubt_at, try_at } = &mut self.state else {
            return;
        };
        match result {
            Ok(Ran { locks, ago, first_packet, memory }) => {
                let (epoch, running) = (*epoch, self.now.saturating_sub(ago));
                let since = |from: Duration, to: Duration| to.saturating_sub(from).as_micros() as u64;
                let committed = self.committed.unwrap_or(running);
                let resumed = Resumed {
                    took_us: since(committed, running),
                    ago_us: if self.rest.is_some() { 0 } else { ago.as_micros() as u64 },
                    claim_us: since(committed, self.claimed),
                    locks_us: locks.as_micros() as u64,
                    first_packet_us: first_packet.map(|after| after.as_micros() as u64),
                    memory: memory.filter(|_| self.rest.is_none()).map(Into::into),
                };
                self.say(Control::Resumed(resumed));
                match &mut self.rest {
                    Some(_) => self.follow(epoch, resumed),
                    None => self.end(Ok(epoch)),
                }
            }
            Err(_) if self.now < *doubt_at => *try_at = Some(self.now + self.setup.tuning.ask_again),
            Err(_) if self.committed.is_none() => self.claim(),
            Err(error) => {
                let error =
                    failure::machine(&error).remedy("start the VM on this host once the cause is removed");
                self.fail(error, true);
            }
        }
    }

    fn lost(&mut self, link: Link, error: ApiError) {
        match link {
            _ if self.rest.is_some() => self.line_broke(error),
            Link::Control => {
                self.deaf = true;
                let error = self.broken.take().map_or(error, |(_, first)| first);
                self.doubt_or_fail(error, false);
            }
            Link::Pages(_) if matches!(self.state, State::Receiving) => {
                self.broken.get_or_insert((self.now + self.setup.tuning.last_words, error));
            }
            // All pages are here.
            Link::Pages(_) => {}
        }
    }

    /// After PREPARED the source may have committed: only the arbiter knows. Before, it cannot have.
    fn doubt_or_fail(&mut self, error: ApiError, tell: bool) {
        match self.state {
            State::Prepared => self.claim(),
            State::Claiming(_) | State::Running { .. } | State::Following { .. } | State::Ended => {}
            _ => self.fail(error, tell),
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let silence = now.saturating_sub(self.heard);
        let stands = self.state == State::Prepared;
        let tuning = &self.setup.tuning;
        let silent = silence >= if stands { tuning.peer_silent_stopped } else { tuning.peer_silent };
        let broken = self.broken.as_ref().filter(|(at, _)| now >= *at).map(|(_, error)| error.clone());
        match &mut self.state {
            State::Claiming(Claim::Resting { until }) if now >= *until => self.claim(),
            State::Running { epoch, try_at, .. } if try_at.is_some_and(|at| now >= at) => {
                *try_at = None;
                let epoch = *epoch;
                self.actions.push(Action::Run { epoch });
            }
            State::Following { .. } => self.following_tick(),
            State::Waiting | State::Claiming(_) | State::Running { .. } | State::Ended => {}
            _ if silent => self.doubt_or_fail(failure::silent(&self.source, silence), true),
            State::Receiving if now >= self.advanced + self.setup.tuning.idle => {
                self.fail(failure::idle(&self.source, now - self.advanced), true);
            }
            _ => {
                if let Some(error) = broken {
                    self.doubt_or_fail(error, true);
                }
            }
        }
    }

    /// Discards the copy: it never runs here.
    fn fail(&mut self, error: ApiError, tell: bool) {
        if tell && !self.deaf {
            self.actions.push(Action::Send(Control::error(&error)));
        }
        self.end(Err(error));
    }

    fn end(&mut self, result: Result<Epoch, ApiError>) {
        self.state = State::Ended;
        self.actions.push(Action::End(result));
    }
}
