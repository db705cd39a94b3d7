//! Moves that succeed, and moves that fail at every place.

use godwit_types::agent::LocalState;
use godwit_types::migration::Comparison;
use godwit_types::ownership::{ClaimRequest, CommitRequest, Verdict, Witness};
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::{Vm, VmState};
use godwit_types::{ApiError, Epoch, ErrorCode, MigrationId};

use super::Cluster;

impl Cluster {
    /// The migration that `a` was asked for, once it was.
    async fn under_way(&self) -> MigrationId {
        self.until("a migrates", async |c| !c.a.known().outgoing.is_empty()).await;
        *self.a.known().outgoing.keys().last().unwrap()
    }

    /// Where the record says the VM is, and that it is well there.
    async fn runs_on(&self, vm: &Vm, host: &str, epoch: u64) {
        self.vm_is(vm.name.as_str(), VmState::Running).await;
        let now = self.vm(vm.name.as_str()).await;
        assert_eq!((now.owner.unwrap().as_str(), now.epoch), (host, Epoch(epoch)));
        let agent = if host == "a" { &self.a } else { &self.b };
        assert_eq!(agent.vm_state(vm.id), Some(LocalState::Running));
    }

    async fn moves(&self, vm: &Vm, to: &str) -> Task {
        let task = self.migrate(vm.name.as_str(), to).await;
        let ended = self.ended(task.id).await;
        assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
        ended
    }
}

fn late_commit(vm: &Vm, migration: MigrationId) -> CommitRequest {
    let (source, destination) = ("a".parse().unwrap(), "b".parse().unwrap());
    CommitRequest { vm: vm.id, migration, source, epoch: vm.epoch, destination }
}

fn late_claim(vm: &Vm, migration: MigrationId) -> ClaimRequest {
    let (host, epoch) = ("b".parse().unwrap(), vm.epoch.next());
    ClaimRequest { vm: vm.id, migration, host, epoch, witness: Witness::None }
}

#[tokio::test]
async fn a_vm_moves_there_and_back_and_each_move_reports_what_it_cost() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    let there = cluster.moves(&vm, "b").await;
    assert_eq!(there.report.as_ref().unwrap().blackout.total_ms, 12.5);
    assert!(there.message.contains("from a to b") && there.message.contains("12.5 ms"), "{}", there.message);
    cluster.runs_on(&vm, "b", 2).await;
    assert_eq!(cluster.a.vm_state(vm.id), None);
    cluster.moves(&vm, "a").await;
    cluster.runs_on(&vm, "a", 3).await;
    let kinds = cluster.event_kinds().await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "vm.migrated").count(), 2);
    assert!(!kinds.iter().any(|kind| kind == "vm.stray" || kind == "vm.crashed"), "{kinds:?}");
    cluster.end().await;
}

#[tokio::test]
async fn whether_memory_arrived_as_it_was_is_told_with_the_move_and_as_an_event_if_not() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.script(|script| script.verified = Some(Comparison::Same));
    let there = cluster.moves(&vm, "b").await;
    assert!(there.message.contains("memory verified"), "{}", there.message);
    cluster.b.script(|script| script.verified = Some(Comparison::Different));
    let back = cluster.moves(&vm, "a").await;
    assert!(back.message.contains("NOT WHAT IT WAS") && back.report.is_some(), "{}", back.message);
    cluster.runs_on(&vm, "a", 3).await;
    assert!(cluster.event_kinds().await.contains(&"vm.memory_differs".to_owned()));
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_moves_with_its_disk_and_what_it_leaves_is_removed_as_soon_as_that_can_be_done() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    for (agent, id) in [(&cluster.a, 1), (&cluster.b, 2)] {
        agent.known().facts.datastores[0].id = Some(uuid::Uuid::from_u128(id));
    }
    let told = async |c: &Cluster, host: &str| {
        c.get::<godwit_types::host::Host>(&format!("/v1/hosts/{host}")).await.facts.datastores[0].id.is_some()
    };
    cluster.until("the manager knows", async |c| told(c, "a").await && told(c, "b").await).await;
    let refused = cluster.try_migrate("web1", "b").await.unwrap_err();
    assert!(refused.message.contains("does not share"), "{refused}");
    assert!(refused.remedy.unwrap().contains("--move-disks"));
    cluster.a.script(|script| script.keeps_left = true);
    let task = cluster.migrate_with_disks("web1", "b").await;
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
    assert!(cluster.b.known().arriving.iter().any(|disk| disk.size == godwit_types::Bytes::mib(9)));
    assert!(cluster.event_kinds().await.iter().any(|kind| kind == "vm.disk_left"));
    cluster.a.script(|script| script.keeps_left = false);
    let removed =
        |agent: &super::Agent| agent.known().requests.iter().any(|seen| seen.starts_with("POST left"));
    cluster.until("it is removed", async |c| removed(&c.a)).await;
    cluster.runs_on(&vm, "b", 2).await;
    cluster.end().await;
}

