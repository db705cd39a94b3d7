//! The source's side of a migration: a state machine without I/O.
//!
//! ```text
//!  Greeting --WELCOME--> Opening --streams--> Starting --log on--> Sending <------------------+
//!                                                                    | round sent             | another round
//!                                                                 Resting --> Harvesting -----+
//!                                                                                  | within the budget, READY
//!     any failure, cancel                            Stopping <--------------------+
//!     before the commit is asked                        | paused (stop)
//!            |                                       LastHarvest --> Saving --> FinalHarvest    pages flow meanwhile
//!            v                                                                     | STATE sent
//!     Resuming (if stopped) --> Ended: Failed        Preparing <-------------------+
//!            ^                           any failure    | PREPARED
//!            | the VM is ours  Reclaiming <----------+  v
//!            +------------------ |  ^ +-- refused -- Committing     only the arbiter's verdict leads out of here
//!                   it has moved |  + error: again      | granted
//!                   on           v                      v
//!     Ended: HandedOver <--------+   HandedOver <-- HandingOver     never runs the VM again
//!          ^------------ lost, silent --- | RESUMED      | part of memory is to follow
//!     Ended: Completed <------------------+           Serving     see `serving`; then, if asked for, `verifying`
//! ```
//!
//! The guest runs here in every state above Stopping and after Resuming, and in no other. Once STATE was sent the
//! destination may have everything, and takes over if this side dies: so the guest runs on here only after the disks'
//! records say so.

mod clocks;
mod ending;
mod event;
mod handoff;
mod precopy;
mod serving;
mod traffic;
mod verifying;

use std::hash::{Hash, Hasher};
use std::time::Duration;

use godwit_types::migration::{Budget, MigrationProgress, Phase};
use godwit_types::{ApiError, Bytes, Epoch, HostName, MigrationId, PAGE_SIZE_BYTES};

use clocks::Clocks;
pub use event::{Action, Harvest, Input, Sent};
use serving::{Line, Rest};
use traffic::Traffic;
use verifying::Verifying;

use crate::failure;
use crate::policy::Policy;
use crate::report::{Timeline, ms};
use crate::throttle::Throttle;
use crate::tuning::Tuning;
use crate::wire::{Control, Heartbeat};

/// Between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// The next reading of the dirty log follows at least this long after an empty one.
const IDLE_SPACING: Duration = Duration::from_millis(10);

/// What a source's state machine needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Setup {
    pub migration: MigrationId,
    pub source: HostName,
    pub destination: HostName,
    pub budget: Budget,
    /// Pages of all RAM ranges.
    pub ram_pages: u64,
    /// Pages of all disks that move.
    pub disk_pages: u64,
    /// This host's real time when the engine's was zero, since 1970.
    pub unix: Duration,
    pub tuning: Tuning,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Greeting,
    Opening,
    Starting,
    Sending { streams_done: u32 },
    Resting,
    Harvesting,
    Stopping { failed: Option<ApiError> },
    LastHarvest,
    Saving,
    FinalHarvest,
    Preparing,
    Committing { since: Duration, ask_at: Option<Duration>, let_go: bool },
    HandingOver { epoch: Epoch },
    HandedOver,
    Serving { epoch: Epoch, line: Line },
    Verifying(Verifying),
    Reclaiming { phase: Phase, error: ApiError, tell: bool, try_at: Option<Duration> },
    Resuming { phase: Phase, error: ApiError, tell: bool },
    Ended,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Engine {
    setup: Setup,
    state: State,
    now: Duration,
    actions: Vec<Action>,
    policy: Policy,
    throttle: Throttle,
    traffic: Traffic,
    clocks: Clocks,
    timeline: Timeline,
    round: u32,
    round_began: Duration,
    spacing: Duration,
    ready: bool,
    /// When all page streams were open.
    opened: Duration,
    log_on: bool,
    predicted: Duration,
    heard: Duration,
    heartbeat_at: Duration,
    progress_at: Duration,
    /// A page stream broke: the error to report unless the destination says why before this time.
    broken: Option<(Duration, ApiError)>,
    /// Why nothing can be said to, or expected from, the destination any more.
    deaf: Option<ApiError>,
    /// The last round that was settled while the guest stood.
    settled_round: u32,
    /// Part of memory follows the guest: once that is decided.
    rest: Option<Rest>,
}

impl Engine {
    pub fn new(setup: Setup) -> Self {
        Self {
            policy: Policy::new(setup.budget.clone()),
            throttle: Throttle::new(setup.budget.slowdown_percent_max),
            traffic: Traffic::new(setup.tuning.page_streams),
            setup,
            state: State::Greeting,
            now: Duration::ZERO,
            actions: Vec::new(),
            clocks: Clocks::default(),
            timeline: Timeline::default(),
            round: 0,
            round_began: Duration::ZERO,
            spacing: Duration::ZERO,
            ready: false,
            opened: Duration::ZERO,
            log_on: false,
            predicted: Duration::ZERO,
            heard: Duration::ZERO,
            heartbeat_at: Duration::ZERO,
            progress_at: Duration::ZERO,
            broken: None,
            deaf: None,
            settled_round: 0,
            rest: None,
        }
    }

