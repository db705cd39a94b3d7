//! The source's VMM: the real engine, driven as `godwit_migration::driver` drives it, around a model machine.
//!
//! Actions that nobody else can see are carried out at once; before each of the others anything may happen.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_manager::arbiter::MigrationState;
use godwit_migration::source::{self, Action, Harvest, Input, Sent};
use godwit_migration::wire::{Committed, Control};
use godwit_migration::{Link, MachineError, Reclaimed};
use godwit_types::migration::MigrationOutcome;

use super::agent::{Outcome, Outgoing};
use super::guest::{Memory, SAVE_PAGE};
use super::network::{Frame, Reply};
use super::vcpus::Vcpus;
use super::{FIRST, Life, MIGRATION, NEXT, Side, VM, Violation, World, broken, hello, injected};
use crate::rules::Protocol;

/// The process that runs the VM at first.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// From the order to migrate on.
    pub(crate) engine: Option<source::Engine>,
    pub(crate) life: Life,
    pub(crate) memory: Memory,
    pub(crate) todo: VecDeque<Action>,
    /// A question to the arbiter is open.
    pub(crate) asks: bool,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) sent_bytes: u64,
    pub(crate) fail_next: bool,
    /// A write that the disk has not acknowledged.
    pub(crate) storing: Option<u32>,
    /// Pages that are to follow and were not sent, and the round that they are sent as.
    pub(crate) rest: Vec<usize>,
    pub(crate) rest_round: u32,
    /// Pages that the destination had kept as they were when it was greeted.
    pub(crate) same: Vec<usize>,
    pub(crate) vcpus: Vcpus,
}

/// What the destination has kept of a page: what it was at first, or something else.
fn kept(page: usize) -> u32 {
    if page.is_multiple_of(2) { 0 } else { u32::MAX }
}

impl Source {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            engine: None,
            life: Life::Running,
            memory: Memory::new(pages),
            todo: VecDeque::new(),
            asks: false,
            outcome: None,
            sent_bytes: 0,
            fail_next: false,
            storing: None,
            rest: Vec::new(),
            rest_round: 0,
            same: Vec::new(),
            vcpus: Vcpus::default(),
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.life == Life::Running
    }

    fn call(&mut self) -> Result<(), MachineError> {
        if std::mem::take(&mut self.fail_next) { Err(injected()) } else { Ok(()) }
    }
}

/// On the wire; every record counts the same.
pub(crate) const RECORD_BYTES: u64 = 4096;

impl World {
    /// Feeds the engine, and carries out what follows until something that others can see is to be done.
    pub(crate) fn tell_source(&mut self, input: Input) -> Result<(), Violation> {
        let now = self.clocks[0];
        let Some(source) = &mut self.source else { return Ok(()) };
        let sent = Sent { page_stream_bytes: source.sent_bytes, ..Sent::default() };
        let Some(engine) = &mut source.engine else { return Ok(()) };
        for input in [Input::Sent(sent), input] {
            source.todo.extend(engine.handle(now, input));
        }
        self.source_goes_on()
    }

    fn source_goes_on(&mut self) -> Result<(), Violation> {
        while self.source.as_ref().and_then(|source| source.todo.front()).is_some_and(|next| !is_seen(next)) {
            self.source_acts()?;
        }
        Ok(())
    }

    /// Carries out the next action, tells the engine its answer, and goes on.
    pub(crate) fn source_acts(&mut self) -> Result<(), Violation> {
        let Some(action) = self.source.as_mut().and_then(|source| source.todo.pop_front()) else {
            return Ok(());
        };
        match self.source_does(action)? {
            Some(answer) => self.tell_source(answer),
            None => self.source_goes_on(),
        }
    }

