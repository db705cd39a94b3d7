//! Which choices are open.

use std::time::Duration;

use godwit_manager::arbiter::MigrationState;
use godwit_migration::Tuning;
use godwit_migration::destination::Input as Told;
use godwit_migration::source::{Action, Input};
use godwit_migration::wire::Control;
use std::hash::{DefaultHasher, Hasher};

use super::agent::Outcome;
use super::choice::{Call, Choice, Fault};
use super::manager::Drive;
use super::{Life, Side, World, waits};
use crate::rules::Commit;

/// Copies of a question that may be about.
const STALE_MAX: usize = 2;

impl World {
    /// Everything that can happen next, but faults, time, the guest's own doings and heartbeats.
    pub fn choices(&self) -> Vec<Choice> {
        let mut open = Vec::with_capacity(16);
        let mut add = |choice, when: bool| {
            if when {
                open.push(choice);
            }
        };
        let net = &self.net;
        let source = self.source.as_ref();
        let destination = self.destination.as_ref();
        let busy =
            [source.is_some_and(|it| !it.todo.is_empty()), destination.is_some_and(|it| !it.todo.is_empty())];
        // As a rule a VMM takes in nothing before it has done what it wants to do.
        let takes = busy.map(|busy| !busy || self.rules.slow_calls);
        let listens =
            [source.is_some_and(|it| it.engine.is_some()) && takes[0], destination.is_some() && takes[1]];
        add(Choice::Act(Side::Source), busy[0]);
        add(Choice::Act(Side::Destination), busy[1]);
        let (to_source, to_destination) = (net.to_source.has_news(), net.to_destination.has_news());
        add(Choice::Deliver(Side::Source), listens[0] && !net.silent && to_source);
        add(Choice::Deliver(Side::Destination), listens[1] && !net.silent && to_destination);
        add(Choice::PageLeaves, listens[0] && !net.silent && !net.pages.rounds.is_empty());
        add(Choice::PageArrives, listens[1] && !net.silent && !net.pages.records.is_empty());
        for side in Side::BOTH {
            let (agent, question) = (&self.agents[side.index()], &net.questions[side.index()]);
            let broken = net.pages.cut && !net.pages.told[side.index()] && !net.silent;
            add(Choice::PagesBroken(side), broken && listens[side.index()]);
            add(Choice::Ask(side), self.asks(side) && agent.is_reachable() && !agent.waiting);
            add(Choice::Decide(side), question.live && !self.manager.down && !agent.isolated);
            add(Choice::DecideAgain(side), !question.stale.is_empty() && !self.manager.down);
            let heard = question.verdict.is_some() && agent.is_reachable() && takes[side.index()];
            add(Choice::Verdict(side), heard);
            add(Choice::RestartAgent(side), agent.down);
            add(Choice::Rejoin(side), agent.isolated);
        }
        add(Choice::Connect, net.connecting && !self.agents[0].down && takes[0] && takes[1]);
        add(Choice::Mend, net.silent && self.rules.post_copy);
        for call in &net.calls {
            let host = call.side();
            add(Choice::Call(*call), self.agents[host.index()].is_reachable() && takes[host.index()]);
        }
        let manager = &self.manager;
        add(Choice::RestartManager, manager.down);
        add(Choice::Begin, !manager.down && manager.drive == Drive::Begin);
        let waits = matches!(manager.drive, Drive::Preparing | Drive::Starting);
        add(Choice::Reply, !manager.down && waits && net.reply.is_some());
        let asks = manager.drive.asks();
        add(Choice::Poll { late: false }, !manager.down && asks);
        add(Choice::Poll { late: true }, !manager.down && asks && self.may_be_late());
        let hears = manager.drive.hears();
        add(Choice::Hear, !manager.down && hears);
        let gone =
            source.is_some_and(|it| matches!(it.outcome, Some(Outcome::Completed | Outcome::HandedOver)));
        // An intent needs the source's last word for as long as the manager could forget its own.
        let needed =
            self.rules.commit == Commit::Intent && manager.durable.migration.state == MigrationState::Running;
        add(Choice::Retire, gone && !needed && !self.agents[0].down);
        let behind = self.rules.commit != Commit::Durable && manager.rows != manager.durable;
        add(Choice::Sync, behind && !manager.down);
        open
    }

