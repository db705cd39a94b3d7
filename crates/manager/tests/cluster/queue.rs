//! Several moves at once: who begins, who waits for what, and what each may send.

use godwit_types::host::Host;
use godwit_types::task::{FullHost, SetBandwidth, Task, TaskState, Turn};
use godwit_types::vm::VmState;
use godwit_types::{ErrorCode, MigrationId};

use super::Cluster;
use super::agent::Agent;

impl Cluster {
    /// Hosts that take part in so many moves at once, and as many VMs on `a` as asked for. Moves are held.
    async fn narrow(moves_max: u32, vms: usize) -> Self {
        let cluster = Self::start().await;
        for agent in [&cluster.a, &cluster.b] {
            agent.script(|script| script.hold_commit = true);
            cluster.allow(agent, moves_max).await;
        }
        for number in 1..=vms {
            cluster.running(&format!("web{number}")).await;
        }
        cluster
    }

    pub(crate) async fn allow(&self, agent: &Agent, moves_max: u32) {
        agent.known().facts.migration.moves_max = moves_max;
        let path = format!("/v1/hosts/{}", agent.name);
        self.until("the manager knows the limit", async |c| {
            c.get::<Host>(&path).await.facts.migration.moves_max == moves_max
        })
        .await;
    }

    async fn state(&self, task: &Task) -> TaskState {
        self.task(task.id).await.state
    }

    async fn waits_at(&self, task: &Task, position: u32) -> Task {
        let at = async |c: &Self| c.task(task.id).await.turn.is_some_and(|turn| turn.position == position);
        self.until(&format!("{} waits at {position}", task.subject()), at).await;
        self.task(task.id).await
    }

    fn moving(&self) -> Vec<MigrationId> {
        let known = self.a.known();
        known.outgoing.values().filter(|one| one.outcome.is_none()).map(|one| one.migration).collect()
    }

    fn release(&self) {
        self.a.script(|script| script.hold_commit = false);
        self.b.script(|script| script.hold_commit = false);
    }

    /// The VMs whose moves have begun, in order.
    async fn begun(&self) -> Vec<String> {
        let events = self.events().await.into_iter().filter(|event| event.kind == "vm.migrating");
        events.filter_map(|event| Some(event.vm?.to_string())).collect()
    }
}

fn full(host: &str, incoming: bool, moves_max: u32) -> FullHost {
    FullHost { host: host.parse().unwrap(), incoming, moves_max }
}

#[tokio::test]
async fn as_many_move_as_the_hosts_take_and_the_others_wait_in_order_and_say_for_what() {
    let cluster = Cluster::narrow(2, 5).await;
    let mut tasks = Vec::new();
    for number in 1..=5 {
        tasks.push(cluster.migrate(&format!("web{number}"), "b").await);
    }
    assert_eq!(tasks.iter().filter(|task| task.state == TaskState::Running).count(), 2);
    let turn = Turn { position: 2, full: vec![full("a", false, 2), full("b", true, 2)] };
    let fourth = cluster.waits_at(&tasks[3], 2).await;
    assert_eq!((fourth.state, fourth.turn), (TaskState::Waiting, Some(turn)));
    assert_eq!(
        fourth.message,
        "waits, at position 2: no more than 2 moves from a at once and 2 moves to b at once"
    );
    assert_eq!(cluster.vm("web4").await.state, VmState::Running, "nothing was done with it yet");
    assert!(cluster.event_kinds().await.contains(&"vm.migration_waiting".to_owned()));
    cluster.until("two move", async |c| c.moving().len() == 2).await;
    let built =
        |agent: &Agent| agent.known().requests.iter().filter(|asked| *asked == "POST incoming").count();
    assert_eq!(built(&cluster.b), 2, "whoever waits takes no memory at its destination");
    cluster.release();
    for task in &tasks {
        assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    }
    assert_eq!(cluster.begun().await, ["web1", "web2", "web3", "web4", "web5"]);
    cluster.end().await;
}

