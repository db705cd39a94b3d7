//! How long a source bears a silent destination: long while the guest runs, and briefly while it stands.

use std::time::Duration;

use godwit_migration::Tuning;
use godwit_migration::source::{Action, Engine, Harvest, Input, Setup};
use godwit_migration::wire::{Ack, Control, Heartbeat, Ready, Welcome};
use godwit_types::MigrationId;
use godwit_types::migration::Budget;

const PAGES: u64 = 8;

fn engine() -> Engine {
    Engine::new(Setup {
        migration: MigrationId(uuid::Uuid::from_u128(1)),
        source: "a".parse().unwrap(),
        destination: "b".parse().unwrap(),
        budget: Budget::default(),
        ram_pages: PAGES,
        disk_pages: 0,
        unix: Duration::ZERO,
        tuning: Tuning::default(),
    })
}

/// An engine in pre-copy, and the time by then.
fn in_pre_copy() -> (Engine, Duration) {
    let mut engine = engine();
    let now = Duration::from_millis(100);
    for input in [
        Input::Start,
        Input::Control(Control::Welcome(Welcome::default())),
        Input::StreamsOpened(Ok(())),
        Input::LogStarted(Ok(())),
        Input::Control(Control::Ready(Ready {})),
    ] {
        engine.handle(now, input);
    }
    (engine, now)
}

/// What the engine does about a destination that was last heard at `heard`.
fn after(engine: &mut Engine, heard: Duration, silence: Duration) -> Vec<Action> {
    let actions = engine.handle(heard + silence, Input::Tick);
    actions.into_iter().filter(|action| matches!(action, Action::Resume | Action::End(_))).collect()
}

#[test]
fn a_running_guest_is_not_worth_giving_up_for_a_short_silence() {
    let (mut engine, heard) = in_pre_copy();
    let Tuning { peer_silent, peer_silent_stopped, .. } = Tuning::default();
    assert_eq!(after(&mut engine, heard, peer_silent_stopped), []);
    assert!(matches!(after(&mut engine, heard, peer_silent)[..], [Action::End(_)]));
}

#[test]
fn a_standing_guest_runs_on_at_the_source_after_a_short_silence() {
    let (mut engine, mut now) = in_pre_copy();
    engine.handle(now, Input::RoundSent { stream: 0, round: 1 });
    now += Duration::from_millis(10);
    let ack = Ack { stream: 0, wire_bytes: 100_000, pages: PAGES, round: 1 };
    engine.handle(now, Input::Control(Control::Ack(ack)));
    let nothing = Harvest { pages: 0, took: Duration::from_millis(1), ..Harvest::default() };
    let stops = engine.handle(now, Input::Harvested(Ok(nothing)));
    assert!(stops.contains(&Action::Pause), "{stops:?}");
    engine.handle(now, Input::Paused(Ok(Duration::ZERO)));
    assert_eq!(after(&mut engine, now, Tuning::default().peer_silent_stopped), [Action::Resume]);
}

#[test]
fn a_destination_that_beats_instead_of_greeting_is_not_waited_for() {
    let beat = Heartbeat::default();
    for instead in [Control::Heartbeat(beat), Control::Ready(Ready {}), Control::Ack(Ack::default())] {
        let mut engine = engine();
        engine.handle(Duration::ZERO, Input::Start);
        let actions = engine.handle(Duration::ZERO, Input::Control(instead));
        assert!(matches!(actions.last(), Some(Action::End(_))), "{actions:?}");
    }
}

#[test]
fn a_destination_that_takes_memory_and_never_gets_ready_is_given_up() {
    let mut engine = engine();
    let mut now = Duration::from_millis(100);
    for input in [
        Input::Start,
        Input::Control(Control::Welcome(Welcome::default())),
        Input::StreamsOpened(Ok(())),
        Input::LogStarted(Ok(())),
    ] {
        engine.handle(now, input);
    }
    let end = now + 2 * Tuning::default().peer_silent;
    let mut actions = Vec::new();
    for round in 1.. {
        assert!(now < end, "it still waits");
        now += Duration::from_millis(100);
        engine.handle(now, Input::RoundSent { stream: 0, round });
        let pages = u64::from(round) * PAGES;
        let ack = Ack { stream: 0, wire_bytes: pages * 4096, pages, round };
        engine.handle(now, Input::Control(Control::Ack(ack)));
        actions.extend(engine.handle(now, Input::Tick));
        let dirty = Harvest { pages: PAGES, took: Duration::from_millis(1), ..Harvest::default() };
        actions.extend(engine.handle(now, Input::Harvested(Ok(dirty))));
        if actions.iter().any(|action| matches!(action, Action::End(_))) {
            break;
        }
    }
    assert!(!actions.contains(&Action::Pause), "{actions:?}");
}