    /// Whether the commit has been asked for: it can no longer be cancelled.
    pub fn is_commit_asked(&self) -> bool {
        matches!(
            self.state,
            State::Committing { .. }
                | State::HandingOver { .. }
                | State::HandedOver
                | State::Serving { .. }
                | State::Verifying(_)
        )
    }

    /// Takes in what happened at `now`, since the migration began, and says what to do.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Action> {
        self.now = self.now.max(now);
        if self.state == State::Ended {
            return Vec::new();
        }
        let phase = self.phase();
        match input {
            Input::Start => {
                self.heard = self.now;
                self.actions.push(Action::Greet);
            }
            Input::Control(message) => self.control(message),
            Input::Sent(sent) => self.traffic.set_sent(sent),
            Input::RoundSent { round, .. } => self.round_sent(round),
            Input::StreamsOpened(result) => self.streams_opened(result),
            Input::LogStarted(result) => self.log_started(result),
            Input::Harvested(result) => self.harvested(result),
            Input::Paused(result) => self.paused(result),
            Input::Saved(result) => self.saved(result),
            Input::Reclaimed(result) => self.reclaimed(result),
            Input::Resumed(result) => self.resumed(result),
            Input::Verdict(verdict) => self.verdict(verdict),
            Input::HandedOver => self.handed_over(),
            Input::Reconnected(result) => self.reconnected(result),
            Input::Missing => self.missing_named(),
            Input::Digested(result) => self.digested(result),
            Input::Lost { link, error } => self.lost(link, error),
            Input::Cancel if !self.is_commit_asked() => self.fail(failure::cancelled(), true),
            Input::Cancel => {}
            Input::Tick => self.tick(),
        }
        let due = self.phase() != phase || self.now >= self.progress_at;
        if due && self.state != State::Ended {
            self.progress();
        }
        std::mem::take(&mut self.actions)
    }

    /// Feeds everything that decides how this side goes on from the switchover, but for when: two engines with the
    /// same fingerprint do the same if their timers fire in the same order.
    pub fn fingerprint(&self, hasher: &mut impl Hasher) {
        std::mem::discriminant(&self.state).hash(hasher);
        match &self.state {
            State::Sending { streams_done } => streams_done.hash(hasher),
            State::Stopping { failed } => failed.is_some().hash(hasher),
            State::Committing { ask_at, let_go, .. } => (ask_at.is_some(), let_go).hash(hasher),
            State::HandingOver { epoch } => epoch.hash(hasher),
            State::Reclaiming { tell, try_at, .. } => (tell, try_at.is_some()).hash(hasher),
            State::Resuming { tell, .. } => tell.hash(hasher),
            State::Serving { line: Line::Down { try_at, .. }, .. } => try_at.is_some().hash(hasher),
            State::Serving { line: Line::Up, .. } => 0u8.hash(hasher),
            _ => {}
        }
        (self.round, self.ready, self.log_on).hash(hasher);
        (self.broken.is_some(), self.deaf.is_some()).hash(hasher);
        (self.rest.is_some(), self.has_resumed()).hash(hasher);
        (self.traffic.is_settled(self.round), self.traffic.is_outstanding()).hash(hasher);
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Greeting | State::Opening | State::Starting => Phase::Preflight,
            State::Sending { .. } | State::Resting | State::Harvesting => Phase::PreCopy,
            State::Stopping { .. }
            | State::LastHarvest
            | State::Saving
            | State::FinalHarvest
            | State::Preparing => Phase::Switchover,
            State::Committing { .. } => Phase::Commit,
            State::HandingOver { .. } | State::HandedOver => Phase::Resume,
            State::Serving { .. } => Phase::PostCopy,
            State::Reclaiming { phase, .. } | State::Resuming { phase, .. } => *phase,
            State::Verifying(_) => Phase::Verify,
            State::Ended => Phase::Done,
        }
    }

    fn peer(&self) -> String {
        format!("destination {}", self.setup.destination)
    }

    fn control(&mut self, message: Control) {
        self.heard = self.now;
        match (message, &self.state) {
            (_, State::Verifying(_)) => {}
            (Control::Error(failure), _) => {
                let error = failure.into_error(&self.peer());
                self.peer_failed(error);
            }
            // Nothing else answers the greeting: a peer that lives, and says other things, is not waited for.
            (message, State::Greeting) if !matches!(message, Control::Welcome(_)) => {
                self.fail(failure::out_of_turn(&self.peer(), message.name()), true);
            }
            (Control::Heartbeat(echo), _) => {
                let sent = Duration::from_micros(echo.source_us).min(self.now);
                self.traffic.echo(self.now - sent);
                if echo.unix_us > 0 {
                    let there = Duration::from_micros(echo.unix_us);
                    self.clocks.echo(self.setup.unix + sent, self.setup.unix + self.now, there);
                }
            }
            (Control::Ack(ack), _) => self.acknowledged(ack),
            (Control::Welcome(welcome), State::Greeting)
                if self.setup.budget.post_copy && !welcome.post_copy =>
            {
                self.fail(failure::no_post_copy(&self.peer()), true);
            }
            (Control::Welcome(welcome), State::Greeting) if self.setup.budget.verify && !welcome.verify => {
                self.fail(failure::no_digest(&self.peer()), true);
            }
            (Control::Welcome(_), State::Greeting) => {
                self.state = State::Opening;
                // However short the migration is, the hosts' clocks are compared before its end.
                self.beat();
                self.actions.push(Action::OpenStreams);
            }
            (Control::Ready(_), _) => self.ready = true,
            (Control::Prepared(prepared), State::Preparing) if self.traffic.is_settled(self.round) => {
                self.timeline.prepared = self.now;
                self.clocks.error_ns = prepared.clock_error_ns;
                self.ask_commit();
            }
            (Control::Resumed(resumed), State::HandedOver) => {
                self.timeline.resumed(self.now, resumed);
                self.complete(self.timeline.running(), None, resumed.memory);
            }
            (Control::Want(want), _) if self.is_asked_for_pages() => self.wanted(want),
            (Control::Resumed(resumed), State::Serving { .. }) => self.runs_there(resumed),
            (Control::Whole(whole), State::Serving { .. }) => self.whole(whole),
            // What was under way when this side gave up may still arrive.
            (_, State::Reclaiming { .. } | State::Resuming { .. } | State::Stopping { failed: Some(_) }) => {}
            (message, _) => {
                self.fail(failure::out_of_turn(&self.peer(), message.name()), true);
            }
        }
    }

    fn beat(&mut self) {
        self.heartbeat_at = self.now + self.setup.tuning.heartbeat;
        let source_us = self.now.as_micros() as u64;
        self.actions.push(Action::Send(Control::Heartbeat(Heartbeat { source_us, unix_us: 0 })));
    }

    fn tick(&mut self) {
        if let State::Verifying(_) = self.state {
            return;
        }
        let (now, tuning) = (self.now, self.setup.tuning.clone());
        if now >= self.heartbeat_at && self.deaf.is_none() && !matches!(self.state, State::Greeting) {
            self.beat();
        }
        match &self.state {
            State::Committing { since, ask_at, let_go } => {
                return self.await_verdict(*since, *ask_at, *let_go);
            }
            State::Reclaiming { try_at: Some(at), .. } if now >= *at => return self.reclaim_again(),
            State::Reclaiming { .. } | State::HandingOver { .. } | State::Resuming { .. } => return,
            State::Serving { .. } => return self.serving_tick(),
            State::HandedOver => {
                if now >= self.timeline.committed + tuning.resumed {
                    self.fail(failure::silent(&self.peer(), tuning.resumed), false);
                }
                return;
            }
            State::Resting => self.rest(),
            State::Sending { .. } if self.policy.has_given_up(now) => {
                return self.give_up(&self.traffic.measured(0));
            }
            _ => {}
        }
        let stopped = self.phase() == Phase::Switchover;
        let patience = if stopped { tuning.peer_silent_stopped } else { tuning.peer_silent };
        let broken = self.broken.as_ref().filter(|(at, _)| now >= *at).map(|(_, error)| error.clone());
        if let Some(error) = broken {
            self.fail(error, true);
        } else if now >= self.heard + patience {
            self.fail(failure::silent(&self.peer(), now - self.heard), true);
        } else if self.traffic.is_outstanding() && now >= self.traffic.advanced + patience {
            self.fail(failure::stalled(&self.peer(), now - self.traffic.advanced), true);
        } else if self.log_on && !self.ready && now >= self.opened + patience {
            self.fail(failure::unready(&self.peer(), now - self.opened), true);
        } else if stopped && now >= self.timeline.stop + tuning.switchover + self.predicted * 2 {
            self.fail(failure::slow_switchover(&self.peer(), now - self.timeline.stop), true);
        }
    }

    fn progress(&mut self) {
        self.progress_at = self.now + PROGRESS_INTERVAL;
        let mut measured = self.traffic.measured(0);
        if let State::Serving { .. } = self.state {
            measured.remaining = self.traffic.sent().rest_pages * PAGE_SIZE_BYTES;
        }
        let running = matches!(self.phase(), Phase::Preflight | Phase::PreCopy);
        let blackout = measured.blackout().filter(|_| self.round > 0 && running);
        self.actions.push(Action::Progress(MigrationProgress {
            phase: self.phase(),
            round: self.round,
            bytes_sent: self.traffic.sent().by_kind().sent,
            remaining: Bytes(measured.remaining),
            goodput_bytes_per_s: self.traffic.goodput_bytes_per_s(),
            dirty_bytes_per_s: self.traffic.dirty_bytes_per_s(),
            predicted_blackout_ms: blackout.map(ms),
            predicted_finish_ms: self.traffic.predicted_finish(&measured).map(|time| time.as_millis() as u64),
            slowdown_percent: self.throttle.percent(),
            elapsed_ms: self.now.as_millis() as u64,
        }));
    }
}
