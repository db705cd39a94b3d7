//! The manager: rows, of which a part is durable; the real arbiter; and the migration's task around the real `settle`.
//!
//! ```text
//!  Begin -> Preparing -> Starting -> AskSource <-> HearSource -> AskDestination -> HearDestination
//!     \__________\___________\__________\_____ abort ____/ '----> AskHeir -> HearHeir    |
//!                                            `--> Done <---------- abort ----'-----------'
//! ```
//!
//! A manager that is restarted begins anew at `AskSource`, or aborts what had not begun.

use godwit_manager::Power;
use godwit_manager::arbiter::{self, Decision, Migration, MigrationState};
use godwit_manager::settle::{self, DestinationView, SourceView, Step, Waited};
use godwit_types::TaskId;
use godwit_types::ownership::{ClaimRequest, CommitRequest, Ownership, Verdict, Witness};

use super::choice::Call;
use super::{FIRST, MIGRATION, NEXT, Side, VM, World, broken};
use crate::rules::Commit;

/// How the migration's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    Moved,
    /// The VM stays at its source.
    Stayed,
    Lost,
    Uncertain,
}

/// What the store holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rows {
    pub(crate) owned: Ownership,
    pub(crate) migration: Migration,
    pub(crate) power: Power,
    pub(crate) missing: u32,
    pub(crate) cancelling: bool,
    /// The destination's copy may be discarded: a commit is not granted any more ([`Commit::Intent`] only).
    pub(crate) closing: bool,
    pub(crate) ending: Option<Ending>,
}

/// Where the task is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Drive {
    Begin,
    Preparing,
    Starting,
    AskSource,
    HearSource(SourceView),
    AskDestination(SourceView),
    HearDestination(SourceView, DestinationView, bool),
    AskHeir,
    HearHeir(DestinationView, bool),
    Done,
}

impl Drive {
    /// Whether an agent is to be asked next.
    pub(crate) const fn asks(&self) -> bool {
        matches!(self, Self::AskSource | Self::AskDestination(_) | Self::AskHeir)
    }

    /// Whether an agent's answer is there.
    pub(crate) const fn hears(&self) -> bool {
        matches!(self, Self::HearSource(_) | Self::HearDestination(..) | Self::HearHeir(..))
    }
}

/// The manager's process and store.
#[derive(Debug, Clone)]
pub(crate) struct Manager {
    pub(crate) down: bool,
    pub(crate) rows: Rows,
    /// What a power cut leaves.
    pub(crate) durable: Rows,
    pub(crate) drive: Drive,
    /// Restarted, it does not know whether it granted a commit ([`Commit::Intent`] only).
    pub(crate) in_doubt: bool,
}

impl Manager {
    pub(crate) fn new() -> Self {
        let migration = Migration {
            id: MIGRATION,
            task: TaskId(uuid::Uuid::nil()),
            vm: VM,
            source: Side::Source.host(),
            destination: Side::Destination.host(),
            epoch: FIRST,
            state: MigrationState::Preparing,
            taken_over: false,
        };
        let owned = Ownership { vm: VM, owner: Side::Source.host(), epoch: FIRST, claimed: true };
        let rows = Rows {
            owned,
            migration,
            power: Power::Running,
            missing: 0,
            cancelling: false,
            closing: false,
            ending: None,
        };
        Self { down: false, durable: rows.clone(), rows, drive: Drive::Begin, in_doubt: false }
    }

    pub(crate) fn is_committed(&self) -> bool {
        matches!(self.rows.migration.state, MigrationState::Committed | MigrationState::Claimed)
    }

    /// A change that is on the disk before anybody is told; it takes all earlier ones with it.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut Rows)) {
        change(&mut self.rows);
        self.durable = self.rows.clone();
    }

    pub(crate) fn crash(&mut self, power_cut: bool) {
        self.down = true;
        if power_cut {
            self.rows = self.durable.clone();
        }
        self.drive = Drive::Done;
    }

    pub(crate) fn restart(&mut self, commit: Commit) -> bool {
        self.down = false;
        if self.rows.ending.is_some() {
            return false;
        }
        self.drive = Drive::AskSource;
        self.in_doubt = commit == Commit::Intent && self.rows.migration.state == MigrationState::Running;
        // "The manager was restarted before the migration began."
        self.rows.migration.state == MigrationState::Preparing
    }
}

impl World {
    /// The arbiter decides, and writes its decision down before it tells it.
    pub(crate) fn decide(&mut self, side: Side, dead: bool) -> Verdict {
        let commit = self.rules.commit;
        let manager = &mut self.manager;
        let (owned, m) = (&manager.rows.owned, &manager.rows.migration);
        if side == Side::Source {
            if manager.rows.closing {
                return Verdict::Undecided;
            }
            let (source, destination) = (m.source.clone(), m.destination.clone());
            let asked = CommitRequest { vm: VM, migration: MIGRATION, source, epoch: FIRST, destination };
            let decision = arbiter::commit(Some(owned), Some(m), &asked);
            // One that is in doubt writes its decision durably: it has no earlier word to stand by.
            let durable = commit == Commit::Durable || manager.in_doubt;
            manager.in_doubt &= !matches!(decision.verdict, Verdict::Granted { .. });
            return self.record(decision, durable);
        }
        if manager.in_doubt || dead && manager.rows.closing {
            return Verdict::Undecided;
        }
        let (host, witness) = (m.destination.clone(), if dead { Witness::SourceDead } else { Witness::None });
        let asked = ClaimRequest { vm: VM, migration: MIGRATION, host, epoch: NEXT, witness };
        let decision = arbiter::claim(Some(owned), Some(m), &asked);
        self.record(decision, dead)
    }

