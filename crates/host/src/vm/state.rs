//! What the agent knows about a VM's process, and what the manager is told about it.
//!
//! ```text
//!  booted --------------------------------------> running <----> outgoing --commit granted--> handed over --> (ended)
//!                                                  ^  |  migration failed
//!  incoming -> prepared --claim granted-> arrived -'  '--powered off--> stopped --> (ended)
//!     '----------'-- failed or discarded --> (gone, never ran here)
//! ```

use godwit_types::agent::{LocalState, Outgoing};
use godwit_types::control::{Status, VmmState};
use godwit_types::migration::{MigrationOutcome, MigrationProgress};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId};

use super::traffic::Traffic;

/// The state of one VM's process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) vmm: VmmState,
    pub(crate) epoch: Epoch,
    /// The migration by which the VM arrives; none once it runs here.
    pub(crate) incoming: Option<MigrationId>,
    /// Whether the question "claim" is open: the arbiter may have granted it already.
    pub(crate) claiming: bool,
    /// It cannot tell whether its source is dead, and so never takes over.
    pub(crate) blind: bool,
    /// The claim was granted: the VM is this host's.
    pub(crate) claimed: bool,
    /// The migration away that is under way, or the last one.
    pub(crate) outgoing: Option<Outgoing>,
    /// What it may send.
    pub(crate) traffic: Traffic,
    /// The commit was granted: the VM is another host's.
    pub(crate) handed_over: bool,
    /// Somebody asked for the end of the process.
    pub(crate) stopping: bool,
    /// What keeps a question to the arbiter open.
    pub(crate) waiting: Option<String>,
}

impl State {
    /// Of a process that has just told how it is. `incoming` is the migration that it was started for.
    pub(crate) fn new(status: &Status, incoming: Option<MigrationId>) -> Self {
        let outgoing = status.migration.clone().map(|migration| Outgoing {
            migration: migration.migration,
            progress: migration.progress,
            outcome: migration.outcome,
        });
        Self {
            vmm: status.state,
            epoch: status.epoch,
            incoming,
            claiming: false,
            blind: false,
            claimed: false,
            outgoing,
            traffic: Traffic::default(),
            handed_over: status.state == VmmState::HandedOver,
            stopping: false,
            waiting: None,
        }
    }

    /// The word for it in reports.
    pub(crate) fn local(&self) -> LocalState {
        match self.vmm {
            _ if self.handed_over => LocalState::HandedOver,
            VmmState::HandedOver => LocalState::HandedOver,
            VmmState::Stopped => LocalState::Stopped,
            VmmState::Paused if self.incoming.is_some() && !self.blind => LocalState::Prepared,
            _ if self.incoming.is_some() => LocalState::Incoming,
            VmmState::Incoming => LocalState::Incoming,
            VmmState::Running | VmmState::Paused if self.migrating_away() => LocalState::Outgoing,
            VmmState::Running | VmmState::Paused => LocalState::Running,
        }
    }

    /// Whether a migration away is under way.
    pub(crate) fn migrating_away(&self) -> bool {
        self.migration_away().is_some()
    }

    /// The migration away that is under way.
    pub(crate) fn migration_away(&self) -> Option<MigrationId> {
        self.outgoing
            .as_ref()
            .filter(|outgoing| outgoing.outcome.is_none())
            .map(|outgoing| outgoing.migration)
    }

    /// Whether the arbiter may be asked about this VM at any moment.
    pub(crate) fn migrating(&self) -> bool {
        self.incoming.is_some() || self.migrating_away()
    }

    pub(crate) fn progress(&mut self, migration: MigrationId, progress: MigrationProgress) {
        if let Some(outgoing) = self.outgoing.as_mut().filter(|outgoing| outgoing.migration == migration) {
            outgoing.progress = Some(progress);
        }
    }

    pub(crate) fn migration_ended(&mut self, migration: MigrationId, outcome: MigrationOutcome) {
        self.handed_over |= outcome.has_left();
        let progress =
            self.outgoing.take().filter(|last| last.migration == migration).and_then(|last| last.progress);
        self.outgoing = Some(Outgoing { migration, progress, outcome: Some(outcome) });
    }

