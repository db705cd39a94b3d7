//! VMs that are defined, started, stopped, that crash, and hosts that fall silent.

use godwit_api::CONSOLE_PROTOCOL;
use godwit_types::agent::{LocalState, StopVm};
use godwit_types::api::Empty;
use godwit_types::host::{HostState, KeptMemory};
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::{Vm, VmState};
use godwit_types::{ApiError, Bytes, Epoch, ErrorCode, VmId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use super::Cluster;

async fn stop(cluster: &Cluster, name: &str) -> Result<Task, ApiError> {
    let asked = StopVm { force: false, timeout_ms: 1000 };
    cluster.client.post(&format!("/v1/vms/{name}/stop"), &asked).await
}

#[tokio::test]
async fn a_vm_is_defined_started_where_it_fits_best_stopped_and_forgotten() {
    let cluster = Cluster::start().await;
    let made = cluster.create("web1").await;
    assert_eq!((made.state, made.epoch, made.owner), (VmState::Stopped, Epoch(0), None));
    assert!(made.spec.nics[0].mac.is_some());

    cluster.b.known().facts.memory_available = Bytes::mib(3000);
    cluster
        .until("the manager knows of b's memory", async |c| {
            c.get::<godwit_types::host::Host>("/v1/hosts/b").await.facts.memory_available == Bytes::mib(3000)
        })
        .await;
    let task = cluster.try_start("web1", None).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    let vm = cluster.vm("web1").await;
    assert_eq!((vm.state, vm.epoch, vm.task), (VmState::Running, Epoch(1), None));
    assert_eq!(vm.owner.unwrap().as_str(), "b");
    assert_eq!(cluster.b.vm_state(vm.id), Some(LocalState::Running));
    assert_eq!(cluster.vm(&vm.id.to_string()).await.name, vm.name);

    let refused = cluster.client.delete::<Empty>("/v1/vms/web1").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    let again = cluster.try_start("web1", None).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::Conflict);
    let task = stop(&cluster, "web1").await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.vm("web1").await.state, VmState::Stopped);
    assert_eq!(stop(&cluster, "web1").await.unwrap_err().code, ErrorCode::Refused);
    cluster.client.delete::<Empty>("/v1/vms/web1").await.unwrap();
    assert_eq!(cluster.get::<Vec<Vm>>("/v1/vms").await, []);
    let kinds = cluster.event_kinds().await;
    let about_vm: Vec<&str> =
        kinds.iter().map(String::as_str).filter(|kind| kind.starts_with("vm.")).collect();
    assert_eq!(about_vm, ["vm.created", "vm.started", "vm.stopped", "vm.deleted"]);
    cluster.end().await;
}

#[tokio::test]
async fn an_agents_refusal_reaches_the_user_and_a_second_start_succeeds() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    let why = ApiError::new(ErrorCode::Refused, "the kernel is missing").remedy("copy it");
    cluster.a.script(|script| script.start_error = Some(why.clone()));
    let task = cluster.try_start("web1", Some("a")).await.unwrap();
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error), (TaskState::Failed, Some(why)));
    assert!(ended.message.contains("kernel is missing; copy it"), "{}", ended.message);
    assert_eq!(cluster.vm("web1").await.state, VmState::Stopped);
    cluster.a.script(|script| script.start_error = None);
    let task = cluster.try_start("web1", Some("a")).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.vm("web1").await.epoch, Epoch(2));
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_lacks_something_refuses_a_start_with_the_reason() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    cluster.a.known().facts.networks.clear();
    cluster.until("the manager knows", async |c| c.try_start("web1", Some("a")).await.is_err()).await;
    let error = cluster.try_start("web1", Some("a")).await.unwrap_err();
    if error.code == ErrorCode::Refused {
        assert!(error.message.contains("'lan'"), "{}", error.message);
    }
    cluster.end().await;
}

