//! How a migration under way is judged, as a pure function of the arbiter's record and of what both hosts say.
//!
//! ```text
//!                 |  record open                             |  committed          |  claimed
//!  ---------------+------------------------------------------+---------------------+--------------------------------
//!  source works   |  wait                                    |  ask destination    |  ask destination
//!  source: failed |  abort                                   |  ask destination    |  ask destination
//!  source: done   |  abort (it lies)                         |  ask destination    |  moved
//!  source: died   |  ask the heir                            |  ask destination    |  ask destination
//!  source unknown |  ask the heir                            |  ask destination    |  ask destination
//!  source silent  |  wait; ask the heir when out of patience |  ask destination    |  ask destination
//! ```
//!
//! The destination, after the commit: runs at the new epoch -> moved; ended -> lost; silent or not yet -> wait, and
//! leave it uncertain when out of patience. As the heir of a source that is gone, before the commit: has everything ->
//! wait, since it takes over as soon as the disks' locks fall, or the source is heard of again; anything else -> abort.
//! The source's word must be older than the record, or a commit in between would look like a lie.

use godwit_types::agent::LocalState;
use godwit_types::migration::{MigrationOutcome, MigrationProgress, MigrationReport, Phase};
use godwit_types::{ApiError, ErrorCode};

use crate::arbiter::{Migration, MigrationState};

/// Polls for which a finished migration waits for the source's report.
const REPORT_POLLS: u32 = 10;

/// Polls for which a destination may still turn out to have everything, after its source is gone.
const HEIR_POLLS: u32 = 10;

/// What the source says.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceView {
    Working(Option<MigrationProgress>),
    Ended(MigrationOutcome),
    /// It knows of no such migration.
    Unknown,
    Silent {
        error: ApiError,
        out_of_patience: bool,
    },
}

/// What the destination says of its process at the new epoch.
#[derive(Debug, Clone, PartialEq)]
pub enum DestinationView {
    State(LocalState),
    /// It has no such process.
    Absent,
    Silent {
        error: ApiError,
        out_of_patience: bool,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Wait {
        message: String,
        progress: Option<MigrationProgress>,
    },
    /// Before the commit: abort, unless it is committed just now.
    Abort(ApiError),
    /// Judge by the destination: [`after_commit`].
    AskDestination,
    /// Before the commit, the source is gone: judge by the destination whether to abort, with [`heir`].
    AskHeir(ApiError),
    Moved {
        report: Option<Box<MigrationReport>>,
        runs: bool,
    },
    /// The destination owns the VM and does not run it.
    Lost(ApiError),
    /// The destination owns the VM, and nobody can tell how it is.
    Uncertain(ApiError),
}

/// Judges by the source and the record.
pub fn by_source(m: &Migration, source: &SourceView) -> Step {
    match (m.state, source) {
        (MigrationState::Claimed, SourceView::Ended(MigrationOutcome::Completed { report })) => {
            Step::Moved { report: Some(report.clone()), runs: true }
        }
        (MigrationState::Committed | MigrationState::Claimed, _) => Step::AskDestination,
        (_, SourceView::Working(progress)) => {
            let message = format!("moving from {} to {}", m.source, m.destination);
            Step::Wait { message, progress: progress.clone() }
        }
        (_, SourceView::Ended(MigrationOutcome::Failed { error, .. })) => Step::Abort(error.clone()),
        (_, SourceView::Ended(MigrationOutcome::Died { error })) => gone(m, error.clone()),
        (_, SourceView::Ended(_)) => {
            let message = format!("{} says that it handed the VM over, which was never granted", m.source);
            Step::Abort(ApiError::new(ErrorCode::Internal, message))
        }
        (_, SourceView::Unknown) => {
            let message =
                format!("{} does not know of the migration; its agent may have been restarted", m.source);
            gone(m, ApiError::new(ErrorCode::Failed, message).remedy("migrate again"))
        }
        (_, SourceView::Silent { error, out_of_patience: true }) => gone(m, error.clone()),
        (_, SourceView::Silent { error, .. }) => {
            let message = format!("waiting for {}: {}", m.source, error.message);
            Step::Wait { message, progress: None }
        }
    }
}

/// A destination can have everything only once its source was told to begin.
fn gone(m: &Migration, error: ApiError) -> Step {
    if m.state == MigrationState::Running { Step::AskHeir(error) } else { Step::Abort(error) }
}

/// Judges by the destination of a source that is `gone` and has not committed. `polls`: how often it was asked.
pub fn heir(m: &Migration, gone: &ApiError, destination: &DestinationView, polls: u32) -> Step {
    let (source, heir) = (&m.source, &m.destination);
    let wait = |what: String| Step::Wait {
        message: format!("{source} is gone: {}; {what}", gone.message),
        progress: None,
    };
    match destination {
        DestinationView::State(LocalState::Prepared) => wait(format!(
            "{heir} has everything, and takes over once the locks of the disks have fallen, or {source} is back"
        )),
        DestinationView::State(LocalState::Incoming) if polls < HEIR_POLLS => {
            wait(format!("waiting for {heir} to say whether it has everything"))
        }
        DestinationView::Silent { out_of_patience: false, error } => {
            wait(format!("waiting for {heir}: {}", error.message))
        }
        _ => Step::Abort(gone.clone()),
    }
}

/// How long the destination has been waited for since the commit was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    pub polls: u32,
    pub out_of_patience: bool,
}