#[tokio::test]
async fn progress_is_shown_and_a_second_task_on_the_same_vm_is_refused() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.migrate("web1", "b").await;
    cluster
        .until("progress is shown", async |c| c.task(task.id).await.progress.is_some_and(|p| p.round == 3))
        .await;
    assert_eq!(cluster.vm("web1").await.state, VmState::Migrating);
    for refused in [cluster.try_migrate("web1", "b").await, cluster.try_start("web1", None).await] {
        let error = refused.unwrap_err();
        assert_eq!(error.code, ErrorCode::Conflict);
        assert!(error.message.contains("migrating from a to b"), "{}", error.message);
    }
    cluster.a.script(|script| script.hold_commit = false);
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.runs_on(&vm, "b", 2).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_move_that_cannot_work_is_refused_before_anything_is_built() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.b.known().facts.networks.clear();
    cluster.b.known().facts.datastores.clear();
    let knows =
        async |c: &Cluster| c.get::<godwit_types::host::Host>("/v1/hosts/b").await.facts.networks.is_empty();
    cluster.until("the manager knows", knows).await;
    let error = cluster.try_migrate("web1", "b").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("'lan'") && error.message.contains("'shared'"), "{}", error.message);
    assert!(error.remedy.unwrap().contains("--network lan="));
    assert!(!cluster.b.was_asked("POST incoming"));
    let same = cluster.try_migrate("web1", "a").await.unwrap_err();
    assert_eq!(same.code, ErrorCode::Refused);
    cluster.end().await;
}

#[tokio::test]
async fn a_destination_that_refuses_is_quoted_and_the_next_attempt_succeeds() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    let why = ApiError::new(ErrorCode::Refused, "the disk cannot be opened").remedy("mount the datastore");
    cluster.b.script(|script| script.incoming_error = Some(why.clone()));
    let task = cluster.migrate("web1", "b").await;
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error), (TaskState::Failed, Some(why)));
    assert!(ended.message.contains("stays on a"), "{}", ended.message);
    cluster.runs_on(&vm, "a", 1).await;
    cluster.b.script(|script| script.incoming_error = None);
    cluster.moves(&vm, "b").await;
    cluster.end().await;
}

#[tokio::test]
async fn a_failure_at_the_source_leaves_the_vm_there_and_the_destination_discards() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    let why = ApiError::new(ErrorCode::Failed, "the link was cut");
    cluster.a.script(|script| script.outgoing_error = Some(why.clone()));
    let task = cluster.migrate("web1", "b").await;
    assert_eq!(cluster.ended(task.id).await.error, Some(why));
    cluster.runs_on(&vm, "a", 1).await;
    assert_eq!(cluster.b.vm_state(vm.id), None);
    cluster.a.script(|script| script.outgoing_error = None);
    cluster.moves(&vm, "b").await;
    cluster.end().await;
}

