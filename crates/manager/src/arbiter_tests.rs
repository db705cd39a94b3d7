//! The arbiter under every order of commits, claims, aborts and restarts of the VM.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const HOSTS: [&str; 3] = ["a", "b", "c"];
const VM: VmId = VmId(Uuid::from_u128(1));

fn host(index: usize) -> HostName {
    HOSTS[index % HOSTS.len()].parse().unwrap()
}

fn id(number: usize) -> MigrationId {
    MigrationId(Uuid::from_u128(number as u128))
}

/// The records and what the arbiter has told to whom.
struct World {
    owned: Ownership,
    migrations: Vec<Migration>,
    /// Who was told at which epoch that it may run the VM.
    may_run: BTreeMap<Epoch, HostName>,
}

impl World {
    fn new() -> Self {
        let owned = Ownership { vm: VM, owner: host(0), epoch: Epoch(1), claimed: true };
        let may_run = BTreeMap::from([(Epoch(1), host(0))]);
        Self { owned, migrations: Vec::new(), may_run }
    }

    fn plan(&mut self, destination: usize) {
        let destination = host(destination);
        let busy = self
            .migrations
            .iter()
            .any(|m| matches!(m.state, MigrationState::Preparing | MigrationState::Running));
        if destination == self.owned.owner || busy {
            return;
        }
        self.migrations.push(Migration {
            id: id(self.migrations.len()),
            task: TaskId(Uuid::nil()),
            vm: VM,
            source: self.owned.owner.clone(),
            destination,
            epoch: self.owned.epoch,
            state: MigrationState::Running,
            taken_over: false,
        });
    }

    fn commit_request(&self, migration: usize) -> Option<CommitRequest> {
        let m = self.migrations.get(migration)?;
        let (source, destination) = (m.source.clone(), m.destination.clone());
        Some(CommitRequest { vm: VM, migration: m.id, source, epoch: m.epoch, destination })
    }

    fn claim_request(&self, migration: usize) -> Option<ClaimRequest> {
        let m = self.migrations.get(migration)?;
        let (host, epoch) = (m.destination.clone(), m.epoch.next());
        Some(ClaimRequest { vm: VM, migration: m.id, host, epoch, witness: Witness::None })
    }

    fn commit(&mut self, migration: usize) -> Option<Verdict> {
        let asked = self.commit_request(migration)?;
        let decision = commit(Some(&self.owned), self.migrations.get(migration), &asked);
        Some(self.apply(migration, decision))
    }

    fn claim(&mut self, migration: usize) -> Option<Verdict> {
        self.claim_with(migration, Witness::None)
    }

    fn claim_with(&mut self, migration: usize, witness: Witness) -> Option<Verdict> {
        let asked = ClaimRequest { witness, ..self.claim_request(migration)? };
        let decision = claim(Some(&self.owned), self.migrations.get(migration), &asked);
        let verdict = self.apply(migration, decision);
        if let Verdict::Granted { epoch } = verdict {
            let told = self.may_run.entry(epoch).or_insert_with(|| asked.host.clone());
            assert_eq!(*told, asked.host, "two hosts may run the VM at epoch {epoch}");
            assert_eq!(
                (&self.owned.owner, self.owned.epoch),
                (&asked.host, epoch),
                "granted to one who is not the owner"
            );
        }
        Some(verdict)
    }

    fn apply(&mut self, migration: usize, decision: Decision) -> Verdict {
        if let Some(change) = decision.change {
            assert!(change.ownership.epoch >= self.owned.epoch, "the epoch went back");
            self.owned = change.ownership;
            let m = &mut self.migrations[migration];
            (m.state, m.taken_over) = (change.state, change.taken_over);
        }
        decision.verdict
    }

    fn abort(&mut self, migration: usize) {
        if let Some(m) = self.migrations.get_mut(migration)
            && abort(m.state)
        {
            m.state = MigrationState::Aborted;
        }
    }

    /// The VM was stopped and is started again elsewhere.
    fn start(&mut self, on: usize) {
        let busy = self
            .migrations
            .iter()
            .any(|m| matches!(m.state, MigrationState::Preparing | MigrationState::Running));
        if !busy {
            let epoch = self.owned.epoch.next();
            self.owned = Ownership { vm: VM, owner: host(on), epoch, claimed: true };
            let told = self.may_run.insert(epoch, host(on));
            assert_eq!(told, None, "an epoch was used twice");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Plan(usize),
    Commit(usize),
    Claim(usize),
    TakeOver(usize),
    Abort(usize),
    Start(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3usize).prop_map(Step::Plan),
        (0..6usize).prop_map(Step::Commit),
        (0..6usize).prop_map(Step::Claim),
        (0..6usize).prop_map(Step::TakeOver),
        (0..6usize).prop_map(Step::Abort),
        (0..3usize).prop_map(Step::Start),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn no_order_of_requests_lets_two_hosts_run_a_vm_at_one_epoch(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Plan(to) => world.plan(to),
                Step::Start(on) => world.start(on),
                Step::Abort(m) => world.abort(m),
                Step::Claim(m) => { world.claim(m); }
                Step::TakeOver(m) => { world.claim_with(m, Witness::SourceDead); }
                Step::Commit(m) => {
                    let verdict = world.commit(m);
                    // Whoever is refused runs on, and so must be the owner; whoever is granted must not be.
                    if let Some(m) = world.migrations.get(m) {
                        let owns = world.owned.owner == m.source && world.owned.epoch == m.epoch;
                        prop_assert_eq!(owns, matches!(verdict, Some(Verdict::Refused { .. })));
                    }
                }
            }
        }
    }