/// Judges by the destination, which owns the VM.
pub fn after_commit(
    m: &Migration,
    source: &SourceView,
    destination: &DestinationView,
    waited: Waited,
) -> Step {
    let wait =
        |why: &str| Step::Wait { message: format!("waiting for {}: {why}", m.destination), progress: None };
    match destination {
        // Running at this epoch, it has claimed.
        DestinationView::State(LocalState::Running | LocalState::Outgoing) => {
            match source {
                // Both take as long as they take, and end by themselves.
                SourceView::Working(Some(progress)) if progress.phase == Phase::Verify => {
                    let message = format!("{} reads the memory once more, to compare", m.source);
                    return Step::Wait { message, progress: Some(progress.clone()) };
                }
                SourceView::Working(Some(progress)) if progress.phase == Phase::PostCopy => {
                    let message = format!("running on {}, memory follows from {}", m.destination, m.source);
                    return Step::Wait { message, progress: Some(progress.clone()) };
                }
                // The source reports what it measured as soon as it has heard of the resume.
                SourceView::Working(_) if waited.polls < REPORT_POLLS => {
                    return Step::Wait { message: "waiting for the report".to_owned(), progress: None };
                }
                _ => {}
            }
            Step::Moved { report: None, runs: true }
        }
        DestinationView::State(LocalState::Stopped) => Step::Moved { report: None, runs: false },
        DestinationView::State(LocalState::Incoming | LocalState::Prepared) if waited.out_of_patience => {
            let message = format!("{} has everything and does not claim the VM", m.destination);
            let remedy = format!("look whether the agent on {} reaches the manager", m.destination);
            Step::Uncertain(ApiError::new(ErrorCode::Failed, message).remedy(remedy))
        }
        DestinationView::State(LocalState::Incoming | LocalState::Prepared) => {
            wait("it has everything and has not claimed the VM yet")
        }
        DestinationView::State(_) | DestinationView::Absent => Step::Lost(lost(m)),
        DestinationView::Silent { error, out_of_patience: true } => Step::Uncertain(error.clone()),
        DestinationView::Silent { error, .. } => wait(&error.message),
    }
}

fn lost(m: &Migration) -> ApiError {
    let message = format!("{} was given the VM and its process there has ended", m.destination);
    ApiError::new(ErrorCode::Failed, message)
        .remedy(format!("read the VM's log on {}, and start the VM again", m.destination))
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
