//! Steps in the protocol's words.

use godwit_manager::settle::SourceView;
use godwit_migration::destination::Action as ToDo;
use godwit_migration::source::Action;
use godwit_types::ownership::Verdict;

use super::choice::{Call, Choice, Fault};
use super::manager::Drive;
use super::network::{Frame, Reply};
use super::{Side, World};

impl World {
    /// What `choice` is about to be, in this state.
    pub fn describe(&self, choice: Choice) -> String {
        match choice {
            Choice::Act(side) => format!("{}: {}", name(side), self.next_action(side)),
            Choice::Deliver(side) => format!("{} receives {}", name(side), self.next_frame(side)),
            Choice::PageLeaves => "source sends a page".into(),
            Choice::PageArrives => "a page arrives at the destination".into(),
            Choice::PagesBroken(side) => format!("{} sees that the page connection is broken", name(side)),
            Choice::Ask(side) => format!("{} asks the arbiter: {}", agent(side), question(side)),
            Choice::Decide(side) => format!("arbiter decides on the {}", question(side)),
            Choice::DecideAgain(side) => format!("arbiter decides on an old copy of the {}", question(side)),
            Choice::Verdict(side) => format!("{} hears: {}", name(side), self.next_verdict(side)),
            Choice::Tick { ms } => format!("{ms} ms pass"),
            Choice::Deadline(side) => format!("time passes until a deadline of the {} fires", name(side)),
            Choice::Minute(side) => format!("a minute passes for the {}", name(side)),
            Choice::GuestWrites { page } => format!("the guest writes page {page}"),
            Choice::GuestStores => "the guest writes to its disk".into(),
            Choice::DiskDone => "the disk acknowledges the guest's write".into(),
            Choice::Begin => "manager asks the destination's agent to prepare".into(),
            Choice::Call(call) => format!("{} carries out: {}", agent(call.side()), words(call)),
            Choice::Reply => "manager hears the answer to its call".into(),
            Choice::Poll { late } => {
                let asked = if matches!(self.manager.drive, Drive::AskDestination(_) | Drive::AskHeir) {
                    "destination"
                } else {
                    "source"
                };
                format!("manager asks how the {asked} is{}", if late { ", after long waiting" } else { "" })
            }
            Choice::Hear => self.judgement(),
            Choice::Report(side) => format!("{} sends a heartbeat", agent(side)),
            Choice::Reported(side) => format!("manager takes in the heartbeat of the {}'s host", name(side)),
            Choice::Retire => "source's agent ends the VMM that has handed over".into(),
            Choice::RestartManager => "manager restarts".into(),
            Choice::RestartAgent(side) => format!("{} restarts", agent(side)),
            Choice::Rejoin(side) => format!("{} and the manager reach each other again", agent(side)),
            Choice::Connect => "source's agent answers the wish for new connections".into(),
            Choice::Mend => "what was silent is heard again".into(),
            Choice::Sync => "the manager's store becomes durable".into(),
            Choice::Fault(fault) => format!("FAULT: {}", fault_words(fault)),
        }
    }

