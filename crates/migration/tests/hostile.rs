//! What fuzzing has found: messages that no healthy peer sends.

use std::time::Duration;

use godwit_migration::destination::{Action, Engine, Input, Setup};
use godwit_migration::wire::{Hello, Role};
use godwit_migration::{Manifest, Tuning};
use godwit_types::{Epoch, MigrationId, VmId};
use uuid::Uuid;

#[test]
fn a_source_whose_epoch_has_no_successor_is_refused() {
    let (migration, epoch) = (MigrationId(Uuid::from_u128(7)), Epoch(2));
    let mut engine = Engine::new(Setup { migration, epoch, unix: Duration::ZERO, tuning: Tuning::default() });
    let vm = VmId(Uuid::from_u128(9));
    let manifest = Manifest {
        vm,
        epoch: Epoch(u64::MAX),
        spec_json: vec![],
        ranges: vec![],
        disks: vec![],
        cpu: vec![],
    };
    let role = Role::Control { manifest, page_streams: 1, post_copy: false, reuse: false, verify: false };
    let hello = Hello { migration, epoch, source: "a".into(), session: 0, role };
    let actions = engine.handle(Duration::ZERO, Input::Hello(hello));
    assert!(matches!(actions.last(), Some(Action::End(Err(_)))), "{actions:?}");
}
