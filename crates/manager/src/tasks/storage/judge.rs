//! What a move of storage needs next, while the record still names the old images: a pure function of what its host says.
//!
//! ```text
//!  copying, settling -> wait        in sync, held -> hold, then change the record
//!  ended, unknown    -> abort       silent        -> wait; abort when out of patience
//! ```

use godwit_types::storage::{StoragePhase, StorageProgress, StorageStatus};
use godwit_types::{ApiError, ErrorCode, HostName};

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    Status(StorageStatus),
    /// It knows of no such move: the VM's process has ended, or the agent has that copied disks of a VM at rest.
    Absent,
    Silent {
        error: ApiError,
        out_of_patience: bool,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Wait { message: String, progress: Option<StorageProgress> },
    Hold,
    Abort(ApiError),
}

pub(super) fn judge(host: &HostName, view: View) -> Step {
    let wait = |message: String, progress| Step::Wait { message, progress };
    match view {
        View::Status(StorageStatus { ended: Some(error), .. }) => Step::Abort(error),
        View::Status(StorageStatus { progress, .. }) => match progress.phase {
            StoragePhase::Copying => wait(format!("{host} copies the disks"), Some(progress)),
            StoragePhase::Settling => wait(format!("{host} makes the new images durable"), Some(progress)),
            StoragePhase::InSync | StoragePhase::Held => Step::Hold,
            StoragePhase::Switched => {
                let message = format!("{host} says that the disks have moved, which was never decided");
                Step::Abort(ApiError::new(ErrorCode::Internal, message))
            }
        },
        View::Absent => {
            let message = format!(
                "{host} does not move the disks any more: the process that did, the VM's or its own, has ended"
            );
            Step::Abort(ApiError::new(ErrorCode::Failed, message).remedy("move them again"))
        }
        View::Silent { error, out_of_patience: true } => Step::Abort(error),
        View::Silent { error, .. } => wait(format!("waiting for {host}: {}", error.message), None),
    }
}

#[cfg(test)]
mod tests {
    use godwit_types::{Bytes, MigrationId};
    use uuid::Uuid;

    use super::*;

    fn status(phase: StoragePhase, ended: Option<ApiError>) -> View {
        let progress =
            StorageProgress { phase, copied: Bytes(1), remaining: Bytes(2), bytes_per_s: 3, elapsed_ms: 4 };
        View::Status(StorageStatus { migration: MigrationId(Uuid::nil()), progress, ended })
    }

    fn judged(view: View) -> Step {
        judge(&"a".parse().unwrap(), view)
    }

    #[test]
    fn the_record_changes_only_when_both_images_are_the_same() {
        for phase in [StoragePhase::Copying, StoragePhase::Settling] {
            assert!(matches!(judged(status(phase, None)), Step::Wait { progress: Some(_), .. }), "{phase:?}");
        }
        for phase in [StoragePhase::InSync, StoragePhase::Held] {
            assert_eq!(judged(status(phase, None)), Step::Hold);
            let full = ApiError::new(ErrorCode::Failed, "No space left on device");
            assert_eq!(judged(status(phase, Some(full.clone()))), Step::Abort(full));
        }
    }

    #[test]
    fn what_its_host_does_not_know_is_aborted_and_a_silent_host_is_waited_for() {
        assert!(matches!(judged(View::Absent), Step::Abort(_)));
        assert!(matches!(judged(status(StoragePhase::Switched, None)), Step::Abort(_)));
        let error = ApiError::new(ErrorCode::Unreachable, "no route");
        let silent = |out_of_patience| judged(View::Silent { error: error.clone(), out_of_patience });
        assert!(matches!(silent(false), Step::Wait { .. }));
        assert_eq!(silent(true), Step::Abort(error.clone()));
    }
}
