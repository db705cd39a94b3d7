//! A destination in doubt, input by input.

use std::time::Duration;

use godwit_migration::destination::{Action, Engine, Input, Ran, Setup};
use godwit_migration::wire::{Ack, Committed, Control, Heartbeat, Hello, Role};
use godwit_migration::{Link, Loaded, MachineError, Manifest, Tuning};
use godwit_types::ownership::{Verdict, Witness};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId, VmId};
use uuid::Uuid;

const MIGRATION: MigrationId = MigrationId(Uuid::from_u128(1));
const EPOCH: Epoch = Epoch(2);
const GRANTED: Input = Input::Verdict(Verdict::Granted { epoch: EPOCH });

/// A destination whose source is connected and sends pages.
fn receiving() -> Engine {
    let mut engine = Engine::new(Setup {
        migration: MIGRATION,
        epoch: EPOCH,
        unix: Duration::ZERO,
        tuning: Tuning::default(),
    });
    let vm = VmId(Uuid::from_u128(2));
    let manifest =
        Manifest { vm, epoch: Epoch(1), spec_json: vec![], ranges: vec![], disks: vec![], cpu: vec![] };
    let role = Role::Control { manifest, page_streams: 1, post_copy: false, reuse: false, verify: false };
    let hello = Hello { migration: MIGRATION, epoch: EPOCH, source: "a".into(), session: 0, role };
    for input in [Input::Hello(hello), Input::Admitted(Ok(())), Input::StreamOpened] {
        engine.handle(Duration::ZERO, input);
    }
    engine
}

#[test]
fn a_source_that_lives_and_sends_nothing_is_given_up() {
    let (mut engine, idle, beat) = (receiving(), Tuning::default().idle, Tuning::default().heartbeat);
    let mut now = Duration::ZERO;
    let mut step = |engine: &mut Engine, input| {
        now += beat;
        let heartbeat = Control::Heartbeat(Heartbeat { source_us: 1, unix_us: 0 });
        engine.handle(now, Input::Control(heartbeat));
        engine.handle(now, input)
    };
    // Memory that keeps coming is never too slow.
    for round in 1..=4 * idle.as_secs() as u32 {
        let actions = step(&mut engine, Input::Received(Ack { round, ..Ack::default() }));
        assert!(matches!(actions[..], [Action::Send(Control::Ack(_))]), "{actions:?}");
    }
    let mut ends = (0..2 * idle.as_secs()).map(|_| step(&mut engine, Input::Tick));
    let end = ends.find(|actions| !actions.is_empty()).expect("an end within twice the limit");
    let Some(Action::End(Err(error))) = end.last() else { panic!("{end:?}") };
    assert!(error.message.contains("has sent no memory"), "{error:?}");
}

/// A destination that is PREPARED and has lost its source.
fn in_doubt() -> Engine {
    let mut engine = receiving();
    let error = ApiError::new(ErrorCode::Unreachable, "cut");
    let inputs = [
        Input::Received(Ack { round: 1, ..Ack::default() }),
        Input::State { last_round: 1, rest: false },
        Input::Loaded(Ok(Loaded::default())),
        Input::Lost { link: Link::Control, error },
    ];
    let last = inputs.into_iter().map(|input| engine.handle(Duration::ZERO, input)).last();
    assert!(matches!(last.as_deref(), Some([Action::AskClaim { witness: Witness::None, .. }])), "{last:?}");
    engine
}

#[test]
fn an_undecided_arbiter_is_told_that_the_source_is_dead_as_soon_as_its_locks_have_fallen() {
    let mut engine = in_doubt();
    let mut now = Duration::ZERO;
    for _ in 0..100 {
        let actions = engine.handle(now, Input::Verdict(Verdict::Undecided));
        assert!(matches!(actions[..], [Action::TakeOver]), "{actions:?}");
        assert_eq!(engine.handle(now, Input::TookOver(Witness::None)), [], "the source holds its locks");
        now += Tuning::default().ask_again;
        let actions = engine.handle(now, Input::Tick);
        assert!(matches!(actions[..], [Action::AskClaim { witness: Witness::None, .. }]), "{actions:?}");
    }
    engine.handle(now, Input::Verdict(Verdict::Undecided));
    let actions = engine.handle(now, Input::TookOver(Witness::SourceDead));
    assert!(matches!(actions[..], [Action::AskClaim { witness: Witness::SourceDead, .. }]), "{actions:?}");
    assert!(matches!(engine.handle(now, GRANTED)[..], [Action::Run { epoch: EPOCH }]));
}

#[test]
fn a_destination_that_can_never_tell_says_so_and_only_asks() {
    let mut engine = in_doubt();
    let mut now = Duration::ZERO;
    engine.handle(now, Input::Verdict(Verdict::Undecided));
    let mut actions = engine.handle(now, Input::TookOver(Witness::Blind { reason: "no disk".into() }));
    for _ in 0..100 {
        assert!(
            matches!(actions[..], [Action::AskClaim { witness: Witness::Blind { .. }, .. }]),
            "{actions:?}"
        );
        assert_eq!(engine.handle(now, Input::Verdict(Verdict::Undecided)), []);
        now += Tuning::default().ask_again;
        actions = engine.handle(now, Input::Tick);
    }
}

fn locked() -> Input {
    Input::Ran(Err(MachineError { step: "locking the disks".into(), reason: "held by host a".into() }))
}

#[test]
fn a_copy_that_was_granted_outlasts_a_source_that_cannot_hear_of_its_grant_and_holds_the_locks() {
    let mut engine = in_doubt();
    let mut now = Duration::ZERO;
    for _ in 0..100 {
        let actions = engine.handle(now, GRANTED);
        assert!(matches!(actions[..], [Action::Run { epoch: EPOCH }]), "{actions:?}");
        now += Tuning::default().run;
        let actions = engine.handle(now, locked());
        assert!(matches!(actions[..], [Action::AskClaim { .. }]), "{actions:?}");
    }
    engine.handle(now, GRANTED);
    let actions = engine.handle(now, Input::Ran(Ok(Ran::default())));
    assert!(matches!(actions.last(), Some(Action::End(Ok(EPOCH)))), "{actions:?}");
}

#[test]
fn a_copy_that_waits_for_the_locks_is_discarded_once_the_vm_has_moved_on() {
    let mut engine = in_doubt();
    engine.handle(Duration::ZERO, GRANTED);
    engine.handle(Tuning::default().run, locked());
    let refused = Input::Verdict(Verdict::Refused { reason: "the VM has moved on".into() });
    let actions = engine.handle(Tuning::default().run, refused);
    assert!(matches!(actions.last(), Some(Action::End(Err(_)))), "{actions:?}");
}

#[test]
fn after_committed_a_copy_that_cannot_run_says_why() {
    let mut engine = in_doubt();
    engine.handle(Duration::ZERO, GRANTED);
    engine.handle(Duration::ZERO, Input::Control(Control::Committed(Committed { epoch: EPOCH.0 })));
    let actions = engine.handle(Tuning::default().run, locked());
    let Some(Action::End(Err(error))) = actions.last() else { panic!("{actions:?}") };
    assert!(error.message.contains("held by host a"), "{error:?}");
}
