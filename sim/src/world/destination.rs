//! The destination's VMM: the real engine, driven as `godwit_migration::driver` drives it, around a model machine.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_migration::destination::{self, Action, Input, Ran};
use godwit_migration::wire::{Ack, Control};
use godwit_migration::{Link, Loaded, MachineError, Tuning};
use godwit_types::Epoch;
use godwit_types::ownership::{Verdict, Witness};

use super::guest::SAVE_PAGE;
use super::network::{Frame, Reply};
use super::rest::Rest;
use super::source::RECORD_BYTES;
use super::{FIRST, Life, MIGRATION, NEXT, Side, Violation, World, broken, injected};
use crate::rules::{Commit, Protocol};

/// The process that waits for the VM.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) engine: destination::Engine,
    pub(crate) life: Life,
    pub(crate) memory: Vec<u32>,
    pub(crate) todo: VecDeque<Action>,
    pub(crate) asks: bool,
    /// What it said with its question.
    pub(crate) witness: Witness,
    /// The source has connected.
    pub(crate) greeted: bool,
    /// COMMITTED has arrived.
    pub(crate) committed: bool,
    pub(crate) acked: Ack,
    pub(crate) fail_next: bool,
    pub(crate) storing: Option<u32>,
    pub(crate) rest: Rest,
}

impl Destination {
    pub(crate) fn new(pages: usize, tuning: Tuning) -> Self {
        let setup = destination::Setup { migration: MIGRATION, epoch: NEXT, unix: Duration::ZERO, tuning };
        Self {
            engine: destination::Engine::new(setup),
            life: Life::Incoming,
            memory: vec![0; pages],
            todo: VecDeque::new(),
            asks: false,
            witness: Witness::None,
            greeted: false,
            committed: false,
            acked: Ack::default(),
            fail_next: false,
            storing: None,
            rest: Rest::default(),
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.life == Life::Running
    }

    /// Whether all of memory is here.
    pub(crate) fn is_whole(&self) -> bool {
        self.rest.named.is_empty() && !self.rest.lacks_any()
    }

    /// Loads the state, for which the page that saving has written is read.
    fn load(&mut self) -> Input {
        let loaded = self.call();
        self.rest.expect(&mut self.memory);
        if loaded.is_ok() && self.rest.lacks(SAVE_PAGE) {
            self.rest.loading = true;
            return self.rest.touch(SAVE_PAGE);
        }
        if loaded.is_ok() {
            self.life = Life::Paused;
        }
        Input::Loaded(loaded.map(|()| Loaded::default()))
    }

    fn call(&mut self) -> Result<(), MachineError> {
        if std::mem::take(&mut self.fail_next) { Err(injected()) } else { Ok(()) }
    }
}

impl World {
    /// Feeds the engine, and carries out what follows until something that others can see is to be done.
    pub(crate) fn tell_destination(&mut self, input: Input) -> Result<(), Violation> {
        let now = self.clocks[1];
        let Some(destination) = &mut self.destination else { return Ok(()) };
        let actions = destination.engine.handle(now, input);
        destination.todo.extend(actions);
        self.destination_goes_on()
    }

    fn destination_goes_on(&mut self) -> Result<(), Violation> {
        let next = |world: &Self| world.destination.as_ref().and_then(|it| it.todo.front().map(is_seen));
        while next(self) == Some(false) {
            self.destination_acts()?;
        }
        Ok(())
    }

    /// Carries out the next action, tells the engine its answer, and goes on.
    pub(crate) fn destination_acts(&mut self) -> Result<(), Violation> {
        let Some(action) = self.destination.as_mut().and_then(|it| it.todo.pop_front()) else {
            return Ok(());
        };
        match self.destination_does(action)? {
            Some(answer) => self.tell_destination(answer),
            None => self.destination_goes_on(),
        }
    }

    fn destination_does(&mut self, action: Action) -> Result<Option<Input>, Violation> {
        let Some(destination) = &mut self.destination else { return Ok(None) };
        match action {
            Action::Admit { .. } => {
                let result = destination.call().map_err(|error| vec![error.to_string()]);
                return Ok(Some(Input::Admitted(result)));
            }
            Action::AcceptStreams { .. } => {}
            // The source's driver takes in the welcome on new connections itself.
            Action::Send(Control::Welcome(_)) if destination.life != Life::Incoming => {}
            Action::Send(message) => self.net.to_source.send(Reply::Control(message)),
            Action::SendMissing => self.send_missing(),
            Action::Disconnect => self.net.hang_up(Side::Destination),
            Action::Load => return Ok(Some(destination.load())),
            Action::AskClaim { witness, .. } => return Ok(self.ask_claim(witness)),
            Action::TakeOver => {
                // A disk that cannot be reached just now says nothing.
                let witness =
                    destination.call().map_or(Witness::None, |()| self.disk.take_over(FIRST, MIGRATION));
                return Ok(Some(Input::TookOver(witness)));
            }
            Action::Run { epoch } => return Ok(Some(Input::Ran(self.run(epoch)?.map(|()| Ran::default())))),
            Action::End(Ok(_)) => self.destination_arrived(),
            Action::End(Err(_)) => self.destination_dies(usize::MAX),
        }
        Ok(None)
    }