#[tokio::test]
async fn crashed_and_shut_down_guests_are_seen_and_can_be_started_again() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.set_vm(vm.id, &vm.name, 1, LocalState::Crashed);
    cluster.vm_is("web1", VmState::Crashed).await;
    cluster.a.set_vm(vm.id, &vm.name, 1, LocalState::Stopped);
    let task = cluster.try_start("web1", Some("a")).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.a.set_vm(vm.id, &vm.name, 2, LocalState::Stopped);
    cluster.vm_is("web1", VmState::Stopped).await;
    let kinds = cluster.event_kinds().await;
    assert!(
        kinds.contains(&"vm.crashed".to_owned()) && kinds.contains(&"vm.stopped".to_owned()),
        "{kinds:?}"
    );
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_that_its_owner_no_longer_names_has_crashed() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.known().vms.remove(&vm.id);
    cluster.vm_is("web1", VmState::Crashed).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_host_forgets_the_memory_of_a_vm_that_was_removed_and_of_no_other() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    let kept = |vm| KeptMemory { vm, name: "web1".parse().unwrap(), memory: Bytes::mib(1), age_ms: 0 };
    let removed = VmId(Uuid::from_u128(77));
    cluster.b.known().facts.kept = vec![kept(removed), kept(vm.id)];
    let forgotten = async |c: &Cluster| !c.b.known().facts.kept.contains(&kept(removed));
    cluster.until("it is forgotten", forgotten).await;
    assert_eq!(cluster.b.known().facts.kept, [kept(vm.id)]);
    cluster.end().await;
}

#[tokio::test]
async fn a_second_host_that_runs_the_vm_is_reported_and_does_not_become_the_owner() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.b.set_vm(vm.id, &vm.name, 1, LocalState::Running);
    cluster.until("it is reported", async |c| c.event_kinds().await.contains(&"vm.stray".to_owned())).await;
    let after = cluster.vm("web1").await;
    assert_eq!((after.owner, after.epoch, after.state), (vm.owner, vm.epoch, VmState::Running));
    let events = cluster.events().await;
    let stray = events.iter().find(|event| event.kind == "vm.stray").unwrap();
    assert_eq!(stray.host.as_ref().unwrap().as_str(), "b");
    assert!(
        stray.message.contains("find out why"),
        "at one epoch nobody can tell which copy is right: {stray:?}"
    );
    assert!(!cluster.b.known().requests.iter().any(|request| request.contains("fence")));
    cluster.end().await;
}

#[tokio::test]
async fn a_copy_that_a_host_brings_back_at_an_old_epoch_is_ended() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    cluster.a.set_vm(vm.id, &vm.name, 1, LocalState::Stopped);
    cluster.vm_is("web1", VmState::Stopped).await;
    let task = cluster.try_start("web1", Some("b")).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.a.set_vm(vm.id, &vm.name, 1, LocalState::Running);
    cluster.until("it is ended", async |c| c.a.vm_state(vm.id).is_none()).await;
    assert!(cluster.a.was_asked("POST fence before 2 of b"), "{:?}", cluster.a.known().requests);
    let stray = cluster.events().await.into_iter().find(|event| event.kind == "vm.stray").unwrap();
    assert!(stray.message.contains("left behind"), "{stray:?}");
    let after = cluster.vm("web1").await;
    assert_eq!((after.owner.unwrap().as_str(), after.state), ("b", VmState::Running));
    cluster.end().await;
}

#[tokio::test]
async fn a_silent_host_is_down_its_vms_are_unknown_and_are_not_started_elsewhere() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.a.die();
    cluster.until("a is down", async |c| c.host_state("a").await == Some(HostState::Down)).await;
    assert_eq!(cluster.vm("web1").await.state, VmState::Unknown);
    let error = cluster.try_start("web1", Some("b")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("may still run on a"), "{}", error.message);
    let error = cluster.try_migrate("web1", "b").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(cluster.event_kinds().await.contains(&"host.down".to_owned()));
    cluster.end().await;
}

#[tokio::test]
async fn the_console_is_carried_through() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    let error = cluster.client.upgrade("/v1/vms/web1/console", CONSOLE_PROTOCOL).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    cluster.end().await;

    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    let mut console = cluster.client.upgrade("/v1/vms/web1/console", CONSOLE_PROTOCOL).await.unwrap();
    console.write_all(b"root\n").await.unwrap();
    let mut answer = String::new();
    console.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "login: ");
    let plain = cluster.client.get::<Empty>("/v1/vms/web1/console").await.unwrap_err();
    assert_eq!(plain.code, ErrorCode::Invalid);
    cluster.end().await;
}

#[tokio::test]
async fn events_are_streamed_as_they_happen() {
    let cluster = Cluster::start().await;
    let after = cluster.events().await.last().unwrap().sequence;
    let mut events = cluster.client.events("/v1/events", after);
    cluster.create("web1").await;
    let first = events.next().await.unwrap();
    assert_eq!((first.kind.as_str(), first.sequence), ("vm.created", after + 1));
    let task = cluster.try_start("web1", None).await.unwrap();
    let second = events.next().await.unwrap();
    assert_eq!((second.kind.as_str(), second.task), ("vm.started", Some(task.id)));
    assert_eq!(cluster.vm("web1").await.last_event, Some(second.message));
    cluster.end().await;
}
