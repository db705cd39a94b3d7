//! What each choice does.

use std::time::Duration;

use godwit_migration::destination::Input as Told;
use godwit_migration::source::{self, Input};
use godwit_migration::{Link, Tuning};
use godwit_types::ownership::{Verdict, Witness};

use super::agent::{Agent, Outcome, Outgoing};
use super::choice::{Call, Choice};
use super::destination::Destination;
use super::source::Source;
use super::{FIRST, MIGRATION, MINUTE, Side, Violation, World, broken};

impl World {
    /// Makes `choice` happen, and checks what must hold afterwards. A choice that is not open now does nothing.
    pub fn apply(&mut self, choice: Choice) -> Result<(), Violation> {
        match choice {
            Choice::Act(Side::Source) => self.source_acts()?,
            Choice::Act(Side::Destination) => self.destination_acts()?,
            Choice::Deliver(Side::Source) => self.source_hears()?,
            Choice::Deliver(Side::Destination) => self.destination_hears()?,
            Choice::PageLeaves => self.page_leaves()?,
            Choice::PageArrives => self.page_arrives()?,
            Choice::PagesBroken(side) => {
                self.net.pages.told[side.index()] = true;
                let link = Link::Pages(0);
                match side {
                    Side::Source => self.tell_source(Input::Lost { link, error: broken() })?,
                    Side::Destination => self.tell_destination(Told::Lost { link, error: broken() })?,
                }
            }
            Choice::Ask(side) => self.ask(side),
            Choice::Decide(side) => {
                let verdict = self.decide(side, self.net.questions[side.index()].dead);
                let question = &mut self.net.questions[side.index()];
                (question.live, question.verdict) = (false, Some(verdict));
            }
            Choice::DecideAgain(side) => {
                let dead = self.net.questions[side.index()].stale.remove(0);
                self.decide(side, dead);
            }
            Choice::Verdict(side) => self.verdict(side)?,
            Choice::Tick { ms } => {
                for side in Side::BOTH {
                    self.time_passes(side, Duration::from_millis(ms.into()))?;
                }
            }
            Choice::Deadline(side) => {
                if let Some(wait) = self.deadline(side) {
                    self.time_passes(side, wait)?;
                }
            }
            Choice::Minute(side) => self.time_passes(side, MINUTE)?,
            Choice::GuestWrites { page } => self.guest_writes(page.into())?,
            Choice::Connect => self.connect(false)?,
            Choice::Mend => self.net.silent = false,
            Choice::GuestStores => self.guest_stores(),
            Choice::DiskDone => {
                self.disk_done(Side::Source)?;
                self.disk_done(Side::Destination)?;
            }
            Choice::Begin => self.begin(),
            Choice::Call(call) => {
                if let Some(index) = self.net.calls.iter().position(|other| *other == call) {
                    self.net.calls.remove(index);
                    self.carry_out(call);
                }
            }
            Choice::Reply => {
                let done = self.net.reply.take();
                self.replied(done);
            }
            Choice::Poll { late } => self.poll(late, false),
            Choice::Hear => self.hear(),
            Choice::Report(side) => {
                self.net.reports[side.index()] = Some(self.local(side).map(|(state, _)| state));
            }
            Choice::Reported(side) => self.reported(side),
            Choice::Retire => {
                self.source_dies(usize::MAX);
            }
            Choice::RestartManager => {
                if self.manager.restart(self.rules.commit) {
                    self.abort();
                }
            }
            Choice::RestartAgent(side) => self.restart_agent(side),
            Choice::Rejoin(side) => self.agents[side.index()].isolated = false,
            Choice::Sync => self.manager.durable = self.manager.rows.clone(),
            Choice::Fault(fault) => self.fault(fault)?,
        }
        self.check()
    }

    fn ask(&mut self, side: Side) {
        let agent = &mut self.agents[side.index()];
        agent.waiting = true;
        agent.claiming |= side == Side::Destination;
        let witness = self.destination.as_ref().filter(|_| side == Side::Destination).map(|it| &it.witness);
        agent.blind = matches!(witness, Some(Witness::Blind { .. }));
        let dead = witness == Some(&Witness::SourceDead);
        let question = &mut self.net.questions[side.index()];
        (question.live, question.ever, question.dead) = (true, true, dead);
    }

    /// The agent hears the verdict, does what it must, and passes it on.
    fn verdict(&mut self, side: Side) -> Result<(), Violation> {
        let Some(verdict) = self.net.questions[side.index()].verdict.take() else { return Ok(()) };
        let agent = &mut self.agents[side.index()];
        agent.waiting = false;
        let granted = matches!(verdict, Verdict::Granted { .. });
        match side {
            Side::Source => {
                agent.handed_over |= granted;
                self.granted |= granted;
                let asks = self.source.as_mut().is_some_and(|source| std::mem::take(&mut source.asks));
                if asks { self.tell_source(Input::Verdict(verdict)) } else { Ok(()) }
            }
            Side::Destination => {
                agent.claimed |= granted;
                agent.claiming &= verdict == Verdict::Undecided;
                let asks = self.destination.as_mut().is_some_and(|it| std::mem::take(&mut it.asks));
                if asks { self.tell_destination(Told::Verdict(verdict)) } else { Ok(()) }
            }
        }
    }

