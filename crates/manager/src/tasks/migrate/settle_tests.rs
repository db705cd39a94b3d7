//! Every row of the table in `settle.rs`.

use godwit_types::migration::{Blackout, BytesByKind, Phase};
use godwit_types::{Bytes, Epoch, MigrationId, TaskId, VmId};
use uuid::Uuid;

use super::*;

const OPEN: [MigrationState; 3] =
    [MigrationState::Preparing, MigrationState::Running, MigrationState::Aborted];

fn migration(state: MigrationState) -> Migration {
    let (source, destination) = ("a".parse().unwrap(), "b".parse().unwrap());
    let (id, task, vm) = (MigrationId(Uuid::nil()), TaskId(Uuid::nil()), VmId(Uuid::nil()));
    Migration { id, task, vm, source, destination, epoch: Epoch(1), state, taken_over: false }
}

fn report() -> MigrationReport {
    MigrationReport {
        migration: MigrationId(Uuid::nil()),
        from: "a".parse().unwrap(),
        to: "b".parse().unwrap(),
        total_ms: 1.0,
        blackout: Blackout::default(),
        predicted_blackout_ms: 1.0,
        rounds: 1,
        bytes: BytesByKind::default(),
        goodput_bytes_per_s: 1,
        busy_ms: 1000.0,
        later_bytes_per_s: None,
        capped: false,
        predicted: None,
        post_copy: None,
        verified: None,
        guest_clock: None,
        slowed: Vec::new(),
    }
}

fn error(code: ErrorCode) -> ApiError {
    ApiError::new(code, "why")
}

fn silent(out_of_patience: bool) -> SourceView {
    SourceView::Silent { error: error(ErrorCode::Unreachable), out_of_patience }
}

fn endings() -> Vec<SourceView> {
    vec![
        SourceView::Ended(MigrationOutcome::Failed {
            phase: Phase::PreCopy,
            error: error(ErrorCode::Failed),
        }),
        SourceView::Ended(MigrationOutcome::Completed { report: Box::new(report()) }),
        SourceView::Ended(MigrationOutcome::HandedOver { error: error(ErrorCode::Unreachable) }),
    ]
}

/// A source that is gone as far as can be seen.
fn gone() -> [SourceView; 3] {
    let died = SourceView::Ended(MigrationOutcome::Died { error: error(ErrorCode::Failed) });
    [died, SourceView::Unknown, silent(true)]
}

#[test]
fn before_the_commit_every_end_of_the_source_aborts_and_its_silence_waits_first() {
    for state in OPEN {
        for view in endings() {
            assert!(matches!(by_source(&migration(state), &view), Step::Abort(_)), "{state:?} {view:?}");
        }
        for view in [SourceView::Working(None), silent(false)] {
            assert!(matches!(by_source(&migration(state), &view), Step::Wait { .. }), "{state:?} {view:?}");
        }
    }
}

#[test]
fn a_source_that_is_gone_leaves_the_vm_to_a_destination_that_has_everything_and_otherwise_aborts() {
    let running = migration(MigrationState::Running);
    let state = DestinationView::State;
    let silent =
        |out_of_patience| DestinationView::Silent { error: error(ErrorCode::Unreachable), out_of_patience };
    for view in gone() {
        let Step::AskHeir(why) = by_source(&running, &view) else { panic!("{view:?}") };
        let step = |heir_is: &DestinationView, polls| heir(&running, &why, heir_is, polls);
        for waits in [step(&state(LocalState::Prepared), u32::MAX), step(&silent(false), u32::MAX)] {
            assert!(matches!(waits, Step::Wait { .. }), "{view:?}: {waits:?}");
        }
        assert!(matches!(step(&state(LocalState::Incoming), 0), Step::Wait { .. }));
        for other in [state(LocalState::Incoming), DestinationView::Absent, silent(true)] {
            assert_eq!(step(&other, HEIR_POLLS), Step::Abort(why.clone()), "{other:?}");
        }
        for state in [MigrationState::Preparing, MigrationState::Aborted] {
            assert_eq!(by_source(&migration(state), &view), Step::Abort(why.clone()));
        }
    }
}

