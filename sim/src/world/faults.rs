//! What each fault does, and how what it struck comes back.

use std::time::Duration;

use godwit_migration::destination::Input as Told;
use godwit_migration::source::Input;
use godwit_types::agent::LocalState;
use godwit_types::ownership::Verdict;

use super::agent::{Agent, Outgoing};
use super::choice::Fault;
use super::{Life, MINUTE, Side, Violation, World};

const SECOND: Duration = Duration::from_secs(1);

impl World {
    pub(crate) fn fault(&mut self, fault: Fault) -> Result<(), Violation> {
        match fault {
            Fault::Cut { to_destination, to_source } => self.net.cut(to_destination.into(), to_source.into()),
            Fault::CutPages => self.net.pages.cut(),
            Fault::ConnectionBreaks => self.connect(true)?,
            Fault::Silence => self.net.silent = true,
            Fault::CrashVmm { side, keep } => self.crash_vmm(side, keep.into()),
            Fault::CrashHost(side) => {
                self.crash_agent(side);
                self.crash_vmm(side, 0);
            }
            Fault::CrashAgent(side) => self.crash_agent(side),
            Fault::CrashManager => self.crash_manager(false),
            Fault::PowerCut => self.crash_manager(true),
            Fault::AskTimesOut(side) => self.ask_times_out(side),
            Fault::DropQuestion(Side::Source) => {
                self.ask_times_out(Side::Source);
                self.source.iter_mut().for_each(|it| it.asks = false);
                self.tell_source(Input::Verdict(Verdict::Undecided))?;
            }
            Fault::DropQuestion(Side::Destination) => {
                self.ask_times_out(Side::Destination);
                self.destination.iter_mut().for_each(|it| it.asks = false);
                self.tell_destination(Told::Verdict(Verdict::Undecided))?;
            }
            Fault::RepeatQuestion(side) => {
                let question = &mut self.net.questions[side.index()];
                question.stale.push(question.dead);
            }
            Fault::CallTimesOut => self.replied(None),
            Fault::LoseCall(call) => self.net.calls.retain(|other| *other != call),
            Fault::RepeatCall(call) => self.net.calls.push(call),
            Fault::LosePoll { late } => self.poll(late, true),
            Fault::Isolate(side) => self.agents[side.index()].isolated = true,
            Fault::CallFails(Side::Source) => self.source.iter_mut().for_each(|it| it.fail_next = true),
            Fault::CallFails(Side::Destination) => {
                self.destination.iter_mut().for_each(|it| it.fail_next = true);
            }
            Fault::Cancel => {
                self.manager.rows.cancelling = true;
                self.manager.durable = self.manager.rows.clone();
            }
            Fault::ClockJumps(side) => self.time_passes(side, MINUTE)?,
            Fault::ClockFallsBack(side) => {
                let clock = &mut self.clocks[side.index()];
                *clock = clock.saturating_sub(SECOND);
            }
        }
        Ok(())
    }

    fn crash_vmm(&mut self, side: Side, keep: usize) {
        match side {
            Side::Source => {
                self.killed[0] |= self.source.is_some();
                self.source_dies(keep);
            }
            Side::Destination => {
                self.killed[1] |= self.destination.is_some();
                self.destination_dies(keep);
            }
        }
    }

    fn crash_agent(&mut self, side: Side) {
        self.ask_times_out(side);
        let agent = &mut self.agents[side.index()];
        *agent = Agent { down: true, isolated: agent.isolated, settled: agent.settled, ..Agent::default() };
        self.net.reports[side.index()] = None;
    }

    /// What it finds: its VMMs live on and say how they are; of those that are gone only the notes on disk are left.
    pub(crate) fn restart_agent(&mut self, side: Side) {
        let agent = &mut self.agents[side.index()];
        agent.down = false;
        match side {
            Side::Source => match &self.source {
                Some(source) => {
                    agent.handed_over = source.life == Life::HandedOver;
                    agent.outgoing = match (source.outcome, &source.engine) {
                        (Some(outcome), _) => Outgoing::Ended(outcome),
                        (None, Some(_)) => Outgoing::Working,
                        (None, None) => Outgoing::Unknown,
                    };
                }
                None => agent.left = Some(LocalState::Crashed),
            },
            Side::Destination => match &self.destination {
                Some(destination) => agent.settled |= destination.runs(),
                None => agent.left = agent.settled.then_some(LocalState::Crashed),
            },
        }
    }

    fn crash_manager(&mut self, power_cut: bool) {
        self.manager.crash(power_cut);
        self.net.reply = None;
        for question in &mut self.net.questions {
            if std::mem::take(&mut question.live) {
                question.stale.push(question.dead);
            }
        }
        // Their connections broke: the agents ask again.
        for (agent, question) in self.agents.iter_mut().zip(&self.net.questions) {
            agent.waiting &= question.verdict.is_some();
        }
    }

    fn ask_times_out(&mut self, side: Side) {
        self.agents[side.index()].waiting = false;
        let question = &mut self.net.questions[side.index()];
        question.verdict = None;
        if std::mem::take(&mut question.live) {
            question.stale.push(question.dead);
        }
    }
}