    pub(crate) fn time_passes(&mut self, side: Side, time: Duration) -> Result<(), Violation> {
        self.clocks[side.index()] += time;
        if side == Side::Source {
            self.guest_goes_on(time)?;
        }
        match side {
            Side::Source => self.tell_source(Input::Tick),
            Side::Destination if self.destination.as_ref().is_some_and(|it| !it.greeted) => {
                // The driver's own bound: the source has not connected in time.
                if time >= MINUTE {
                    self.destination_dies(usize::MAX);
                }
                Ok(())
            }
            Side::Destination => self.tell_destination(Told::Tick),
        }
    }

    /// The agent does what the manager wants, again if it is told again.
    pub(crate) fn carry_out(&mut self, call: Call) {
        if !self.net.carried_out.contains(&call) {
            self.net.carried_out.push(call);
        }
        let done = match call {
            Call::Prepare => {
                if self.destination.is_none() {
                    self.agents[1] = Agent { isolated: self.agents[1].isolated, ..Agent::default() };
                    let mut destination = Destination::new(self.guest.pages.len(), Tuning::default());
                    destination.memory.fill(0);
                    self.destination = Some(destination);
                }
                self.destination.as_ref().is_some_and(|it| !it.greeted)
            }
            Call::Outgoing => self.start_outgoing(),
            Call::DiscardIncoming => {
                let (agent, runs) = (&self.agents[1], self.runs(Side::Destination));
                if !runs && !agent.claiming && !agent.claimed {
                    self.destination_dies(usize::MAX);
                }
                true
            }
            Call::CancelOutgoing => {
                // A violation would show in the next step: a cancel only ever leads to a resume.
                let _ = self.tell_source(Input::Cancel);
                true
            }
            Call::Start => {
                self.start_again();
                true
            }
        };
        if matches!(call, Call::Prepare | Call::Outgoing) && self.net.reply.is_none() {
            self.net.reply = Some(done);
        }
    }

    fn start_outgoing(&mut self) -> bool {
        let Some(source) = &mut self.source else { return false };
        if self.agents[0].outgoing != Outgoing::Unknown {
            return true;
        }
        if self.destination.as_ref().is_none_or(|it| it.greeted) || self.net.silent {
            self.agents[0].outgoing = Outgoing::Ended(Outcome::Failed);
            source.outcome = Some(Outcome::Failed);
            return true;
        }
        let setup = source::Setup {
            migration: MIGRATION,
            source: Side::Source.host(),
            destination: Side::Destination.host(),
            budget: Self::budget(self.rules),
            ram_pages: self.guest.pages.len() as u64,
            disk_pages: 0,
            unix: Duration::ZERO,
            tuning: Tuning::default(),
        };
        source.engine = Some(source::Engine::new(setup));
        // Each engine counts from its own beginning.
        self.clocks = [Duration::ZERO; 2];
        self.agents[0].outgoing = Outgoing::Working;
        self.tell_source(Input::Start).is_ok()
    }

    /// An old order boots the VM at its first epoch, if the disk lets it.
    fn start_again(&mut self) {
        if self.source.is_none() && self.disk.take(Side::Source, FIRST).is_ok() {
            let mut source = Source::new(self.guest.pages.len());
            source.memory.pages.clone_from(&self.guest.pages);
            self.source = Some(source);
        }
    }

    /// Where the page has not followed yet, the guest waits for it instead.
    pub(crate) fn guest_writes(&mut self, page: usize) -> Result<(), Violation> {
        let runs = Side::BOTH.map(|side| self.runs(side));
        if let Some(destination) = self.destination.as_mut().filter(|it| runs[1] && it.rest.lacks(page)) {
            let again = destination.rest.is_awaited(page);
            let touched = destination.rest.touch(page);
            return if again { Ok(()) } else { self.tell_destination(touched) };
        }
        let content = self.guest.next();
        self.guest.pages[page] = content;
        match (&mut self.source, &mut self.destination) {
            (Some(source), _) if runs[0] => source.memory.write(page, content),
            (_, Some(destination)) if runs[1] => destination.memory[page] = content,
            _ => {}
        }
        Ok(())
    }

    fn guest_stores(&mut self) {
        let runs = Side::BOTH.map(|side| self.runs(side));
        let content = Some(self.guest.next());
        match (&mut self.source, &mut self.destination) {
            (Some(source), _) if runs[0] => source.storing = content,
            (_, Some(destination)) if runs[1] => destination.storing = content,
            _ => {}
        }
    }

    /// The disk has what a side wrote, and the guest is told.
    pub(crate) fn disk_done(&mut self, side: Side) -> Result<(), Violation> {
        let storing = match side {
            Side::Source => self.source.as_mut().and_then(|it| it.storing.take()),
            Side::Destination => self.destination.as_mut().and_then(|it| it.storing.take()),
        };
        let Some(content) = storing else { return Ok(()) };
        // What the last owner still writes overwrites what the next one was told is done.
        if content < self.disk.content {
            return Err(Violation::DiskWriteLost);
        }
        (self.disk.content, self.guest.acknowledged) = (content, content);
        Ok(())
    }
}
