//! What a host's report says about a VM, as a pure function of the report and the records.

use godwit_types::agent::LocalState;

use crate::store::Power;

/// Consecutive reports after which a contradiction is believed.
pub const REPORTS_BELIEVED: u32 = 2;

/// What a report says about a VM that its sender owns and that no task is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing new.
    AsKnown,
    /// It runs, which was not known.
    Runs,
    /// The guest shut itself down.
    Stopped,
    /// The process ended by itself.
    Crashed,
    /// The report does not name it; so many consecutive ones have not.
    Missing(u32),
}

/// Judges a report by the VM's record: whether its owner has confirmed it, and how many consecutive reports did not name
/// it. `local` is the VM at the owner's epoch, as the report has it.
pub const fn news(power: Power, claimed: bool, missing: u32, local: Option<LocalState>) -> News {
    match (local, power) {
        (Some(LocalState::Running | LocalState::Outgoing), Power::Running) if claimed => News::AsKnown,
        (Some(LocalState::Running | LocalState::Outgoing), _) => News::Runs,
        (Some(LocalState::Stopped), Power::Running) => News::Stopped,
        (Some(LocalState::Crashed), Power::Running) => News::Crashed,
        // An incoming machine at the owner's epoch is about to claim, and `HandedOver` is never the owner's.
        (None | Some(LocalState::HandedOver), Power::Running) => News::Missing(missing + 1),
        _ => News::AsKnown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_report_without_a_running_vm_is_not_believed_and_two_are() {
        assert_eq!(news(Power::Running, true, 0, None), News::Missing(1));
        assert_eq!(news(Power::Running, true, 1, None), News::Missing(REPORTS_BELIEVED));
        assert_eq!(news(Power::Stopped, true, 0, None), News::AsKnown);
    }

    #[test]
    fn a_process_that_ended_changes_only_a_vm_that_was_running() {
        assert_eq!(news(Power::Running, true, 0, Some(LocalState::Crashed)), News::Crashed);
        assert_eq!(news(Power::Running, true, 0, Some(LocalState::Stopped)), News::Stopped);
        assert_eq!(news(Power::Stopped, true, 0, Some(LocalState::Stopped)), News::AsKnown);
        assert_eq!(news(Power::Crashed, true, 0, Some(LocalState::Crashed)), News::AsKnown);
        assert_eq!(news(Power::Crashed, true, 0, Some(LocalState::Running)), News::Runs);
        assert_eq!(news(Power::Running, false, 0, Some(LocalState::Running)), News::Runs);
    }
}