    /// Asks the arbiter, unless the protocol at hand knows better.
    fn ask_claim(&mut self, witness: Witness) -> Option<Input> {
        let destination = self.destination.as_mut()?;
        let knows = match (self.rules.protocol, self.rules.commit) {
            (Protocol::ResumeOnTimeout, _) => !destination.committed,
            (Protocol::CommitSwapped, _) | (_, Commit::Intent) => destination.committed,
            _ => false,
        };
        if knows {
            return Some(Input::Verdict(Verdict::Granted { epoch: NEXT }));
        }
        (destination.asks, destination.witness) = (true, witness);
        None
    }

    /// Takes the locks and starts the vCPUs.
    fn run(&mut self, epoch: Epoch) -> Result<Result<(), MachineError>, Violation> {
        let Some(destination) = &mut self.destination else { return Ok(Ok(())) };
        if let Err(error) = destination.call() {
            return Ok(Err(error));
        }
        if let Err(reason) = self.disk.take(Side::Destination, epoch) {
            // As `Pci::take_locks`: all or none.
            self.disk.release(Side::Destination);
            return Ok(Err(MachineError { step: "locking the disks".into(), reason }));
        }
        destination.life = Life::Running;
        let rest = &destination.rest;
        let mut pages = destination.memory.iter().zip(&self.guest.pages).enumerate();
        if pages.any(|(page, (here, known))| here != known && !rest.lacks(page)) {
            return Err(Violation::MemoryLost);
        }
        self.starts(Side::Destination)?;
        self.ran = true;
        self.guest_writes(0)?;
        Ok(Ok(()))
    }

    fn destination_arrived(&mut self) {
        self.net.to_source.closed = true;
        self.net.pages.cut = true;
        let agent = &mut self.agents[1];
        agent.settled |= !agent.down;
    }

    pub(crate) fn destination_hears(&mut self) -> Result<(), Violation> {
        let Some(frame) = self.net.to_destination.queue.pop_front() else {
            self.net.to_destination.told = true;
            return self.tell_destination(Input::Lost { link: Link::Control, error: broken() });
        };
        let Some(destination) = &mut self.destination else { return Ok(()) };
        let input = match frame {
            Frame::Hello(hello) => {
                destination.greeted = true;
                Input::Hello(*hello)
            }
            Frame::Control(message) => {
                destination.committed |= matches!(message, Control::Committed(_));
                Input::Control(message)
            }
            Frame::State { last_round, rest } => {
                let follows = !rest.is_empty();
                destination.rest.named = rest;
                Input::State { last_round, rest: follows }
            }
            Frame::Pages(pages) => return self.pages_come(pages),
        };
        self.tell_destination(input)
    }

    pub(crate) fn page_arrives(&mut self) -> Result<(), Violation> {
        let Some(record) = self.net.pages.records.pop_front() else { return Ok(()) };
        let Some(destination) = &mut self.destination else { return Ok(()) };
        let (mut record, mut late) = (Some(record), Vec::new());
        while let Some((round, content)) = record {
            destination.acked.wire_bytes += RECORD_BYTES;
            match content {
                Some(page) if destination.rest.is_expected() => late.push(page),
                Some((page, content)) => {
                    destination.memory[page] = content;
                    destination.acked.pages += 1;
                }
                None => destination.acked.round = round,
            }
            // The end of a round comes with its last page.
            let end = content.is_some() && self.net.pages.records.front() == Some(&(round, None));
            record = if end { self.net.pages.records.pop_front() } else { None };
        }
        let acked = destination.acked;
        self.tell_destination(Input::Received(acked))?;
        self.pages_come(late)
    }

    /// The process is gone; so many of its messages still arrive.
    pub(crate) fn destination_dies(&mut self, keep: usize) {
        let Some(destination) = self.destination.take() else { return };
        self.disk.release(Side::Destination);
        self.net.cut(0, keep);
        self.net.pages.told[1] = true;
        if !self.agents[1].down {
            self.agents[1].destination_ended(destination.life == Life::Running);
        }
    }
}

/// Whether somebody else can tell when it is done.
fn is_seen(action: &Action) -> bool {
    matches!(action, Action::Load | Action::AskClaim { .. } | Action::TakeOver | Action::Run { .. })
}
