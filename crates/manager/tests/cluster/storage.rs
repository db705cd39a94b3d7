//! Disks that move to another datastore of their host.

use godwit_types::agent::{LocalState, StopVm};
use godwit_types::storage::MoveStorage;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::VmState;
use godwit_types::{ApiError, ErrorCode};
use uuid::Uuid;

use super::Cluster;

/// A cluster whose host `a` has two datastores, and a VM that runs on it.
async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    {
        let mut known = cluster.a.known();
        known.facts.datastores[0].id = Some(Uuid::from_u128(1));
        let mut fast = known.facts.datastores[0].clone();
        (fast.name, fast.id) = ("fast".parse().unwrap(), Some(Uuid::from_u128(2)));
        known.facts.datastores.push(fast);
    }
    cluster.running("web1").await;
    let told = async |c: &Cluster| {
        c.get::<godwit_types::host::Host>("/v1/hosts/a").await.facts.datastores.len() == 2
    };
    cluster.until("the manager knows of both", told).await;
    cluster
}

async fn try_move(cluster: &Cluster, to: &str) -> Result<Task, ApiError> {
    try_move_of(cluster, "web1", to).await
}

async fn try_move_of(cluster: &Cluster, vm: &str, to: &str) -> Result<Task, ApiError> {
    let asked = MoveStorage { to: to.parse().unwrap(), disks: Vec::new(), bandwidth_bytes_per_s_max: None };
    cluster.client.post(&format!("/v1/vms/{vm}/move-storage"), &asked).await
}

async fn image(cluster: &Cluster) -> String {
    cluster.vm("web1").await.spec.disks[0].image.to_string()
}

/// What the host was asked for since the VM was started.
fn asked(cluster: &Cluster) -> Vec<String> {
    let requests = cluster.a.known().requests.clone();
    requests.into_iter().filter(|request| request != "POST start").collect()
}

async fn until_asked(cluster: &Cluster, what: &str) {
    cluster.until(what, async |c| c.a.was_asked(what)).await;
}

#[tokio::test]
async fn a_disk_moves_while_its_vm_runs_and_is_specified_in_its_new_place() {
    let cluster = cluster().await;
    cluster.a.script(|script| script.hold_copy = true);
    let task = try_move(&cluster, "fast").await.unwrap();
    let shown = async |c: &Cluster| c.task(task.id).await.storage.is_some();
    cluster.until("progress is shown", shown).await;
    let vm = cluster.vm("web1").await;
    assert_eq!((vm.state, vm.task), (VmState::Running, Some(task.id)), "its guest notices nothing");
    assert_eq!(image(&cluster).await, "shared/web1.raw");
    for refused in [cluster.try_migrate("web1", "b").await, try_move(&cluster, "fast").await] {
        let error = refused.unwrap_err();
        assert!(error.message.contains("moving disks to 'fast'"), "{error}");
    }
    cluster.a.script(|script| script.hold_copy = false);
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
    assert_eq!(image(&cluster).await, "fast/web1.raw");
    let order = ["POST storage 0 to fast/web1.raw", "POST hold", "POST switch"].map(str::to_owned);
    let asked = asked(&cluster);
    assert_eq!(asked[..3], order);
    assert!(asked[3].starts_with("POST left") && asked[3].contains("shared"), "{asked:?}");
    assert!(cluster.event_kinds().await.contains(&"vm.storage_moved".to_owned()));
    cluster.end().await;
}

#[tokio::test]
async fn a_move_that_cannot_work_is_refused_before_anything_is_made() {
    let cluster = cluster().await;
    let refused = try_move(&cluster, "slow").await.unwrap_err();
    assert!(refused.code == ErrorCode::Refused && refused.message.contains("'slow'"), "{refused}");
    let refused = try_move(&cluster, "shared").await.unwrap_err();
    assert!(refused.message.contains("already") && refused.remedy.is_some(), "{refused}");
    cluster.create("web2").await;
    let refused = try_move_of(&cluster, "web2", "slow").await;
    assert!(refused.unwrap_err().message.contains("no host that is up has both"));
    assert_eq!(self::asked(&cluster), Vec::<String>::new());
    cluster.end().await;
}

#[tokio::test]
async fn a_move_that_is_cancelled_or_fails_leaves_the_disk_where_it_is_and_the_next_succeeds() {
    let cluster = cluster().await;
    cluster.a.script(|script| script.hold_copy = true);
    let task = try_move(&cluster, "fast").await.unwrap();
    until_asked(&cluster, "POST storage 0 to fast/web1.raw").await;
    cluster.cancel(task.id).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Cancelled);
    assert!(cluster.a.was_asked("DELETE storage"));
    assert_eq!(cluster.a.storage_leftovers(), []);

    let full = ApiError::new(ErrorCode::Failed, "No space left on device");
    cluster.a.script(|script| script.storage_error = Some(full.clone()));
    let task = try_move(&cluster, "fast").await.unwrap();
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error), (TaskState::Failed, Some(full)));
    assert_eq!(cluster.a.storage_leftovers(), []);

    // In sync when it is looked at, and not when it is to stay so.
    let broken = ApiError::new(ErrorCode::Failed, "the new image has failed");
    cluster.a.script(|script| {
        (script.hold_copy, script.storage_error, script.hold_error) = (false, None, Some(broken.clone()));
    });
    let task = try_move(&cluster, "fast").await.unwrap();
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error), (TaskState::Failed, Some(broken)));
    assert!(!cluster.a.was_asked("POST switch"));
    assert_eq!(image(&cluster).await, "shared/web1.raw");

    cluster.a.script(|script| script.hold_error = None);
    let task = try_move(&cluster, "fast").await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_that_crashes_while_its_disk_moves_has_it_where_it_was() {
    let cluster = cluster().await;
    cluster.a.script(|script| script.hold_copy = true);
    let task = try_move(&cluster, "fast").await.unwrap();
    until_asked(&cluster, "POST storage 0 to fast/web1.raw").await;
    let vm = cluster.vm("web1").await;
    // As an agent does: its process is gone, and it remembers how that ended.
    cluster.a.known().storage.clear();
    cluster.a.set_vm(vm.id, &vm.name, 1, LocalState::Crashed);
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Failed);
    assert!(ended.message.contains("crashed on a"), "{}", ended.message);
    cluster.vm_is("web1", VmState::Crashed).await;
    assert_eq!(image(&cluster).await, "shared/web1.raw");
    cluster.end().await;
}

