//! Hosts that are emptied to be patched.

use godwit_scheduler::record::Emptying;
use godwit_types::api::Empty;
use godwit_types::host::Host;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::VmState;
use godwit_types::{ApiError, ErrorCode};

use super::Cluster;

impl Cluster {
    /// VMs `web1` and on that run on `a`.
    async fn with_vms(vms: usize) -> Self {
        let cluster = Self::start().await;
        for number in 1..=vms {
            cluster.running(&format!("web{number}")).await;
        }
        cluster
    }

    async fn enter(&self, host: &str) -> Result<Task, ApiError> {
        self.client.post(&format!("/v1/hosts/{host}/maintenance"), &()).await
    }

    async fn exit(&self, host: &str) -> Result<Empty, ApiError> {
        self.client.delete(&format!("/v1/hosts/{host}/maintenance")).await
    }

    async fn host(&self, host: &str) -> Host {
        self.get(&format!("/v1/hosts/{host}")).await
    }

    async fn owner(&self, vm: &str) -> String {
        self.vm(vm).await.owner.unwrap().to_string()
    }

    async fn says(&self, task: &Task, text: &str) {
        let says = async |c: &Self| c.task(task.id).await.message.contains(text);
        self.until(&format!("the task says '{text}'"), says).await;
    }
}

#[tokio::test]
async fn vms_on_local_disks_take_them_along_if_that_was_said_and_else_are_named() {
    let cluster = Cluster::with_vms(1).await;
    for (agent, id) in [(&cluster.a, 1), (&cluster.b, 2)] {
        agent.known().facts.datastores[0].id = Some(uuid::Uuid::from_u128(id));
    }
    let plan = async |c: &Cluster, asked: &str| {
        let emptied: Emptying = c.get(&format!("/v1/hosts/a/maintenance{asked}")).await;
        (emptied.plan.steps.len(), emptied.plan.unmoved.len())
    };
    let told = async |c: &Cluster| plan(c, "").await == (0, 1) && plan(c, "?move_disks=true").await == (1, 0);
    cluster.until("the disk could go along", told).await;
    let stuck = cluster.enter("a").await.unwrap();
    cluster.says(&stuck, "web1 cannot leave: b: it does not reach 'shared.a', and disks stay unless").await;
    cluster.exit("a").await.unwrap();
    cluster.ended(stuck.id).await;
    let task: Task = cluster.client.post("/v1/hosts/a/maintenance?move_disks=true", &()).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.owner("web1").await, "b");
    assert!(cluster.host("a").await.maintenance.unwrap().move_disks);
    assert_eq!(cluster.b.known().arriving.len(), 1, "its disk has moved, too");
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_enters_maintenance_is_emptied_and_gets_no_vm_until_it_leaves() {
    let cluster = Cluster::with_vms(3).await;
    let task = cluster.enter("a").await.unwrap();
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
    for vm in ["web1", "web2", "web3"] {
        assert_eq!((cluster.owner(vm).await.as_str(), cluster.vm(vm).await.state), ("b", VmState::Running));
    }
    assert!(cluster.host("a").await.maintenance.unwrap().empty);
    cluster.create("web4").await;
    for refused in [cluster.try_start("web4", Some("a")).await, cluster.try_migrate("web1", "a").await] {
        let error = refused.unwrap_err();
        assert_eq!(error.code, ErrorCode::Refused);
        assert!(error.message.contains("a is in maintenance"), "{error}");
    }
    let started = cluster.try_start("web4", None).await.unwrap();
    cluster.ended(started.id).await;
    assert_eq!(cluster.owner("web4").await, "b", "the scheduler places it elsewhere");
    cluster.exit("a").await.unwrap();
    assert_eq!(cluster.host("a").await.maintenance, None);
    let back = cluster.migrate("web1", "a").await;
    assert_eq!(cluster.ended(back.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.exit("a").await.unwrap_err().code, ErrorCode::Conflict);
    cluster.end().await;
}

#[tokio::test]
async fn an_empty_host_enters_at_once_and_nobody_enters_twice() {
    let cluster = Cluster::start().await;
    let task = cluster.enter("a").await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    let again = cluster.enter("a").await.unwrap_err();
    assert_eq!(again.code, ErrorCode::Conflict);
    assert!(again.remedy.unwrap().contains(&task.id.to_string()));
    assert_eq!(cluster.enter("z").await.unwrap_err().code, ErrorCode::NotFound);
    cluster.end().await;
}

#[tokio::test]
async fn no_more_move_at_once_than_the_hosts_take_and_none_waits_in_the_queue() {
    let cluster = Cluster::with_vms(4).await;
    cluster.allow(&cluster.a, 2).await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "0 of 4 VMs have left a, 2 move").await;
    let all: Vec<Task> = cluster.get("/v1/tasks").await;
    assert!(all.iter().all(|task| task.state != TaskState::Waiting), "{all:#?}");
    cluster.a.script(|script| script.hold_commit = false);
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn exit_while_entering_ends_it_and_the_vms_that_have_not_left_stay() {
    let cluster = Cluster::with_vms(3).await;
    cluster.allow(&cluster.a, 1).await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "1 move").await;
    cluster.exit("a").await.unwrap();
    let ended = cluster.ended(task.id).await;
    assert_eq!((ended.state, ended.error.unwrap().code), (TaskState::Cancelled, ErrorCode::Cancelled));
    cluster.a.script(|script| script.hold_commit = false);
    cluster.vm_is("web1", VmState::Running).await;
    cluster.until("what was under way has ended", async |c| c.owner("web1").await == "b").await;
    assert_eq!((cluster.owner("web2").await, cluster.owner("web3").await), ("a".into(), "a".into()));
    assert_eq!(cluster.host("a").await.maintenance, None);
    cluster.end().await;
}

