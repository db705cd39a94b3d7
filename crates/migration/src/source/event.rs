//! What the source's state machine is told, and what it wants done.

use std::time::Duration;

use godwit_types::migration::{BytesByKind, MigrationOutcome, MigrationProgress};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, PAGE_SIZE_BYTES};

use crate::failure::Link;
use crate::machine::{MachineError, Reclaimed, VcpuActivity};
use crate::proof::MemoryDigest;
use crate::wire::Control;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The control connection is open and the versions agree.
    Start,
    /// A message of the destination.
    Control(Control),
    /// The answer to [`Action::OpenStreams`].
    StreamsOpened(Result<(), ApiError>),
    /// The answer to [`Action::StartLog`].
    LogStarted(Result<(), MachineError>),
    /// The answer to [`Action::Harvest`].
    Harvested(Result<Harvest, MachineError>),
    /// One stream has sent its part of a round.
    RoundSent { stream: u32, round: u32 },
    /// What has been sent so far.
    Sent(Sent),
    /// The answer to [`Action::Pause`], with how long draining took.
    Paused(Result<Duration, MachineError>),
    /// The answer to [`Action::Save`].
    Saved(Result<(), MachineError>),
    /// The answer to [`Action::Reclaim`].
    Reclaimed(Result<Reclaimed, MachineError>),
    /// The answer to [`Action::Resume`].
    Resumed(Result<(), MachineError>),
    /// The answer to [`Action::AskCommit`].
    Verdict(Verdict),
    /// The answer to [`Action::HandOver`].
    HandedOver,
    /// The answer to [`Action::Reconnect`]: the handshakes are done.
    Reconnected(Result<(), ApiError>),
    /// On new connections: the destination has named all pages that it does not have.
    Missing,
    /// The answer to [`Action::Digest`].
    Digested(Result<MemoryDigest, MachineError>),
    /// A connection broke, or carried what it may not.
    Lost { link: Link, error: ApiError },
    /// Somebody wants the VM to stay.
    Cancel,
    /// Time has passed; comes many times a second.
    Tick,
}

/// A reading of the dirty log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Harvest {
    /// Pages now waiting to be sent.
    pub pages: u64,
    /// How long the reading took.
    pub took: Duration,
    /// What each vCPU has done so far; empty if none can be slowed.
    pub vcpus: Vec<VcpuActivity>,
}

/// What has gone onto the wire so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// On the page streams after the handshake, in bytes.
    pub page_stream_bytes: u64,
    pub raw_pages: u64,
    /// Pages whose contents were packed, and how many bytes they then were.
    pub packed_pages: u64,
    pub packed_bytes: u64,
    /// Pages sent as what had changed in them, packed or not.
    pub delta_pages: u64,
    pub zero_pages: u64,
    /// Pages that the destination had kept.
    pub reused_pages: u64,
    /// Pages that are to follow and have not been sent yet.
    pub rest_pages: u64,
    /// The STATE frame, in bytes.
    pub state_bytes: u64,
    /// Everything else, in both directions, in bytes.
    pub other_bytes: u64,
}

impl Sent {
    /// The same by kind, as the report shows it.
    pub fn by_kind(&self) -> BytesByKind {
        let raw = self.raw_pages * PAGE_SIZE_BYTES;
        let contents = raw + self.packed_bytes;
        let overhead = self.page_stream_bytes.saturating_sub(contents) + self.other_bytes;
        BytesByKind {
            sent: contents + self.state_bytes + overhead,
            raw,
            packed: self.packed_bytes,
            state: self.state_bytes,
            overhead,
            raw_pages: self.raw_pages,
            packed_pages: self.packed_pages,
            delta_pages: self.delta_pages,
            zero_pages: self.zero_pages,
            reused_pages: self.reused_pages,
        }
    }
}

/// Something to do. Actions are carried out in order; those that have an answer lead to one input.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send HELLO on the control connection.
    Greet,
    /// Send a message on the control connection.
    Send(Control),
    /// Open all page streams.
    OpenStreams,
    /// Start the dirty log; all RAM waits to be sent.
    StartLog,
    /// Read the dirty log; what it names waits to be sent.
    Harvest,
    /// Give all waiting pages to the page streams, as this round.
    SendRound {
        round: u32,
    },
    /// Hold each vCPU for its part of the time, in permille; with an empty list, none any more.
    Slow {
        shares: Vec<u16>,
    },
    Pause,
    /// Save devices and vCPUs; the destination's real-time clock is so many nanoseconds ahead.
    Save {
        ahead_ns: i64,
    },
    /// Send the saved state, which belongs to memory as of this round; with `rest`, name before it all pages that wait,
    /// which are to follow.
    SendState {
        last_round: u32,
        rest: bool,
    },
    /// Send these pages, for which the guest waits, before all others.
    Serve {
        pages: Vec<u64>,
    },
    /// Send all pages that are to follow, those around the last one asked for first.
    PushRest,
    /// Close all connections.
    Disconnect,
    /// Connect again, this many times now.
    Reconnect {
        session: u32,
    },
    /// Make sure that the VM is still this side's, and record that it runs on here.
    Reclaim,
    Resume,
    StopLog,
    AskCommit,
    /// Drop the disk locks; the VM stays paused and may be reclaimed.
    LetGo,
    HandOver,
    /// Read all memory once more, which nobody writes any more, and make its digest.
    Digest,
    Progress(MigrationProgress),
    /// The last action.
    End(MigrationOutcome),
}
