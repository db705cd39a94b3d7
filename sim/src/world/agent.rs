//! An agent: what it remembers of its VM's process, all of which it forgets when it is restarted.

use godwit_types::agent::LocalState;

/// How a migration away ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Died,
    HandedOver,
}

/// What the source's agent knows of the migration away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Outgoing {
    #[default]
    Unknown,
    Working,
    Ended(Outcome),
}

/// One agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Agent {
    pub(crate) down: bool,
    /// Nothing passes between it and the manager.
    pub(crate) isolated: bool,
    /// It waits for the arbiter's answer.
    pub(crate) waiting: bool,
    pub(crate) handed_over: bool,
    pub(crate) outgoing: Outgoing,
    pub(crate) claiming: bool,
    /// Its VMM never takes over.
    pub(crate) blind: bool,
    pub(crate) claimed: bool,
    /// Its notes on disk say that the VM has arrived here.
    pub(crate) settled: bool,
    /// What is left of a process that has ended.
    pub(crate) left: Option<LocalState>,
}

impl Agent {
    pub(crate) fn is_reachable(&self) -> bool {
        !self.down && !self.isolated
    }

    /// Takes note that the source's process has ended.
    pub(crate) fn source_ended(&mut self) {
        let (left, outcome) = if self.handed_over {
            (LocalState::HandedOver, Outcome::HandedOver)
        } else {
            (LocalState::Crashed, Outcome::Died)
        };
        self.left = Some(left);
        if self.outgoing == Outgoing::Working {
            self.outgoing = Outgoing::Ended(outcome);
        }
    }

    /// Takes note that the destination's process has ended; one that never had the VM leaves nothing.
    pub(crate) fn destination_ended(&mut self, ran: bool) {
        self.left = (ran || self.claimed).then_some(LocalState::Crashed);
        (self.claiming, self.claimed, self.blind) = (false, false, false);
    }
}