#[test]
fn the_sources_own_error_is_the_one_that_is_told() {
    let step = by_source(&migration(MigrationState::Running), &endings()[0]);
    assert_eq!(step, Step::Abort(error(ErrorCode::Failed)));
}

#[test]
fn after_the_commit_nothing_that_the_source_says_aborts() {
    for state in [MigrationState::Committed, MigrationState::Claimed] {
        for view in endings().into_iter().chain(gone()).chain([SourceView::Working(None), silent(false)]) {
            let step = by_source(&migration(state), &view);
            assert!(
                matches!(step, Step::AskDestination | Step::Moved { .. }),
                "{state:?} {view:?}: {step:?}"
            );
        }
    }
}

#[test]
fn a_claimed_vm_whose_source_reports_completion_has_moved_with_the_report() {
    let completed = SourceView::Ended(MigrationOutcome::Completed { report: Box::new(report()) });
    let step = by_source(&migration(MigrationState::Claimed), &completed);
    assert_eq!(step, Step::Moved { report: Some(Box::new(report())), runs: true });
}

const JUST_NOW: Waited = Waited { polls: 0, out_of_patience: false };
const LONG_AGO: Waited = Waited { polls: REPORT_POLLS, out_of_patience: true };

#[test]
fn after_the_commit_the_destination_decides() {
    let (committed, claimed) = (migration(MigrationState::Committed), migration(MigrationState::Claimed));
    let silence =
        |out_of_patience| DestinationView::Silent { error: error(ErrorCode::Unreachable), out_of_patience };
    let state = DestinationView::State;
    for m in [&committed, &claimed] {
        let step = |view: &DestinationView, waited| after_commit(m, &SourceView::Unknown, view, waited);
        let moved = |runs| Step::Moved { report: None, runs };
        assert_eq!(step(&state(LocalState::Running), JUST_NOW), moved(true));
        assert_eq!(step(&state(LocalState::Stopped), JUST_NOW), moved(false));
        for gone in [DestinationView::Absent, state(LocalState::Crashed)] {
            assert!(matches!(step(&gone, JUST_NOW), Step::Lost(_)), "{gone:?}");
        }
        for arriving in [LocalState::Incoming, LocalState::Prepared] {
            assert!(matches!(step(&state(arriving), JUST_NOW), Step::Wait { .. }));
            assert!(matches!(step(&state(arriving), LONG_AGO), Step::Uncertain(_)));
        }
        assert!(matches!(step(&silence(false), LONG_AGO), Step::Wait { .. }));
        assert!(matches!(step(&silence(true), JUST_NOW), Step::Uncertain(_)));
    }
}

#[test]
fn a_source_that_still_works_is_given_time_for_its_report_and_not_for_ever() {
    let claimed = migration(MigrationState::Claimed);
    let runs = DestinationView::State(LocalState::Running);
    let working = SourceView::Working(None);
    assert!(matches!(after_commit(&claimed, &working, &runs, JUST_NOW), Step::Wait { .. }));
    assert!(matches!(after_commit(&claimed, &working, &runs, LONG_AGO), Step::Moved { .. }));
}

#[test]
fn a_source_that_reads_memory_once_more_or_still_has_some_is_waited_for_however_long_that_takes() {
    let claimed = migration(MigrationState::Claimed);
    let runs = DestinationView::State(LocalState::Running);
    let progress = |phase| MigrationProgress {
        phase,
        round: 3,
        bytes_sent: 0,
        remaining: Bytes(0),
        goodput_bytes_per_s: 0,
        dirty_bytes_per_s: 0,
        predicted_blackout_ms: None,
        predicted_finish_ms: None,
        slowdown_percent: 0.0,
        elapsed_ms: 0,
    };
    let judged = |phase| {
        let works = SourceView::Working(Some(progress(phase)));
        after_commit(&claimed, &works, &runs, LONG_AGO)
    };
    for phase in [Phase::Verify, Phase::PostCopy] {
        assert!(matches!(judged(phase), Step::Wait { progress: Some(_), .. }), "{phase:?}");
    }
    assert!(matches!(judged(Phase::Resume), Step::Moved { .. }));
}