    /// What is left to report of a process that has ended, in good order or not, with the words `how`; none if the VM
    /// never ran here.
    pub(crate) fn after(mut self, in_order: bool, how: &str) -> Option<Ended> {
        let ended_as = match self.local() {
            LocalState::Incoming | LocalState::Prepared if !self.claimed => return None,
            LocalState::HandedOver => LocalState::HandedOver,
            LocalState::Stopped => LocalState::Stopped,
            _ if self.stopping || in_order => LocalState::Stopped,
            _ => LocalState::Crashed,
        };
        if let Some(open) = self.outgoing.as_mut().filter(|outgoing| outgoing.outcome.is_none()) {
            let error = ApiError::new(ErrorCode::Failed, how);
            open.outcome = Some(if self.handed_over {
                MigrationOutcome::HandedOver { error }
            } else {
                MigrationOutcome::Died { error }
            });
        }
        let detail = (ended_as == LocalState::Crashed).then(|| how.to_owned());
        Some(Ended { state: ended_as, epoch: self.epoch, detail, outgoing: self.outgoing })
    }
}

/// What is left of a VM whose process has ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    pub(crate) state: LocalState,
    pub(crate) epoch: Epoch,
    pub(crate) detail: Option<String>,
    pub(crate) outgoing: Option<Outgoing>,
}

#[cfg(test)]
mod tests {
    use godwit_types::migration::Phase;
    use godwit_types::{Bytes, VmId};
    use uuid::Uuid;

    use super::*;

    fn state(vmm: VmmState, incoming: Option<MigrationId>) -> State {
        let vm = VmId(Uuid::from_u128(1));
        let status = Status {
            vm,
            epoch: Epoch(3),
            pid: 1,
            state: vmm,
            listening: None,
            migration: None,
            balloon: Bytes(0),
            disk_operations: 0,
        };
        State::new(&status, incoming)
    }

    fn migration() -> MigrationId {
        MigrationId(Uuid::from_u128(9))
    }

    fn outgoing() -> Outgoing {
        Outgoing { migration: migration(), progress: None, outcome: None }
    }

    #[test]
    fn a_process_that_ends_by_itself_has_crashed_and_says_how() {
        let ended = state(VmmState::Running, None).after(false, "exit code 1: no memory").unwrap();
        assert_eq!(
            (ended.state, ended.detail.as_deref()),
            (LocalState::Crashed, Some("exit code 1: no memory"))
        );
    }

    #[test]
    fn a_process_that_was_asked_to_end_has_stopped() {
        let mut stopping = state(VmmState::Running, None);
        stopping.stopping = true;
        assert_eq!(stopping.after(false, "ended").unwrap().state, LocalState::Stopped);
        assert_eq!(state(VmmState::Stopped, None).after(false, "ended").unwrap().state, LocalState::Stopped);
    }

    #[test]
    fn a_destination_that_ends_before_its_claim_leaves_nothing_and_after_it_a_crash() {
        let arriving = state(VmmState::Incoming, Some(migration()));
        assert_eq!(arriving.local(), LocalState::Incoming);
        assert_eq!(arriving.clone().after(false, "ended"), None);
        let mut claimed = arriving;
        (claimed.claimed, claimed.vmm) = (true, VmmState::Paused);
        assert_eq!(claimed.after(false, "ended").unwrap().state, LocalState::Crashed);
    }

    #[test]
    fn a_source_that_ends_after_the_commit_has_handed_over_and_before_it_has_crashed() {
        let mut source = state(VmmState::Paused, None);
        source.outgoing = Some(outgoing());
        assert_eq!(source.local(), LocalState::Outgoing);
        let crashed = source.clone().after(false, "gone").unwrap();
        assert_eq!(crashed.state, LocalState::Crashed);
        assert!(matches!(crashed.outgoing.unwrap().outcome, Some(MigrationOutcome::Died { .. })));
        source.handed_over = true;
        let ended = source.after(false, "gone").unwrap();
        assert_eq!(ended.state, LocalState::HandedOver);
        assert!(matches!(ended.outgoing.unwrap().outcome, Some(MigrationOutcome::HandedOver { .. })));
    }

    #[test]
    fn a_failed_migration_leaves_the_vm_running_and_its_outcome_readable() {
        let mut source = state(VmmState::Running, None);
        source.outgoing = Some(outgoing());
        let error = ApiError::new(ErrorCode::Cancelled, "cancelled");
        source.migration_ended(migration(), MigrationOutcome::Failed { phase: Phase::PreCopy, error });
        assert_eq!(source.local(), LocalState::Running);
        assert!(source.outgoing.unwrap().outcome.is_some());
    }
}
