//! What is on its way. One connection keeps its order; nothing else does.

use std::collections::VecDeque;

use godwit_migration::wire::{Control, Hello};
use godwit_types::agent::LocalState;
use godwit_types::ownership::Verdict;

use super::Side;
use super::choice::Call;

/// A frame on the control connection, towards the destination.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Hello(Box<Hello>),
    Control(Control),
    /// With the pages that are to follow, if any are.
    State {
        last_round: u32,
        rest: Vec<usize>,
    },
    /// Pages that somebody waits for, each with its content.
    Pages(Vec<(usize, u32)>),
}

/// A frame on the control connection, towards the source.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Control(Control),
    /// All pages that are not at the destination.
    Missing(Vec<usize>),
}

/// One direction of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Pipe<T> {
    pub(crate) queue: VecDeque<T>,
    pub(crate) closed: bool,
    /// The reader has seen the end.
    pub(crate) told: bool,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), closed: false, told: false }
    }
}

impl<T> Pipe<T> {
    pub(crate) fn send(&mut self, frame: T) {
        if !self.closed {
            self.queue.push_back(frame);
        }
    }

    /// Breaks it; so many frames on their way still arrive.
    pub(crate) fn cut(&mut self, keep: usize) {
        self.queue.truncate(keep);
        self.closed = true;
    }

    pub(crate) fn has_news(&self) -> bool {
        !self.queue.is_empty() || (self.closed && !self.told)
    }
}

impl Pipe<Frame> {
    /// A second heartbeat behind a first says nothing more, however long nobody listens.
    pub(crate) fn ends_with_heartbeat(&self) -> bool {
        matches!(self.queue.back(), Some(Frame::Control(Control::Heartbeat(_))))
    }
}

/// A round and one page with its content; no page is the round's end.
pub(crate) type Record = (u32, Option<(usize, u32)>);

/// The page connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pages {
    /// Rounds given to the stream, with the pages that are not read yet.
    pub(crate) rounds: VecDeque<(u32, Vec<usize>)>,
    pub(crate) records: VecDeque<Record>,
    pub(crate) cut: bool,
    pub(crate) told: [bool; 2],
}

impl Pages {
    pub(crate) fn cut(&mut self) {
        self.cut = true;
        self.records.truncate(1);
        self.rounds.clear();
    }
}

/// A side's question to the arbiter, on its way from its agent and back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Question {
    /// The agent waits for the answer to this one.
    pub(crate) live: bool,
    /// Whether it says that the source is dead.
    pub(crate) dead: bool,
    /// Copies that still may be carried out, and whose answer nobody waits for; each as `dead`.
    pub(crate) stale: Vec<bool>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) ever: bool,
}

/// Everything on its way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    pub(crate) to_destination: Pipe<Frame>,
    pub(crate) to_source: Pipe<Reply>,
    pub(crate) pages: Pages,
    /// Nothing passes between the VMMs any more, and nobody is told.
    pub(crate) silent: bool,
    /// The source waits for new connections.
    pub(crate) connecting: bool,
    pub(crate) questions: [Question; 2],
    /// The manager's calls to agents, each with how often it was sent.
    pub(crate) calls: Vec<Call>,
    pub(crate) carried_out: Vec<Call>,
    /// The answer to the call that the manager waits for: whether it was done.
    pub(crate) reply: Option<bool>,
    /// Heartbeats: what each agent says of the VM, at the epoch that its process has.
    pub(crate) reports: [Option<Option<LocalState>>; 2],
}

impl Network {
    /// New connections take the place of the old ones.
    pub(crate) fn renew(&mut self) {
        (self.to_destination, self.to_source) = (Pipe::default(), Pipe::default());
        self.pages = Pages::default();
    }

    /// A side closes all connections: it hears nothing more, the other what was sent before.
    pub(crate) fn hang_up(&mut self, side: Side) {
        match side {
            Side::Source => self.cut(usize::MAX, 0),
            Side::Destination => self.cut(0, usize::MAX),
        }
        match side {
            Side::Source => self.to_source.told = true,
            Side::Destination => self.to_destination.told = true,
        }
        self.pages.told[side.index()] = true;
    }

    pub(crate) fn cut(&mut self, to_destination: usize, to_source: usize) {
        self.to_destination.cut(to_destination);
        self.to_source.cut(to_source);
        self.pages.cut();
    }
}
