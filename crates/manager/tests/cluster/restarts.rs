//! A manager that ends in the middle of something, and another that takes it up.

use godwit_types::Epoch;
use godwit_types::agent::LocalState;
use godwit_types::task::TaskState;
use godwit_types::vm::VmState;

use super::Cluster;

#[tokio::test]
async fn a_move_under_way_goes_on_under_the_next_manager() {
    let mut cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.migrate("web1", "b").await;
    cluster.until("it moves", async |c| c.task(task.id).await.progress.is_some()).await;
    cluster.stop_manager().await;
    cluster.a.script(|script| script.hold_commit = false);
    cluster.start_manager().await;
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
    assert!(ended.report.is_some());
    let now = cluster.vm("web1").await;
    assert_eq!((now.owner.unwrap().as_str(), now.epoch, now.state), ("b", Epoch(2), VmState::Running));
    assert_eq!(cluster.b.vm_state(vm.id), Some(LocalState::Running));
    cluster.end().await;
}

#[tokio::test]
async fn a_commit_is_remembered_and_the_claim_is_granted_by_the_next_manager() {
    let mut cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.b.script(|script| script.hold_claim = true);
    let task = cluster.migrate("web1", "b").await;
    cluster.until("it is committed", async |c| c.vm("web1").await.epoch == Epoch(2)).await;
    cluster.stop_manager().await;
    cluster.b.script(|script| script.hold_claim = false);
    cluster.start_manager().await;
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.b.vm_state(vm.id), Some(LocalState::Running));
    cluster.end().await;
}

#[tokio::test]
async fn a_move_that_had_not_begun_fails_with_what_happened_and_the_next_succeeds() {
    let mut cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.b.script(|script| script.incoming_hangs = true);
    let task = cluster.migrate("web1", "b").await;
    cluster.until("b is asked", async |c| c.b.was_asked("POST incoming")).await;
    cluster.stop_manager().await;
    cluster.b.script(|script| script.incoming_hangs = false);
    cluster.start_manager().await;
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Failed);
    assert!(ended.message.contains("restarted before the migration began"), "{}", ended.message);
    assert!(cluster.b.was_asked("DELETE incoming"));
    let task = cluster.migrate("web1", "b").await;
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn a_cancel_that_was_asked_for_is_carried_out_by_the_next_manager() {
    let mut cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.migrate("web1", "b").await;
    cluster.until("it moves", async |c| c.task(task.id).await.progress.is_some()).await;
    cluster.cancel(task.id).await.unwrap();
    cluster.stop_manager().await;
    cluster.start_manager().await;
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Cancelled);
    assert_eq!(cluster.a.vm_state(vm.id), Some(LocalState::Running));
    assert_eq!(cluster.vm("web1").await.owner.unwrap().as_str(), "a");
    cluster.end().await;
}

#[tokio::test]
async fn a_start_whose_answer_was_lost_is_found_to_have_succeeded() {
    let mut cluster = Cluster::start().await;
    cluster.create("web1").await;
    cluster.a.script(|script| script.start_hangs = true);
    let task = cluster.try_start("web1", Some("a")).await.unwrap();
    cluster.until("a is asked", async |c| c.a.was_asked("POST start")).await;
    cluster.stop_manager().await;
    cluster.start_manager().await;
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.vm("web1").await.state, VmState::Running);
    assert_eq!(cluster.a.known().requests, ["POST start"]);
    cluster.end().await;
}
