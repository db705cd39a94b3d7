//! Everything that takes part in one migration, as one value.
//!
//! [`World::choices`] names what can happen next, [`World::apply`] makes one of them happen and checks what must hold
//! afterwards. Nothing else changes a world, so the same choices lead to the same world.

mod agent;
mod check;
mod choice;
mod destination;
mod enabled;
mod faults;
mod fingerprint;
mod guest;
mod intent;
mod manager;
mod network;
mod rest;
mod settled;
mod source;
mod steps;
mod vcpus;
mod views;
mod words;

use std::time::Duration;

use godwit_migration::wire::{Hello, Role};
use godwit_migration::{MachineError, Manifest, PageRange, Tuning};
use godwit_types::migration::{Budget, OnDeadline};
use godwit_types::{ApiError, Epoch, ErrorCode, Gfn, HostName, MigrationId, VmId};
use serde::Serialize;

pub use check::Violation;
pub use choice::{Call, Choice, Fault};

use agent::Agent;
use destination::Destination;
use guest::{Disk, Guest};
use manager::Manager;
use network::Network;
use source::Source;

use crate::rules::{Protocol, Rules};

const MIGRATION: MigrationId = MigrationId(uuid::Uuid::from_u128(1));
const VM: VmId = VmId(uuid::Uuid::from_u128(2));
/// The source runs the VM at this epoch, and the destination will at the next.
const FIRST: Epoch = Epoch(1);
const NEXT: Epoch = Epoch(2);
/// Longer than any wait of an engine.
const MINUTE: Duration = Duration::from_secs(60);

/// One of the two hosts, and of the two VMMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    const fn index(self) -> usize {
        self as usize
    }

    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    fn host(self) -> HostName {
        let name = if self == Self::Source { "a" } else { "b" };
        name.parse().expect("one letter is a host's name")
    }
}

/// What a VMM's machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Life {
    Incoming,
    Running,
    Paused,
    HandedOver,
}

/// The hosts, the manager, what is on its way, and what the guest knows.
#[derive(Debug, Clone)]
pub struct World {
    rules: Rules,
    clocks: [Duration; 2],
    guest: Guest,
    disk: Disk,
    source: Option<Source>,
    destination: Option<Destination>,
    agents: [Agent; 2],
    manager: Manager,
    net: Network,
    /// Whether a fault has killed a side's VMM.
    killed: [bool; 2],
    /// The VM has run at the destination.
    ran: bool,
    /// The source has been told that its commit is granted.
    granted: bool,
    /// The source died when the guest stood still, and its destination had everything.
    heir: bool,
    /// The manager lost patience with such a destination.
    forsaken: bool,
}

impl World {
    /// A VM with so many pages that runs on the source, and a manager that is about to move it.
    pub fn new(rules: Rules, pages: usize) -> Self {
        let compare = rules.protocol != Protocol::LockWithoutEpoch;
        Self {
            rules,
            clocks: [Duration::ZERO; 2],
            guest: Guest::new(pages),
            disk: Disk::new(VM, FIRST, rules.shared_locks, compare),
            source: Some(Source::new(pages)),
            destination: None,
            agents: [Agent::default(), Agent::default()],
            manager: Manager::new(),
            net: Network::default(),
            killed: [false; 2],
            ran: false,
            granted: false,
            heir: false,
            forsaken: false,
        }
    }

    /// How the migration's task ended, in one word.
    pub fn ending(&self) -> &'static str {
        match self.manager.rows.ending {
            Some(manager::Ending::Moved) => "moved",
            Some(manager::Ending::Stayed) => "stayed",
            Some(manager::Ending::Lost) => "lost",
            Some(manager::Ending::Uncertain) => "uncertain",
            None => "open",
        }
    }

    /// Whether the VM runs on a side.
    pub fn runs(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.as_ref().is_some_and(Source::runs),
            Side::Destination => self.destination.as_ref().is_some_and(Destination::runs),
        }
    }

    /// Whether the VM runs at the destination, and part of its memory is not there.
    pub fn lacks_memory(&self) -> bool {
        self.destination.as_ref().is_some_and(|it| it.runs() && !it.is_whole())
    }

    fn budget(rules: Rules) -> Budget {
        let slows = rules.slowdown_percent_max > 0;
        Budget {
            // No guest comes under 0: it is slowed, and memory follows, as soon as that helps.
            blackout_ms_max: if rules.post_copy || slows { 0 } else { 1000 },
            post_copy: rules.post_copy,
            // A guest that is slowed is sent round after round until then.
            deadline_ms: if slows { 1500 } else { 5000 },
            on_deadline: OnDeadline::Switch,
            slowdown_percent_max: rules.slowdown_percent_max,
            ..Budget::default()
        }
    }
}

fn hello(pages: usize, post_copy: bool) -> Hello {
    let ranges = vec![PageRange { start: Gfn(0), pages: pages as u64 }];
    let manifest =
        Manifest { vm: VM, epoch: FIRST, spec_json: Vec::new(), ranges, disks: Vec::new(), cpu: Vec::new() };
    let role = Role::Control { manifest, page_streams: 1, post_copy, reuse: false, verify: false };
    Hello { migration: MIGRATION, epoch: NEXT, source: "a".into(), session: 0, role }
}

/// Every duration that the engines wait for, shortest first.
fn waits(tuning: &Tuning) -> [Duration; 8] {
    [
        Duration::from_millis(10),
        tuning.ask_again,
        tuning.last_words,
        tuning.peer_silent_stopped,
        tuning.let_go,
        tuning.peer_silent,
        tuning.resumed,
        tuning.resumed + tuning.switchover,
    ]
}

fn injected() -> MachineError {
    MachineError { step: "calling".into(), reason: "injected".into() }
}

fn broken() -> ApiError {
    ApiError::new(ErrorCode::Unreachable, "cut")
}