#[tokio::test]
async fn a_move_goes_on_under_the_next_manager_before_and_behind_its_switch() {
    let mut cluster = cluster().await;
    cluster.a.script(|script| (script.hold_copy, script.refuses_switch) = (true, true));
    let task = try_move(&cluster, "fast").await.unwrap();
    until_asked(&cluster, "POST storage 0 to fast/web1.raw").await;
    cluster.stop_manager().await;
    cluster.a.script(|script| script.hold_copy = false);
    cluster.start_manager().await;
    cluster.until("the record has changed", async |c| image(c).await == "fast/web1.raw").await;
    cluster.stop_manager().await;
    cluster.a.script(|script| script.refuses_switch = false);
    cluster.start_manager().await;
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert!(cluster.a.was_asked("POST switch"));
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_could_not_be_told_is_told_when_it_reports() {
    let cluster = cluster().await;
    // The record has changed: both images are kept the same until the host knows.
    cluster.a.script(|script| script.refuses_switch = true);
    let task = try_move(&cluster, "fast").await.unwrap();
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Failed);
    assert!(ended.message.contains("has not been told"), "{}", ended.message);
    assert_eq!(image(&cluster).await, "fast/web1.raw");
    assert!(!asked(&cluster).iter().any(|request| request.starts_with("POST left")));
    cluster.a.script(|script| script.refuses_switch = false);
    until_asked(&cluster, "POST switch").await;
    let removed = async |c: &Cluster| asked(c).iter().any(|request| request.starts_with("POST left"));
    cluster.until("what was left is removed", removed).await;

    cluster.a.script(|script| (script.hold_copy, script.refuses_cancel) = (true, true));
    let task = try_move(&cluster, "shared").await.unwrap();
    // Before, there is nothing that it could be told of.
    until_asked(&cluster, "POST storage 0 to shared/web1.raw").await;
    cluster.cancel(task.id).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Cancelled);
    cluster.a.script(|script| script.refuses_cancel = false);
    until_asked(&cluster, "DELETE storage").await;
    assert_eq!(image(&cluster).await, "fast/web1.raw");
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_that_does_not_run_has_its_disks_moved_by_the_host_that_had_it_last_and_nothing_is_left() {
    let cluster = cluster().await;
    let stop = StopVm { force: true, timeout_ms: 1000 };
    let task: Task = cluster.client.post("/v1/vms/web1/stop", &stop).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.a.script(|script| script.hold_copy = true);
    cluster.a.known().requests.clear();
    let task = try_move(&cluster, "fast").await.unwrap();
    until_asked(&cluster, "POST storage at rest 0 to fast/web1.raw").await;
    let started = cluster.try_start("web1", Some("a")).await.unwrap_err();
    assert!(started.message.contains("moving disks to 'fast'"), "{started}");
    cluster.a.script(|script| script.hold_copy = false);
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(image(&cluster).await, "fast/web1.raw");
    assert_eq!(cluster.vm("web1").await.state, VmState::Stopped);
    let asked = asked(&cluster);
    let order = ["POST disks at 1", "POST storage at rest 0 to fast/web1.raw", "POST hold", "POST switch"];
    assert_eq!(asked[..4], order);
    assert!(asked[4].starts_with("POST left") && asked[4].contains("shared"), "{asked:?}");
    cluster.end().await;
}

#[tokio::test]
async fn what_a_vm_at_rest_has_left_is_removed_later_if_it_could_not_be_at_once() {
    let cluster = cluster().await;
    cluster.create("web2").await;
    cluster.a.script(|script| script.keeps_left = true);
    let task = try_move_of(&cluster, "web2", "fast").await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    let vm = cluster.vm("web2").await;
    assert_eq!(vm.owner, Some("a".parse().unwrap()), "whoever has its disks first owns it");
    assert!(cluster.event_kinds().await.contains(&"vm.disk_left".to_owned()));
    cluster.a.script(|script| script.keeps_left = false);
    let removed = async |c: &Cluster| asked(c).iter().any(|request| request.starts_with("POST left"));
    cluster.until("what was left is removed", removed).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_copy_that_has_ended_with_its_agent_leaves_the_disk_where_it_is() {
    let cluster = cluster().await;
    cluster.create("web2").await;
    cluster.a.script(|script| script.hold_copy = true);
    let task = try_move_of(&cluster, "web2", "fast").await.unwrap();
    until_asked(&cluster, "POST storage at rest 0 to fast/web1.raw").await;
    cluster.a.known().storage.clear();
    let ended = cluster.ended(task.id).await;
    assert!(ended.state == TaskState::Failed && ended.message.contains("stay where they are"), "{ended:?}");
    assert_eq!(cluster.vm("web2").await.spec.disks[0].image.to_string(), "shared/web1.raw");
    assert_eq!(cluster.vm("web2").await.state, VmState::Stopped);
    assert!(cluster.a.was_asked("DELETE storage"));
    cluster.end().await;
}