    fn next_action(&self, side: Side) -> &'static str {
        let source = self.source.as_ref().and_then(|it| it.todo.front());
        let destination = self.destination.as_ref().and_then(|it| it.todo.front());
        match (side, source, destination) {
            (Side::Source, Some(Action::Pause), _) => "stops the vCPUs",
            (Side::Source, Some(Action::LetGo), _) => "lets go of the disk locks",
            (Side::Source, Some(Action::Reclaim), _) => "reclaims the disks and records that the VM runs on",
            (Side::Source, Some(Action::Resume), _) => "resumes the VM",
            (Side::Source, Some(Action::AskCommit), _) => "puts the commit to its agent",
            (Side::Source, Some(Action::HandOver), _) => "drops the disk locks and says COMMITTED",
            (Side::Destination, _, Some(ToDo::Load)) => "loads the device state",
            (Side::Destination, _, Some(ToDo::AskClaim { .. })) => "puts the claim to its agent",
            (Side::Destination, _, Some(ToDo::TakeOver)) => "tries the disk locks",
            (Side::Destination, _, Some(ToDo::Run { .. })) => "takes the disk locks and resumes the VM",
            _ => "goes on",
        }
    }

    fn next_frame(&self, side: Side) -> &'static str {
        let end = "the end of the control connection";
        match side {
            Side::Source => self.net.to_source.queue.front().map_or(end, |reply| match reply {
                Reply::Control(message) => message.name(),
                Reply::Missing(_) => "MISSING",
            }),
            Side::Destination => match self.net.to_destination.queue.front() {
                Some(Frame::Hello(_)) => "HELLO",
                Some(Frame::State { .. }) => "STATE",
                Some(Frame::Pages(_)) => "PAGES",
                Some(Frame::Control(message)) => message.name(),
                None => end,
            },
        }
    }

    fn next_verdict(&self, side: Side) -> &'static str {
        match self.net.questions[side.index()].verdict {
            Some(Verdict::Granted { .. }) => "granted",
            Some(Verdict::Undecided) => "undecided",
            Some(Verdict::Refused { .. }) => "refused",
            None => "nothing",
        }
    }

    fn judgement(&self) -> String {
        let heard = match &self.manager.drive {
            Drive::HearSource(SourceView::Working(_)) => "that the source works".into(),
            Drive::HearSource(SourceView::Unknown) => "that the source knows of no migration".into(),
            Drive::HearSource(SourceView::Silent { .. }) => "nothing from the source".into(),
            Drive::HearSource(SourceView::Ended(_)) => "how it ended at the source".into(),
            Drive::HearDestination(_, view, _) | Drive::HearHeir(view, _) => {
                format!("of the destination: {view:?}")
            }
            _ => "nothing".into(),
        };
        format!("manager hears {heard}, and judges")
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Destination => "destination",
    }
}

fn agent(side: Side) -> String {
    format!("{}'s agent", name(side))
}

fn question(side: Side) -> &'static str {
    match side {
        Side::Source => "commit",
        Side::Destination => "claim",
    }
}

fn words(call: Call) -> &'static str {
    match call {
        Call::Prepare => "build the destination's machine",
        Call::Outgoing => "start the migration",
        Call::DiscardIncoming => "discard the copy",
        Call::CancelOutgoing => "cancel the migration",
        Call::Start => "start the VM at its first epoch, an old order",
    }
}

fn fault_words(fault: Fault) -> String {
    match fault {
        Fault::Cut { to_destination, to_source } => format!(
            "the connections break; {to_destination} frames to the destination and {to_source} to the source still arrive"
        ),
        Fault::ConnectionBreaks => "new connections break before both sides know of them".into(),
        Fault::CutPages => "the page connection breaks".into(),
        Fault::Silence => "nothing passes between the VMMs any more".into(),
        Fault::CrashVmm { side, keep } => {
            format!("the {} dies; {keep} of its frames still arrive", name(side))
        }
        Fault::CrashHost(side) => format!("the {}'s host dies", name(side)),
        Fault::CrashAgent(side) => format!("the {} dies", agent(side)),
        Fault::CrashManager => "the manager's process dies".into(),
        Fault::PowerCut => "the manager's machine loses power; what was not durable is gone".into(),
        Fault::AskTimesOut(side) => format!("the {} has waited too long for the arbiter", agent(side)),
        Fault::DropQuestion(side) => format!("the {} is dropped unanswered", question(side)),
        Fault::RepeatQuestion(side) => format!("the {} is sent twice", question(side)),
        Fault::CallTimesOut => "the manager has waited too long for its call".into(),
        Fault::LoseCall(call) => format!("a call is lost: {}", words(call)),
        Fault::RepeatCall(call) => format!("a call is sent twice: {}", words(call)),
        Fault::LosePoll { late: false } => "the manager does not hear an agent's answer".into(),
        Fault::LosePoll { late: true } => "the manager hears nothing of an agent, and loses patience".into(),
        Fault::Isolate(side) => format!("the {} and the manager do not reach each other", agent(side)),
        Fault::CallFails(side) => format!("the next call of the {}'s machine fails", name(side)),
        Fault::Cancel => "the user cancels".into(),
        Fault::ClockJumps(side) => format!("the clock of the {} jumps a minute ahead", name(side)),
        Fault::ClockFallsBack(side) => format!("the clock of the {} falls back by a second", name(side)),
    }
}