#[tokio::test]
async fn a_cancelled_move_leaves_the_vm_at_the_source_and_the_next_attempt_succeeds() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.migrate("web1", "b").await;
    let migration = cluster.under_way().await;
    assert_eq!(cluster.cancel(task.id).await.unwrap().state, TaskState::Cancelling);
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error.unwrap().code), (TaskState::Cancelled, ErrorCode::Cancelled));
    assert!(cluster.a.was_asked("DELETE outgoing") && cluster.b.was_asked("DELETE incoming"));
    assert_eq!(cluster.cancel(task.id).await.unwrap_err().code, ErrorCode::Conflict);
    // Whatever was still on its way comes too late.
    assert!(matches!(cluster.arbiter("commit", &late_commit(&vm, migration)).await, Verdict::Refused { .. }));
    assert!(matches!(cluster.arbiter("claim", &late_claim(&vm, migration)).await, Verdict::Refused { .. }));
    cluster.runs_on(&vm, "a", 1).await;
    cluster.a.script(|script| script.hold_commit = false);
    cluster.moves(&vm, "b").await;
    cluster.end().await;
}

#[tokio::test]
async fn a_cancel_while_the_destination_is_still_being_built_takes_effect_at_once() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.b.script(|script| script.incoming_hangs = true);
    let task = cluster.migrate("web1", "b").await;
    cluster.until("b is asked", async |c| c.b.was_asked("POST incoming")).await;
    cluster.cancel(task.id).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Cancelled);
    cluster.runs_on(&vm, "a", 1).await;
    assert!(!cluster.a.was_asked("POST outgoing"));
    // The machine is there after all, later than the word to discard it.
    cluster.b.set_vm(vm.id, &vm.name, 2, LocalState::Incoming);
    cluster.until("b discards it", async |c| c.b.vm_state(vm.id).is_none()).await;
    cluster.b.script(|script| script.incoming_hangs = false);
    cluster.moves(&vm, "b").await;
    cluster.end().await;
}

#[tokio::test]
async fn a_source_that_dies_before_the_commit_fails_the_move_and_both_late_questions() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.migrate("web1", "b").await;
    let migration = cluster.under_way().await;
    assert_eq!(cluster.arbiter("claim", &late_claim(&vm, migration)).await, Verdict::Undecided);
    cluster.a.die();
    cluster
        .until("it says whom it waits for", async |c| {
            c.task(task.id).await.message.starts_with("waiting for a: ")
        })
        .await;
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error.unwrap().code), (TaskState::Failed, ErrorCode::Unreachable));
    assert!(matches!(cluster.arbiter("commit", &late_commit(&vm, migration)).await, Verdict::Refused { .. }));
    assert!(matches!(cluster.arbiter("claim", &late_claim(&vm, migration)).await, Verdict::Refused { .. }));
    assert_eq!(cluster.b.vm_state(vm.id), None);
    assert_eq!(cluster.vm("web1").await.owner.unwrap().as_str(), "a");
    cluster.end().await;
}

#[tokio::test]
async fn a_source_that_dies_after_the_commit_does_not_stop_the_move() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.b.script(|script| script.hold_claim = true);
    let task = cluster.migrate("web1", "b").await;
    cluster.until("it is committed", async |c| c.vm("web1").await.epoch == Epoch(2)).await;
    cluster.until("b has it", async |c| c.b.vm_state(vm.id) == Some(LocalState::Incoming)).await;
    cluster
        .until("b waits for the claim", async |c| c.a.vm_state(vm.id) == Some(LocalState::HandedOver))
        .await;
    cluster.a.die();
    // Too late, and so it is only noted.
    assert_eq!(cluster.cancel(task.id).await.unwrap().state, TaskState::Cancelling);
    cluster.b.script(|script| script.hold_claim = false);
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.report), (TaskState::Succeeded, None), "{}", ended.message);
    cluster.runs_on(&vm, "b", 2).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_destination_that_ends_after_the_commit_is_a_crash_and_its_late_claim_is_refused() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.b.script(|script| script.dies_unclaimed = true);
    let task = cluster.migrate("web1", "b").await;
    let migration = cluster.under_way().await;
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Failed, "{}", ended.message);
    assert_eq!(cluster.vm("web1").await.state, VmState::Crashed);
    cluster.a.known().vms.clear();
    let task = cluster.try_start("web1", Some("a")).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert!(matches!(cluster.arbiter("claim", &late_claim(&vm, migration)).await, Verdict::Refused { .. }));
    cluster.runs_on(&vm, "a", 3).await;
    cluster.end().await;
}