    /// Whether a VMM has a question open.
    fn asks(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.as_ref().is_some_and(|it| it.asks),
            Side::Destination => self.destination.as_ref().is_some_and(|it| it.asks),
        }
    }

    /// Whether the manager can lose patience now: with a host that it cannot reach, or with a destination.
    fn may_be_late(&self) -> bool {
        match self.manager.drive {
            Drive::AskSource => !self.agents[0].is_reachable(),
            _ => true,
        }
    }

    /// Heartbeats.
    pub(crate) fn reports(&self) -> impl Iterator<Item = Choice> {
        let up = !self.manager.down;
        Side::BOTH.into_iter().filter_map(move |side| {
            let agent = &self.agents[side.index()];
            match self.net.reports[side.index()] {
                None => agent.is_reachable().then_some(Choice::Report(side)),
                Some(_) => up.then_some(Choice::Reported(side)),
            }
        })
    }

    /// What the guest may do by itself.
    pub(crate) fn guest_choices(&self) -> Vec<Choice> {
        let runs = Side::BOTH.into_iter().any(|side| self.runs(side));
        let mut open = Vec::new();
        if runs {
            open.extend((0..self.guest.pages.len()).map(|page| Choice::GuestWrites { page: page as u8 }));
        }
        let storing = self.source.as_ref().is_some_and(|it| it.storing.is_some())
            || self.destination.as_ref().is_some_and(|it| it.storing.is_some());
        match storing {
            true => open.push(Choice::DiskDone),
            false if runs => open.push(Choice::GuestStores),
            false => {}
        }
        open
    }

    /// Time that passes for one side.
    pub(crate) fn times(&self) -> Vec<Choice> {
        let mut open = Vec::new();
        for side in Side::BOTH {
            if self.deadline(side).is_some() {
                open.extend([Choice::Deadline(side), Choice::Minute(side)]);
            }
        }
        if self.destination.as_ref().is_some_and(|it| !it.greeted) {
            open.push(Choice::Minute(Side::Destination));
        }
        open
    }

    /// How long until something happens on a side by itself: found by asking a copy of its engine.
    pub(crate) fn deadline(&self, side: Side) -> Option<Duration> {
        let now = self.clocks[side.index()];
        let tuning = Tuning::default();
        match side {
            Side::Source => {
                let source = self.source.as_ref().filter(|it| it.todo.is_empty())?;
                let engine = source.engine.as_ref()?;
                waits(&tuning).into_iter().find(|wait| {
                    let mut copy = engine.clone();
                    copy.handle(now + *wait, Input::Tick).iter().any(|action| !is_idle(action))
                })
            }
            Side::Destination => {
                let destination = self.destination.as_ref().filter(|it| it.todo.is_empty() && it.greeted)?;
                let print = |engine: &godwit_migration::destination::Engine| {
                    let mut hasher = DefaultHasher::new();
                    engine.fingerprint(&mut hasher);
                    hasher.finish()
                };
                let before = print(&destination.engine);
                waits(&tuning).into_iter().find(|wait| {
                    let mut copy = destination.engine.clone();
                    let acts = !copy.handle(now + *wait, Told::Tick).is_empty();
                    acts || print(&copy) != before
                })
            }
        }
    }

    /// Everything that can go wrong now.
    pub fn faults(&self) -> Vec<Fault> {
        let mut open = Vec::with_capacity(32);
        let net = &self.net;
        let connected = self.source.as_ref().is_some_and(|it| it.engine.is_some());
        let (ahead, back) = (net.to_destination.queue.len() as u8, net.to_source.queue.len() as u8);
        if connected && !net.silent && !(net.to_destination.closed && net.to_source.closed) {
            for to_destination in 0..=ahead {
                open.extend((0..=back).map(|to_source| Fault::Cut { to_destination, to_source }));
            }
            open.push(Fault::Silence);
        }
        if connected && !net.pages.cut {
            open.push(Fault::CutPages);
        }
        if net.connecting {
            open.push(Fault::ConnectionBreaks);
        }
        if self.source.is_some() {
            open.extend((0..=ahead).map(|keep| Fault::CrashVmm { side: Side::Source, keep }));
        }
        if self.destination.is_some() {
            open.extend((0..=back).map(|keep| Fault::CrashVmm { side: Side::Destination, keep }));
        }
        for side in Side::BOTH {
            let (agent, question) = (&self.agents[side.index()], &net.questions[side.index()]);
            if !agent.down {
                open.extend([Fault::CrashAgent(side), Fault::CrashHost(side)]);
            }
            if !agent.isolated {
                open.push(Fault::Isolate(side));
            }
            if agent.waiting && question.stale.len() < STALE_MAX {
                open.push(Fault::AskTimesOut(side));
            }
            if self.asks(side) {
                open.push(Fault::DropQuestion(side));
            }
            if question.ever && question.stale.len() < STALE_MAX {
                open.push(Fault::RepeatQuestion(side));
            }
            open.extend([Fault::CallFails(side), Fault::ClockJumps(side), Fault::ClockFallsBack(side)]);
        }
        if !self.manager.down {
            open.extend([Fault::CrashManager, Fault::PowerCut]);
            match self.manager.drive {
                Drive::Preparing | Drive::Starting => open.push(Fault::CallTimesOut),
                ref drive if drive.asks() => {
                    open.extend([Fault::LosePoll { late: false }, Fault::LosePoll { late: true }]);
                }
                _ => {}
            }
        }
        open.extend(net.calls.iter().map(|call| Fault::LoseCall(*call)));
        let again = net.carried_out.iter().filter(|call| !net.calls.contains(call));
        open.extend(again.map(|call| Fault::RepeatCall(*call)));
        // Before the commit an old order would merely boot a crashed VM for its owner. Between the commit and the new
        // owner's record in the lock file nothing but the agent could refuse it: see the decision on the commit.
        if self.disk.record.epoch == super::NEXT && !net.calls.contains(&Call::Start) {
            open.push(Fault::RepeatCall(Call::Start));
        }
        if !self.manager.rows.cancelling && self.manager.rows.ending.is_none() {
            open.push(Fault::Cancel);
        }
        open
    }

    /// Whether the source wants to stop the guest next.
    pub(crate) fn is_about_to_stop(&self) -> bool {
        self.source.as_ref().is_some_and(|it| it.todo.front() == Some(&Action::Pause))
    }

    /// Whether nothing but heartbeats, the guest and time can happen any more.
    pub fn is_settled(&self) -> bool {
        let source = self.source.as_ref().is_none_or(|it| it.engine.is_none() || it.outcome.is_some());
        let stands = self.source.as_ref().is_some_and(|it| it.life == Life::Paused);
        let destination = self.destination.as_ref().is_none_or(super::Destination::runs);
        source && destination && !stands && self.manager.rows.ending.is_some() && self.choices().is_empty()
    }
}

/// Whether an action of a tick is only talk.
fn is_idle(action: &Action) -> bool {
    matches!(action, Action::Progress(_) | Action::Send(Control::Heartbeat(_)))
}