#[tokio::test]
async fn one_that_waits_can_be_cancelled_and_those_behind_it_move_up() {
    let cluster = Cluster::narrow(1, 3).await;
    let [first, second, third] = [
        cluster.migrate("web1", "b").await,
        cluster.migrate("web2", "b").await,
        cluster.migrate("web3", "b").await,
    ];
    cluster.waits_at(&third, 2).await;
    cluster.cancel(second.id).await.unwrap();
    let ended = cluster.ended(second.id).await;
    assert_eq!((ended.state, ended.turn), (TaskState::Cancelled, None));
    assert_eq!(ended.error.unwrap().code, ErrorCode::Cancelled);
    cluster.waits_at(&third, 1).await;
    cluster.release();
    assert_eq!(cluster.ended(first.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.ended(third.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.begun().await, ["web1", "web3"]);
    assert_eq!(cluster.vm("web2").await.owner.unwrap().as_str(), "a");
    cluster.end().await;
}

#[tokio::test]
async fn the_queue_and_what_was_cancelled_in_it_outlive_the_manager() {
    let mut cluster = Cluster::narrow(1, 3).await;
    let [first, second, third] = [
        cluster.migrate("web1", "b").await,
        cluster.migrate("web2", "b").await,
        cluster.migrate("web3", "b").await,
    ];
    cluster.until("the first moves", async |c| c.task(first.id).await.progress.is_some()).await;
    cluster.stop_manager().await;
    cluster.start_manager().await;
    cluster.waits_at(&third, 2).await;
    assert_eq!(cluster.state(&second).await, TaskState::Waiting);
    cluster.release();
    for task in [&first, &second, &third] {
        let ended = cluster.ended(task.id).await;
        assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
    }
    assert_eq!(cluster.begun().await, ["web1", "web2", "web3"]);
    cluster.end().await;
}

#[tokio::test]
async fn a_host_whose_limit_is_raised_takes_the_next_at_once() {
    let cluster = Cluster::narrow(1, 2).await;
    cluster.migrate("web1", "b").await;
    let second = cluster.migrate("web2", "b").await;
    cluster.waits_at(&second, 1).await;
    cluster.allow(&cluster.a, 2).await;
    cluster.allow(&cluster.b, 2).await;
    cluster.until("both move", async |c| c.moving().len() == 2).await;
    cluster.release();
    assert_eq!(cluster.ended(second.id).await.state, TaskState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn whatever_has_come_up_while_a_vm_waited_is_said_when_its_turn_comes() {
    let cluster = Cluster::narrow(1, 2).await;
    let first = cluster.migrate("web1", "b").await;
    let second = cluster.migrate("web2", "b").await;
    cluster.waits_at(&second, 1).await;
    let vm = cluster.vm("web2").await;
    cluster.a.known().vms.remove(&vm.id);
    cluster.vm_is("web2", VmState::Crashed).await;
    cluster.release();
    assert_eq!(cluster.ended(first.id).await.state, TaskState::Succeeded);
    let ended = cluster.ended(second.id).await;
    assert_eq!(ended.state, TaskState::Failed);
    assert!(
        ended.message.contains("has not begun to move") && ended.message.contains("not running"),
        "{}",
        ended.message
    );
    cluster.end().await;
}

#[tokio::test]
async fn two_hosts_exchange_vms_without_waiting_for_each_other() {
    let cluster = Cluster::narrow(1, 1).await;
    cluster.create("web9").await;
    let started = cluster.try_start("web9", Some("b")).await.unwrap();
    assert_eq!(cluster.ended(started.id).await.state, TaskState::Succeeded);
    let tasks = [cluster.migrate("web1", "b").await, cluster.migrate("web9", "a").await];
    assert!(tasks.iter().all(|task| task.state == TaskState::Running), "{tasks:?}");
    cluster.release();
    for task in tasks {
        assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_source_is_told_its_part_of_what_the_destination_takes_in_and_what_the_operator_changes() {
    let cluster = Cluster::narrow(2, 2).await;
    cluster.b.known().facts.migration.bandwidth_bytes_per_s_max = Some(100);
    let knows = async |c: &Cluster| {
        c.get::<Host>("/v1/hosts/b").await.facts.migration.bandwidth_bytes_per_s_max == Some(100)
    };
    cluster.until("the manager knows the cap", knows).await;
    let told = |cluster: &Cluster| {
        let known = cluster.a.known();
        let mut told: Vec<_> =
            moving(&known.outgoing).map(|id| known.bandwidths.get(&id).copied().flatten()).collect();
        told.sort_unstable();
        told
    };
    let first = cluster.migrate("web1", "b").await;
    cluster.until("it has all", async |c| told(c) == [Some(100)]).await;
    let second = cluster.migrate("web2", "b").await;
    cluster.until("they share", async |c| told(c) == [Some(50), Some(50)]).await;
    let asked = SetBandwidth { bytes_per_s_max: Some(10) };
    let path = format!("/v1/tasks/{}/bandwidth", second.id);
    cluster.client.post::<_, Task>(&path, &asked).await.unwrap();
    cluster.until("the second has less", async |c| told(c) == [Some(10), Some(50)]).await;
    let nothing = SetBandwidth { bytes_per_s_max: Some(0) };
    assert_eq!(cluster.client.post::<_, Task>(&path, &nothing).await.unwrap_err().code, ErrorCode::Invalid);
    cluster.release();
    for task in [first, second] {
        assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    }
    assert_eq!(cluster.client.post::<_, Task>(&path, &asked).await.unwrap_err().code, ErrorCode::Conflict);
    cluster.end().await;
}

/// Migrations that are under way.
fn moving(
    outgoing: &std::collections::BTreeMap<MigrationId, godwit_types::agent::Outgoing>,
) -> impl Iterator<Item = MigrationId> {
    outgoing.values().filter(|one| one.outcome.is_none()).map(|one| one.migration)
}