#[tokio::test]
async fn a_cancelled_task_ends_the_maintenance() {
    let cluster = Cluster::with_vms(1).await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "1 move").await;
    cluster.cancel(task.id).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Cancelled);
    assert_eq!(cluster.host("a").await.maintenance, None);
    cluster.a.script(|script| script.hold_commit = false);
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_whose_move_fails_says_why_and_is_tried_again_until_the_host_is_empty() {
    let cluster = Cluster::with_vms(2).await;
    let refused = ApiError::new(ErrorCode::Failed, "the cable was pulled");
    cluster.a.script(|script| script.outgoing_error = Some(refused));
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "web1 cannot leave: its last move, to b, failed: the cable was pulled").await;
    cluster.a.script(|script| script.outgoing_error = None);
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.owner("web1").await, "b");
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_for_which_there_is_no_host_keeps_the_task_open_and_is_named() {
    let cluster = Cluster::with_vms(1).await;
    cluster.b.known().facts.networks.clear();
    cluster.until("b offers nothing", async |c| c.host("b").await.facts.networks.is_empty()).await;
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "web1 cannot leave").await;
    let lan = cluster.a.known().facts.networks.clone();
    cluster.b.known().facts.networks = lan;
    cluster.until("b offers it", async |c| !c.host("b").await.facts.networks.is_empty()).await;
    let _: serde_json::Value =
        cluster.client.post("/v1/scheduler/run", &serde_json::json!({"goal": "balance"})).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_is_lost_while_it_is_emptied_is_waited_for() {
    let cluster = Cluster::with_vms(2).await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "2 move").await;
    cluster.a.die();
    cluster.says(&task, "a is not heard from").await;
    assert_eq!(cluster.task(task.id).await.state, TaskState::Running);
    cluster.exit("a").await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Cancelled);
    cluster.end().await;
}

#[tokio::test]
async fn the_next_manager_goes_on_emptying_a_host() {
    let mut cluster = Cluster::with_vms(3).await;
    cluster.allow(&cluster.a, 1).await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.enter("a").await.unwrap();
    cluster.says(&task, "1 move").await;
    cluster.stop_manager().await;
    cluster.start_manager().await;
    cluster.a.script(|script| script.hold_commit = false);
    let ended = cluster.ended(task.id).await;
    assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
    for vm in ["web1", "web2", "web3"] {
        assert_eq!(cluster.owner(vm).await, "b");
    }
    let refused = cluster.try_migrate("web1", "a").await.unwrap_err();
    assert!(refused.message.contains("a is in maintenance"), "{refused}");
    cluster.end().await;
}

#[tokio::test]
async fn what_emptying_a_host_would_do_is_told_and_nothing_moves() {
    let cluster = Cluster::with_vms(2).await;
    let told: Emptying = cluster.get("/v1/hosts/a/maintenance").await;
    assert_eq!((told.vms.len(), told.plan.steps.len(), told.plan.unmoved.len()), (2, 2, 0));
    let tasks: Vec<Task> = cluster.get("/v1/tasks").await;
    assert!(tasks.iter().all(|task| task.vm.is_some() && task.state.is_final()));
    assert_eq!((cluster.owner("web1").await.as_str(), cluster.host("a").await.maintenance), ("a", None));
    cluster.end().await;
}