    #[test]
    fn a_verdict_is_the_same_when_asked_again(steps in steps(), m in 0..6usize) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Plan(to) => world.plan(to),
                Step::Start(on) => world.start(on),
                Step::Abort(m) => world.abort(m),
                Step::Claim(m) => { world.claim(m); }
                Step::TakeOver(m) => { world.claim_with(m, Witness::SourceDead); }
                Step::Commit(m) => { world.commit(m); }
            }
        }
        let again = (world.claim(m), world.claim(m));
        prop_assert_eq!(&again.0, &again.1);
        let again = (world.commit(m), world.commit(m));
        prop_assert_eq!(&again.0, &again.1);
    }
}

#[test]
fn a_destination_that_holds_the_locks_of_a_dead_source_takes_over_at_once_and_for_good() {
    let mut world = planned();
    let epoch = Epoch(2);
    let blind = Witness::Blind { reason: "no disk".into() };
    for witness in [Witness::None, blind] {
        assert_eq!(world.claim_with(0, witness), Some(Verdict::Undecided));
    }
    assert_eq!(world.claim_with(0, Witness::SourceDead), Some(Verdict::Granted { epoch }));
    assert_eq!(world.owned, Ownership { vm: VM, owner: host(1), epoch, claimed: true });
    assert!(world.migrations[0].taken_over);
    // A source that was not dead after all may never run the VM again; nor can the attempt be aborted.
    assert_eq!(world.commit(0), Some(Verdict::Granted { epoch }));
    assert_eq!(world.claim(0), Some(Verdict::Granted { epoch }));
    world.abort(0);
    assert_eq!(world.migrations[0].state, MigrationState::Claimed);
    assert!(world.migrations[0].taken_over);
}

#[test]
fn nobody_takes_over_a_vm_that_was_to_stay_or_has_moved_on() {
    let mut world = planned();
    world.abort(0);
    assert!(matches!(world.claim_with(0, Witness::SourceDead), Some(Verdict::Refused { .. })));
    let mut world = planned();
    world.migrations[0].state = MigrationState::Aborted;
    world.start(2);
    world.migrations[0].state = MigrationState::Running;
    assert!(matches!(world.claim_with(0, Witness::SourceDead), Some(Verdict::Refused { .. })));
}

fn planned() -> World {
    let mut world = World::new();
    world.plan(1);
    world
}

#[test]
fn a_commit_and_then_a_claim_are_granted_and_granted_again() {
    let mut world = planned();
    let epoch = Epoch(2);
    for _ in 0..2 {
        assert_eq!(world.commit(0), Some(Verdict::Granted { epoch }));
    }
    assert!(!world.owned.claimed);
    for _ in 0..2 {
        assert_eq!(world.claim(0), Some(Verdict::Granted { epoch }));
    }
    assert_eq!(world.owned, Ownership { vm: VM, owner: host(1), epoch, claimed: true });
    assert_eq!(world.migrations[0].state, MigrationState::Claimed);
    assert_eq!(world.commit(0), Some(Verdict::Granted { epoch }));
}

#[test]
fn a_claim_before_the_commit_is_undecided_and_changes_nothing() {
    let mut world = planned();
    assert_eq!(world.claim(0), Some(Verdict::Undecided));
    assert_eq!(world.owned.owner, host(0));
}

#[test]
fn after_an_abort_both_sides_are_refused() {
    let mut world = planned();
    world.abort(0);
    assert!(matches!(world.commit(0), Some(Verdict::Refused { .. })));
    assert!(matches!(world.claim(0), Some(Verdict::Refused { .. })));
    assert_eq!((world.owned.owner, world.owned.epoch), (host(0), Epoch(1)));
}

#[test]
fn after_a_commit_an_abort_comes_too_late() {
    let mut world = planned();
    world.commit(0);
    world.abort(0);
    assert_eq!(world.migrations[0].state, MigrationState::Committed);
    assert_eq!(world.claim(0), Some(Verdict::Granted { epoch: Epoch(2) }));
}

#[test]
fn a_request_that_does_not_fit_the_plan_is_refused() {
    let world = planned();
    let owned = Some(&world.owned);
    let right = world.commit_request(0).unwrap();
    for wrong in [
        CommitRequest { destination: host(2), ..right.clone() },
        CommitRequest { epoch: Epoch(9), ..right.clone() },
    ] {
        let decision = commit(owned, world.migrations.first(), &wrong);
        assert!(matches!(decision.verdict, Verdict::Refused { .. }), "{wrong:?}: {decision:?}");
        assert_eq!(decision.change, None);
    }
    let unknown = commit(owned, None, &right);
    assert!(matches!(unknown.verdict, Verdict::Refused { .. }));
    let claim_by_another = ClaimRequest { host: host(2), ..world.claim_request(0).unwrap() };
    let decision = claim(owned, world.migrations.first(), &claim_by_another);
    assert!(matches!(decision.verdict, Verdict::Refused { .. }));
    let nobody = commit(None, world.migrations.first(), &right);
    assert!(matches!(nobody.verdict, Verdict::Refused { .. }));
}

#[test]
fn a_destination_that_claims_after_the_vm_was_started_elsewhere_is_refused() {
    let mut world = planned();
    world.commit(0);
    world.start(2);
    assert!(matches!(world.claim(0), Some(Verdict::Refused { .. })));
    // And the source, which lost the VM by that commit, is still told to let go.
    assert!(matches!(world.commit(0), Some(Verdict::Granted { .. })));
}
