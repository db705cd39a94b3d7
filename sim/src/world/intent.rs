//! [`Commit::Intent`](crate::rules::Commit): how a manager that may have forgotten a grant learns of it from the hosts.
//!
//! ```text
//!  in doubt --source: handed over-----------------------------------> committed
//!     |     --source: failed, and runs on---------------------------> decides as ever
//!     |     --source: works, or is silent---------------------------> in doubt
//!     '-- source gone --> closing: no commit any more
//!                            |  destination: runs, or was granted --> committed
//!                            |  destination: waits; discarded          |
//!                            '--destination: absent ----------------> aborted
//! ```

use godwit_manager::arbiter::MigrationState;
use godwit_manager::settle::{DestinationView, SourceView};
use godwit_types::agent::LocalState;
use godwit_types::migration::MigrationOutcome;
use godwit_types::ownership::Ownership;

use super::manager::Drive;
use super::{NEXT, Side, VM, World};

impl World {
    /// [`Commit::Intent`]: what the source's word is worth to a manager that may have forgotten a grant. `None`: it
    /// decides as ever.
    pub(crate) fn learn(&mut self, source: &SourceView) -> Option<Drive> {
        let gone = match source {
            SourceView::Ended(MigrationOutcome::Completed { .. } | MigrationOutcome::HandedOver { .. }) => {
                self.learn_commit();
                return None;
            }
            SourceView::Ended(MigrationOutcome::Failed { .. } | MigrationOutcome::Died { .. }) => {
                self.source.is_none()
            }
            SourceView::Unknown => true,
            SourceView::Working(_) | SourceView::Silent { .. } => false,
        };
        if !self.manager.in_doubt {
            return None;
        }
        match source {
            // It runs on, and nobody else ever will.
            SourceView::Ended(_) if !gone => {
                self.manager.in_doubt = false;
                None
            }
            _ if gone => Some(Drive::AskDestination(source.clone())),
            _ => Some(Drive::AskSource),
        }
    }

    /// The source is gone and its last word unknown. The destination's copy is discarded, unless it runs.
    pub(crate) fn learn_last(&mut self, destination: &DestinationView) {
        match destination {
            // Even one that asks for its claim; but not one that was granted it, by whom ever.
            DestinationView::State(LocalState::Incoming | LocalState::Prepared) => {
                self.manager.write(|rows| rows.closing = true);
                let agent = &self.agents[1];
                let granted =
                    agent.claimed || self.destination.as_ref().is_some_and(|it| !it.todo.is_empty());
                if agent.claimed {
                    self.learn_commit();
                } else if !granted && agent.is_reachable() {
                    self.destination_dies(usize::MAX);
                }
            }
            DestinationView::State(_) => self.learn_commit(),
            DestinationView::Absent => {
                self.manager.in_doubt = false;
                self.abort();
            }
            DestinationView::Silent { .. } => {}
        }
    }

    fn learn_commit(&mut self) {
        self.manager.in_doubt = false;
        if !self.manager.is_committed() && self.manager.rows.migration.state != MigrationState::Aborted {
            let owned = Ownership { vm: VM, owner: Side::Destination.host(), epoch: NEXT, claimed: false };
            self.manager.write(|rows| {
                rows.owned = owned;
                rows.migration.state = MigrationState::Committed;
            });
        }
    }
}