    fn source_does(&mut self, action: Action) -> Result<Option<Input>, Violation> {
        let swapped = self.rules.protocol == Protocol::CommitSwapped;
        let Some(source) = &mut self.source else { return Ok(None) };
        match action {
            Action::Greet => {
                let pages = source.memory.pages.iter().enumerate();
                source.same =
                    pages.filter(|(page, content)| kept(*page) == **content).map(|(page, _)| page).collect();
                let hello = hello(self.guest.pages.len(), self.rules.post_copy);
                self.net.to_destination.send(Frame::Hello(Box::new(hello)));
            }
            Action::Send(Control::Heartbeat(_)) if self.net.to_destination.ends_with_heartbeat() => {}
            Action::Send(message) => self.net.to_destination.send(Frame::Control(message)),
            Action::OpenStreams => return Ok(Some(self.open_streams()?)),
            Action::StartLog => {
                source.memory.mark_all();
                return Ok(Some(Input::LogStarted(source.call())));
            }
            Action::Harvest => {
                let pages = source.memory.harvest();
                let may_be_slowed = self.rules.slowdown_percent_max > 0;
                let vcpus = if may_be_slowed { source.vcpus.activity() } else { Vec::new() };
                let took = Duration::from_millis(1);
                let harvest = source.call().map(|()| Harvest { pages, took, vcpus });
                return Ok(Some(Input::Harvested(harvest)));
            }
            Action::SendRound { round } => {
                let pages = source.memory.take();
                if !self.net.pages.cut {
                    self.net.pages.rounds.push_back((round, pages));
                }
            }
            Action::Pause => {
                let result = source.call();
                if result.is_ok() {
                    source.life = Life::Paused;
                    self.source_stands();
                    self.disk_done(Side::Source)?;
                }
                return Ok(Some(Input::Paused(result.map(|()| Duration::ZERO))));
            }
            Action::Save { .. } => {
                let result = source.call();
                // By post-copy others, which loading does not need, are left to follow.
                let pages =
                    if self.rules.post_copy { 0..self.guest.pages.len() } else { SAVE_PAGE..SAVE_PAGE + 1 };
                for page in pages {
                    let content = self.guest.next();
                    source.memory.write(page, content);
                    self.guest.pages[page] = content;
                }
                return Ok(Some(Input::Saved(result)));
            }
            Action::SendState { last_round, rest } => {
                if rest {
                    (source.rest, source.rest_round) = (source.memory.take(), last_round + 1);
                }
                self.net.to_destination.send(Frame::State { last_round, rest: source.rest.clone() });
            }
            Action::Serve { pages } => self.serve_pages(&pages),
            Action::PushRest => self.push_rest(),
            Action::Disconnect => self.net.hang_up(Side::Source),
            Action::Reconnect { .. } => self.net.connecting = true,
            Action::LetGo => self.disk.release(Side::Source),
            Action::Reclaim if self.rules.protocol == Protocol::RunOnUnrecorded => {
                return Ok(Some(Input::Reclaimed(Ok(Reclaimed::Ours))));
            }
            Action::Reclaim => {
                let reclaimed = source.call().and_then(|()| self.disk.reclaim(FIRST, MIGRATION));
                return Ok(Some(Input::Reclaimed(reclaimed)));
            }
            Action::Resume => {
                if source.life != Life::Paused {
                    return Err(Violation::RanAgain);
                }
                source.life = Life::Running;
                self.require_full_speed()?;
                self.starts(Side::Source)?;
                self.guest_writes(0)?;
                return Ok(Some(Input::Resumed(Ok(()))));
            }
            Action::AskCommit => {
                source.asks = true;
                if swapped {
                    self.disk.release(Side::Source);
                    let epoch = NEXT.0;
                    self.net.to_destination.send(Frame::Control(Control::Committed(Committed { epoch })));
                }
            }
            Action::HandOver => {
                source.life = Life::HandedOver;
                self.disk.release(Side::Source);
                return Ok(Some(Input::HandedOver));
            }
            Action::Slow { shares } => self.slow(shares)?,
            Action::StopLog | Action::Progress(_) | Action::Digest => {}
            Action::End(outcome) => self.source_ended(&outcome)?,
        }
        Ok(None)
    }

