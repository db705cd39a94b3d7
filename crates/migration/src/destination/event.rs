//! What the destination's state machine is told, and what it wants done.

use std::time::Duration;

use godwit_types::ownership::{Verdict, Witness};
use godwit_types::{ApiError, Epoch, VmId};

use crate::failure::Link;
use crate::machine::{Loaded, MachineError, Manifest};
use crate::proof::MemoryDigest;
use crate::wire::{Ack, Control, Hello, Whole};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The source's first frame on the control connection.
    Hello(Hello),
    /// The answer to [`Action::Admit`].
    Admitted(Result<(), Vec<String>>),
    /// One more page stream is open.
    StreamOpened,
    /// How far a page stream has been written into memory.
    Received(Ack),
    /// All device state has arrived, undamaged; it belongs to memory as of this round.
    /// With `rest`, the pages that the source has named before are to follow.
    State { last_round: u32, rest: bool },
    /// A message of the source.
    Control(Control),
    /// The answer to [`Action::Load`].
    Loaded(Result<Loaded, MachineError>),
    /// The answer to [`Action::AskClaim`].
    Verdict(Verdict),
    /// The answer to [`Action::TakeOver`].
    TookOver(Witness),
    /// The answer to [`Action::Run`].
    Ran(Result<Ran, MachineError>),
    /// Somebody waits for these pages, which are still at the source.
    Touched(Vec<u64>),
    /// The last of the pages that were to follow is here; comes once.
    Whole(Whole),
    /// The source has connected again, while [`Engine::awaits_source`](super::Engine::awaits_source).
    Rejoined,
    /// A connection broke, or carried what it may not.
    Lost { link: Link, error: ApiError },
    /// Time has passed; comes many times a second.
    Tick,
}

/// The vCPUs run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    /// How long taking the disk locks took.
    pub locks: Duration,
    /// How long ago the vCPUs first ran.
    pub ago: Duration,
    /// How long they had run when the guest's first packet left, if one has.
    pub first_packet: Option<Duration>,
    /// The digest of all memory, if it is to be compared.
    pub memory: Option<MemoryDigest>,
}

/// Something to do. Actions are carried out in order; those that have an answer lead to one input.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Compare the manifest with the machine built here; with `post_copy`, find out whether memory can follow.
    Admit {
        manifest: Box<Manifest>,
        post_copy: bool,
    },
    /// Take in this many page connections.
    AcceptStreams {
        count: u32,
    },
    /// Send a message on the control connection.
    Send(Control),
    /// Load the device state; if pages are to follow, make whoever touches one wait, first.
    Load,
    /// Name all pages that are not here, then those that somebody waits for.
    SendMissing,
    /// Close all connections.
    Disconnect,
    AskClaim {
        vm: VmId,
        witness: Witness,
    },
    /// Try once to take the disk locks of a source that may be dead.
    TakeOver,
    /// Take the disk locks at this epoch and start the vCPUs.
    Run {
        epoch: Epoch,
    },
    /// The last action: the VM runs here, or never will.
    End(Result<Epoch, ApiError>),
}
