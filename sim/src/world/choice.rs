//! What can happen next.

use serde::Serialize;

use super::Side;

/// A call of the manager to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Call {
    /// Build the destination's machine.
    Prepare,
    /// Start the migration on the source.
    Outgoing,
    DiscardIncoming,
    CancelOutgoing,
    /// The call that once started the VM at its first epoch on the source, carried out again.
    Start,
}

impl Call {
    pub(crate) const fn side(self) -> Side {
        match self {
            Self::Prepare | Self::DiscardIncoming => Side::Destination,
            Self::Outgoing | Self::CancelOutgoing | Self::Start => Side::Source,
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Fault {
    /// All connections between the VMMs break; so many frames on their way still arrive.
    Cut {
        to_destination: u8,
        to_source: u8,
    },
    CutPages,
    /// New connections break before both sides know of them.
    ConnectionBreaks,
    /// Nothing passes between the VMMs any more, and nobody is told.
    Silence,
    /// A VMM dies; so many of its frames still arrive.
    CrashVmm {
        side: Side,
        keep: u8,
    },
    /// A VMM and its agent die.
    CrashHost(Side),
    CrashAgent(Side),
    /// The manager's process dies; what it wrote stays.
    CrashManager,
    /// The manager's machine dies; what was not made durable is gone.
    PowerCut,
    /// An agent gives up waiting for the arbiter, and will ask again; the old question may still be carried out.
    AskTimesOut(Side),
    /// A VMM's question is dropped unanswered on its own host, which counts as undecided.
    DropQuestion(Side),
    /// A question to the arbiter is carried out once more.
    RepeatQuestion(Side),
    /// The manager gives up waiting for a call, which may still be carried out.
    CallTimesOut,
    LoseCall(Call),
    RepeatCall(Call),
    /// The manager does not hear an agent's answer; `late`: and is out of patience.
    LosePoll {
        late: bool,
    },
    /// Nothing passes between an agent and the manager, for a while.
    Isolate(Side),
    /// The next call of the VM's machine fails.
    CallFails(Side),
    /// The user cancels.
    Cancel,
    /// A host's clock jumps a minute ahead.
    ClockJumps(Side),
    /// A host's clock jumps back by a second.
    ClockFallsBack(Side),
}

impl Fault {
    /// Whether it breaks nothing but connections between the VMMs.
    pub(crate) const fn is_of_the_network(&self) -> bool {
        matches!(self, Self::Cut { .. } | Self::CutPages | Self::ConnectionBreaks | Self::Silence)
    }
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Choice {
    /// A VMM does the next thing that its engine wants.
    Act(Side),
    /// The next frame, or the connection's end, reaches a side.
    Deliver(Side),
    PageLeaves,
    PageArrives,
    /// A side sees that the page connection is broken.
    PagesBroken(Side),
    /// An agent carries its VMM's question to the arbiter.
    Ask(Side),
    Decide(Side),
    /// The arbiter is asked by a copy of an old question.
    DecideAgain(Side),
    Verdict(Side),
    /// Time passes for both hosts.
    Tick {
        ms: u16,
    },
    /// Time passes until a side's next deadline fires.
    Deadline(Side),
    /// Time passes until all of a side's deadlines have passed.
    Minute(Side),
    GuestWrites {
        page: u8,
    },
    /// The guest writes to its disk; later it is told that it is done.
    GuestStores,
    DiskDone,
    /// The manager's task begins.
    Begin,
    Call(Call),
    Reply,
    /// The manager asks an agent; `late`: it has been waiting for long.
    Poll {
        late: bool,
    },
    /// The manager hears the answer and judges.
    Hear,
    Report(Side),
    Reported(Side),
    /// The source's agent ends a VMM that has handed over.
    Retire,
    RestartManager,
    RestartAgent(Side),
    Rejoin(Side),
    /// The source's agent answers its wish for new connections.
    Connect,
    /// What was silent is heard again.
    Mend,
    /// The manager's store becomes durable by itself.
    Sync,
    Fault(Fault),
}