    /// The connections are there, or they are not; the destination sees them a moment before the source.
    fn open_streams(&mut self) -> Result<Input, Violation> {
        if self.net.pages.cut || self.net.silent || self.destination.is_none() {
            return Ok(Input::StreamsOpened(Err(broken())));
        }
        self.tell_destination(godwit_migration::destination::Input::StreamOpened)?;
        Ok(Input::StreamsOpened(Ok(())))
    }

    fn source_ended(&mut self, outcome: &MigrationOutcome) -> Result<(), Violation> {
        let outcome = match outcome {
            MigrationOutcome::Completed { .. } => Outcome::Completed,
            MigrationOutcome::Failed { .. } => Outcome::Failed,
            MigrationOutcome::Died { .. } => Outcome::Died,
            MigrationOutcome::HandedOver { .. } => Outcome::HandedOver,
        };
        self.net.to_destination.closed = true;
        self.net.pages.cut = true;
        self.net.connecting = false;
        let agent = &mut self.agents[0];
        if !agent.down {
            agent.outgoing = Outgoing::Ended(outcome);
            agent.handed_over |= outcome != Outcome::Failed;
        }
        let Some(source) = &mut self.source else { return Ok(()) };
        source.outcome = Some(outcome);
        source.asks = false;
        if outcome == Outcome::Failed && !source.runs() {
            return Err(Violation::FailedAndStopped);
        }
        self.require_full_speed()
    }

    pub(crate) fn source_hears(&mut self) -> Result<(), Violation> {
        let Some(reply) = self.net.to_source.queue.pop_front() else {
            self.net.to_source.told = true;
            return self.tell_source(Input::Lost { link: Link::Control, error: broken() });
        };
        let input = match reply {
            Reply::Control(message) => Input::Control(message),
            Reply::Missing(pages) => self.source_learns_missing(pages),
        };
        self.tell_source(input)
    }

    /// The page stream reads one page of the round under way; after the last one it ends the round.
    pub(crate) fn page_leaves(&mut self) -> Result<(), Violation> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let pages = &mut self.net.pages;
        let Some((round, waiting)) = pages.rounds.front_mut() else { return Ok(()) };
        let round = *round;
        if let Some(page) = waiting.pop() {
            let content = source.memory.pages[page];
            let early = self.rules.protocol == Protocol::LookBeforeLog;
            let same = if early { source.same.contains(&page) } else { kept(page) == content };
            let content = if round == 1 && same { kept(page) } else { content };
            pages.records.push_back((round, Some((page, content))));
            source.sent_bytes += RECORD_BYTES;
        }
        if !waiting.is_empty() {
            return Ok(());
        }
        pages.records.push_back((round, None));
        source.sent_bytes += RECORD_BYTES;
        pages.rounds.pop_front();
        self.tell_source(Input::RoundSent { stream: 0, round })
    }

    /// The process is gone.
    pub(crate) fn source_dies(&mut self, keep: usize) {
        let Some(source) = self.source.take() else { return };
        self.heir = source.life == Life::Paused
            && self.manager.rows.migration.state == MigrationState::Running
            && self.disk.record.stands_since(VM, FIRST, MIGRATION)
            && self.destination.as_ref().is_some_and(|it| it.life == Life::Paused && it.is_whole());
        self.disk.release(Side::Source);
        self.net.cut(keep, 0);
        self.net.pages.told[0] = true;
        self.net.connecting = false;
        if !self.agents[0].down {
            self.agents[0].source_ended();
        }
    }
}

/// Whether somebody else can tell when it is done.
fn is_seen(action: &Action) -> bool {
    let asks = matches!(action, Action::Pause | Action::Resume | Action::AskCommit | Action::HandOver);
    asks || matches!(action, Action::LetGo | Action::Reclaim)
}