    fn record(&mut self, decision: Decision, durable: bool) -> Verdict {
        if let Some(change) = decision.change {
            let apply = |rows: &mut Rows| {
                rows.owned = change.ownership;
                rows.missing = 0;
                (rows.migration.state, rows.migration.taken_over) = (change.state, change.taken_over);
            };
            if durable { self.manager.write(apply) } else { apply(&mut self.manager.rows) }
        }
        decision.verdict
    }

    pub(crate) fn begin(&mut self) {
        self.net.calls.push(Call::Prepare);
        self.manager.drive = Drive::Preparing;
    }

    /// The call that the manager waits for was done, was refused, or (`None`) has not been answered.
    pub(crate) fn replied(&mut self, done: Option<bool>) {
        match (&self.manager.drive, done) {
            (Drive::Preparing, Some(true))
                if self.manager.rows.migration.state == MigrationState::Preparing =>
            {
                self.manager.write(|rows| rows.migration.state = MigrationState::Running);
                self.net.calls.push(Call::Outgoing);
                self.manager.drive = Drive::Starting;
            }
            // Whether it began is seen by following it.
            (Drive::Starting, Some(true) | None) => self.manager.drive = Drive::AskSource,
            (Drive::Preparing | Drive::Starting, _) => self.abort(),
            _ => {}
        }
    }

    /// Aborts unless it is committed.
    pub(crate) fn abort(&mut self) {
        if !arbiter::abort(self.manager.rows.migration.state) {
            self.manager.drive = Drive::AskSource;
            return;
        }
        self.manager.write(|rows| {
            rows.migration.state = MigrationState::Aborted;
            rows.ending = Some(Ending::Stayed);
        });
        self.manager.in_doubt = false;
        self.net.calls.extend([Call::DiscardIncoming, Call::CancelOutgoing]);
        self.manager.drive = Drive::Done;
    }

    /// Asks the host whose turn it is. `unheard`: the answer is lost.
    pub(crate) fn poll(&mut self, late: bool, unheard: bool) {
        self.manager.drive = match &self.manager.drive {
            Drive::AskSource => {
                let undecided = !self.manager.is_committed() && !self.manager.in_doubt;
                if self.manager.rows.cancelling && undecided {
                    return self.abort();
                }
                Drive::HearSource(self.source_view(late, unheard))
            }
            Drive::AskDestination(source) => {
                Drive::HearDestination(source.clone(), self.destination_view(late, unheard), late)
            }
            Drive::AskHeir => Drive::HearHeir(self.destination_view(late, unheard), late),
            other => other.clone(),
        };
    }

    /// Judges what was heard.
    pub(crate) fn hear(&mut self) {
        let step = match std::mem::replace(&mut self.manager.drive, Drive::AskSource) {
            Drive::HearSource(source) if self.rules.commit == Commit::Intent => match self.learn(&source) {
                Some(drive) => return self.manager.drive = drive,
                None => self.by_source(source),
            },
            Drive::HearSource(source) => self.by_source(source),
            Drive::HearDestination(_, view, _) if self.manager.in_doubt => return self.learn_last(&view),
            Drive::HearDestination(source, destination, late) => {
                let waited = Waited { polls: if late { u32::MAX } else { 0 }, out_of_patience: late };
                settle::after_commit(&self.manager.rows.migration, &source, &destination, waited)
            }
            Drive::HearHeir(heir, late) => {
                self.forsaken |= matches!(heir, DestinationView::Silent { out_of_patience: true, .. });
                settle::heir(&self.manager.rows.migration, &broken(), &heir, if late { u32::MAX } else { 0 })
            }
            other => return self.manager.drive = other,
        };
        match step {
            Step::Wait { .. } | Step::AskDestination | Step::AskHeir(_) => {}
            Step::Abort(_) => self.abort(),
            Step::Moved { runs, .. } => {
                let power = if runs { Power::Running } else { Power::Stopped };
                self.end(Ending::Moved, Some(power));
            }
            Step::Lost(_) => self.end(Ending::Lost, Some(Power::Crashed)),
            Step::Uncertain(_) => self.end(Ending::Uncertain, None),
        }
    }

    fn by_source(&mut self, source: SourceView) -> Step {
        let step = if self.manager.rows.migration.state == MigrationState::Aborted {
            Step::Abort(broken())
        } else {
            settle::by_source(&self.manager.rows.migration, &source)
        };
        match step {
            Step::AskDestination => self.manager.drive = Drive::AskDestination(source),
            Step::AskHeir(_) => self.manager.drive = Drive::AskHeir,
            _ => {}
        }
        step
    }

    fn end(&mut self, ending: Ending, power: Option<Power>) {
        self.manager.write(|rows| {
            rows.ending = Some(ending);
            if let Some(power) = power {
                rows.power = power;
                rows.owned.claimed |= power == Power::Running;
            }
        });
        self.manager.drive = Drive::Done;
    }
}
