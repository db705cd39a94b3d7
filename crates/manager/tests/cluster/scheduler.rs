//! What the scheduler decides, and what becomes of it.

use godwit_scheduler::decision::{Explanation, Replay};
use godwit_scheduler::planner::Action;
use godwit_scheduler::record::{DecisionRecord, Imagined, Ran, SchedulerStatus, StepState, WholeDecision};
use godwit_types::task::{Task, TaskKind, TaskState};
use godwit_types::{ApiError, ErrorCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Cluster;

impl Cluster {
    /// `web1` and `web2` run on `a`, and are soon to be apart.
    async fn crowded(automation: &str) -> Self {
        let cluster = Self::start().await;
        cluster.set_policy(json!({"automation": automation})).await;
        cluster.running("web1").await;
        cluster.running("web2").await;
        cluster
    }

    async fn set_policy(&self, changes: Value) {
        let _: Value = self.client.post("/v1/policy", &changes).await.unwrap();
    }

    async fn keep_apart(&self, vms: &[&str]) {
        let rule = json!({"name": "webs", "must": true, "kind": {"kind": "apart", "vms": vms}});
        let _: Value = self.client.post("/v1/rules", &rule).await.unwrap();
    }

    async fn scheduler(&self) -> SchedulerStatus {
        self.get("/v1/scheduler").await
    }

    async fn decisions(&self) -> Vec<DecisionRecord> {
        self.get("/v1/scheduler/decisions").await
    }

    /// The last decision, once one of its steps is in this state.
    async fn decided(&self, state: StepState) -> DecisionRecord {
        let is_so = async |c: &Self| {
            let decision = c.scheduler().await.decision;
            decision.is_some_and(|last| last.steps.iter().any(|step| step.state == state))
        };
        self.until(&format!("a step is {state:?}"), is_so).await;
        self.scheduler().await.decision.unwrap()
    }

    async fn tell(&self, decision: u64, what: &str) -> Result<DecisionRecord, ApiError> {
        self.client.post(&format!("/v1/scheduler/decisions/{decision}/{what}"), &json!({})).await
    }

    async fn all_moves(&self) -> Vec<Task> {
        let tasks: Vec<Task> = self.get("/v1/tasks").await;
        tasks.into_iter().filter(|task| matches!(task.kind, TaskKind::MigrateVm { .. })).collect()
    }

    async fn are_apart(&self) {
        let owner = async |vm: &str| self.vm(vm).await.owner;
        self.until("they are apart", async |_| owner("web1").await != owner("web2").await).await;
    }
}

#[tokio::test]
async fn full_automation_mends_a_broken_rule_by_itself() {
    let cluster = Cluster::crowded("full").await;
    cluster.keep_apart(&["web1", "web2"]).await;
    cluster.are_apart().await;
    let moves = cluster.all_moves().await;
    assert_eq!(moves.len(), 1);
    let done = async |c: &Cluster| {
        let steps = c.decisions().await.into_iter().flat_map(|record| record.steps);
        steps.filter(|step| step.task == Some(moves[0].id)).any(|step| step.state == StepState::Done)
    };
    cluster.until("the step is done", done).await;
    cluster.end().await;
}

#[tokio::test]
async fn without_full_automation_a_move_is_recommended_and_done_once_it_is_applied() {
    for automation in ["manual", "partial"] {
        let cluster = Cluster::crowded(automation).await;
        cluster.keep_apart(&["web1", "web2"]).await;
        let decision = cluster.decided(StepState::Recommended).await;
        assert_eq!(decision.steps.len(), 1);
        assert_eq!(cluster.all_moves().await, []);
        let again: Ran = cluster
            .client
            .post("/v1/scheduler/run", &json!({"goal": "balance", "dry_run": true}))
            .await
            .unwrap();
        assert_eq!((again.decision, again.plan.steps.len()), (None, 1));
        let applied = cluster.tell(decision.id, "apply").await.unwrap();
        assert_eq!((applied.steps[0].state, applied.steps[0].applied), (StepState::Running, true));
        cluster.are_apart().await;
        assert_eq!(cluster.tell(decision.id, "apply").await.unwrap_err().code, ErrorCode::Conflict);
        cluster.end().await;
    }
}

#[tokio::test]
async fn what_people_reject_is_left_alone_and_that_is_shown() {
    let cluster = Cluster::crowded("manual").await;
    cluster.keep_apart(&["web1", "web2"]).await;
    let decision = cluster.decided(StepState::Recommended).await;
    let rejected = cluster.tell(decision.id, "reject").await.unwrap();
    assert_eq!(rejected.steps[0].state, StepState::Rejected);
    let Action::Move { vm, .. } = &decision.steps[0].step.action else { panic!("{decision:?}") };
    let alone = cluster.scheduler().await.left_alone;
    assert_eq!((alone.len(), &alone[0].vm), (1, vm));
    assert!(alone[0].reason.contains("rejected"), "{alone:?}");
    let again: Ran = cluster.client.post("/v1/scheduler/run", &json!({"goal": "balance"})).await.unwrap();
    let moves_it = again
        .plan
        .steps
        .iter()
        .any(|step| matches!(&step.action, Action::Move { vm: other, .. } if other == vm));
    assert!(!moves_it, "{:?}", again.plan.steps);
    cluster.end().await;
}

#[tokio::test]
async fn a_recommendation_that_people_have_followed_by_hand_is_dropped() {
    let cluster = Cluster::crowded("manual").await;
    cluster.keep_apart(&["web1", "web2"]).await;
    let decision = cluster.decided(StepState::Recommended).await;
    let Action::Move { vm, .. } = &decision.steps[0].step.action else { panic!("{decision:?}") };
    let by_hand = cluster.migrate(vm.as_str(), "b").await;
    assert_eq!(cluster.ended(by_hand.id).await.state, TaskState::Succeeded);
    let dropped = async |c: &Cluster| {
        let record = c.decisions().await.into_iter().find(|record| record.id == decision.id).unwrap();
        record.steps[0].state == StepState::Dropped
    };
    cluster.until("the recommendation is dropped", dropped).await;
    assert_eq!(cluster.tell(decision.id, "apply").await.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(cluster.all_moves().await.len(), 1);
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_whose_move_failed_is_left_alone_for_its_cool_down_with_the_reason() {
    let cluster = Cluster::crowded("full").await;
    cluster.set_policy(json!({"cooldown_ms": 600_000})).await;
    let refused = ApiError::new(ErrorCode::Failed, "the cable was pulled");
    cluster.a.script(|script| script.outgoing_error = Some(refused));
    cluster.keep_apart(&["web1", "web2"]).await;
    cluster.until("both were tried", async |c| c.scheduler().await.left_alone.len() == 2).await;
    let status = cluster.scheduler().await;
    assert!(
        status.left_alone.iter().all(|alone| alone.reason.contains("the cable was pulled")),
        "{status:?}"
    );
    cluster.a.script(|script| script.outgoing_error = None);
    for _ in 0..3 {
        let ran: Ran = cluster.client.post("/v1/scheduler/run", &json!({"goal": "balance"})).await.unwrap();
        assert!(ran.plan.steps.is_empty(), "{:?}", ran.plan.steps);
    }
    assert_eq!(cluster.all_moves().await.len(), 2);
    cluster.end().await;
}

#[tokio::test]
async fn however_many_ask_at_once_they_are_answered_one_after_the_other_and_a_vm_moves_once() {
    let cluster = Cluster::crowded("full").await;
    cluster.a.script(|script| script.hold_commit = true);
    cluster.keep_apart(&["web1", "web2"]).await;
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        let client = cluster.client.clone();
        asking.spawn(
            async move { client.post::<_, Ran>("/v1/scheduler/run", &json!({"goal": "balance"})).await },
        );
    }
    let mut ids: Vec<u64> = Vec::new();
    for ran in asking.join_all().await {
        ids.extend(ran.unwrap().decision);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 8, "each was recorded");
    cluster.until("one moves", async |c| !c.all_moves().await.is_empty()).await;
    cluster.a.script(|script| script.hold_commit = false);
    cluster.are_apart().await;
    assert_eq!(cluster.all_moves().await.len(), 1);
    cluster.end().await;
}

#[tokio::test]
async fn the_next_manager_knows_what_was_decided_and_what_became_of_it() {
    let mut cluster = Cluster::crowded("full").await;
    cluster.a.script(|script| script.hold_commit = true);
    cluster.keep_apart(&["web1", "web2"]).await;
    let decision = cluster.decided(StepState::Running).await;
    cluster.until("it moves", async |c| c.all_moves().await[0].progress.is_some()).await;
    cluster.stop_manager().await;
    cluster.start_manager().await;
    cluster.a.script(|script| script.hold_commit = false);
    let done = async |c: &Cluster| {
        let record = c.decisions().await.into_iter().find(|record| record.id == decision.id).unwrap();
        record.steps[0].state == StepState::Done
    };
    cluster.until("the step is done", done).await;
    assert_eq!(cluster.all_moves().await.len(), 1);
    cluster.are_apart().await;
    cluster.end().await;
}

#[tokio::test]
async fn a_decision_is_made_again_to_the_bit_and_under_another_policy_it_may_be_another() {
    let cluster = Cluster::crowded("manual").await;
    cluster.keep_apart(&["web1", "web2"]).await;
    let decision = cluster.decided(StepState::Recommended).await;
    let whole: WholeDecision = cluster.get(&format!("/v1/scheduler/decisions/{}", decision.id)).await;
    assert_eq!((whole.record.id, whole.decision.plan.steps.len()), (decision.id, 1));
    let path = format!("/v1/scheduler/decisions/{}/replay", decision.id);
    let same: Replay = cluster.client.post(&path, &json!({})).await.unwrap();
    assert_eq!(same.difference, None);
    assert_eq!(same.plan, whole.decision.plan);
    // A host that was heard of just before the snapshot is stale to a policy that trusts nobody.
    let stale = json!({"policy": {"automation": "manual", "stale_ms": 0}});
    let other: Replay = cluster.client.post(&path, &stale).await.unwrap();
    assert!(other.difference.is_some(), "{other:?}");
    let as_of: Replay =
        cluster.client.post(&path, &json!({"as_of_unix_ms": whole.record.unix_ms})).await.unwrap();
    assert_eq!(as_of.difference, None);
    let long_ago = cluster.client.post::<_, Replay>(&path, &json!({"as_of_unix_ms": 1})).await.unwrap_err();
    assert_eq!(long_ago.code, ErrorCode::NotFound);
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_is_placed_by_the_rules_and_why_it_is_there_is_explained() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.create("web2").await;
    cluster.create("web3").await;
    cluster.keep_apart(&["web1", "web2"]).await;
    let kind = json!({"kind": "apart", "vms": ["web2", "web3"]});
    let others = json!({"name": "others", "must": true, "kind": kind});
    let elsewhere = json!({"kind": "not_on", "vms": ["web3"], "hosts": {"names": ["a"]}});
    let elsewhere = json!({"name": "elsewhere", "must": true, "kind": elsewhere});
    for rule in [others, elsewhere] {
        let _: Value = cluster.client.post("/v1/rules", &rule).await.unwrap();
    }
    let task = cluster.try_start("web2", None).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.vm("web2").await.owner.unwrap().as_str(), "b");
    let refused = cluster.try_start("web3", None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(refused.message.contains("others") && refused.message.contains("elsewhere"), "{refused}");
    let told: Explanation = cluster.get("/v1/scheduler/explain/web2").await;
    assert_eq!(told.host.unwrap().as_str(), "b");
    let against =
        |host: &str| told.offers.iter().find(|offer| offer.host.as_str() == host).unwrap().against.clone();
    assert!(!against("a").is_empty() && against("b").is_empty());
    let placed =
        cluster.decisions().await.into_iter().find(|record| record.cause == "web2 is to start").unwrap();
    assert_eq!(placed.steps[0].task, Some(task.id));
    cluster.end().await;
}

#[tokio::test]
async fn nothing_is_recorded_of_rounds_in_which_there_is_nothing_to_say() {
    let cluster = Cluster::start().await;
    cluster.until("it has looked", async |c| c.scheduler().await.looked_unix_ms.is_some()).await;
    assert_eq!(cluster.decisions().await, []);
    let asked: Ran = cluster.client.post("/v1/scheduler/run", &json!({"goal": "balance"})).await.unwrap();
    assert!(asked.decision.is_some(), "who asks gets a record");
    assert_eq!(
        cluster.client.get::<Value>("/v1/scheduler/decisions/999").await.unwrap_err().code,
        ErrorCode::NotFound
    );
    cluster.end().await;
}

#[tokio::test]
async fn what_would_be_if_a_host_were_lost_is_told_and_nothing_is_done() {
    let cluster = Cluster::crowded("full").await;
    let asked = json!({"changes": [{"change": "lose_host", "host": "a"}]});
    let told: Imagined = cluster.client.post("/v1/scheduler/what-if", &asked).await.unwrap();
    let placed = told
        .plan
        .steps
        .iter()
        .filter(|step| matches!(&step.action, Action::Place { on, .. } if on.as_str() == "b"));
    assert_eq!(placed.count(), 2, "{:?}", told.plan);
    let asked = json!({"changes": [{"change": "add_hosts", "like": "a", "count": 3}]});
    let told: Imagined = cluster.client.post("/v1/scheduler/what-if", &asked).await.unwrap();
    assert!(told.plan.before.score < told.now.score, "more room is better: {told:?}");
    let nobody = json!({"changes": [{"change": "lose_host", "host": "z"}]});
    let error = cluster.client.post::<_, Imagined>("/v1/scheduler/what-if", &nobody).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(cluster.all_moves().await.is_empty());
    cluster.end().await;
}

#[tokio::test]
async fn emptying_a_host_that_is_in_no_maintenance_waits_to_be_applied_until_somebody_asks_again() {
    let cluster = Cluster::crowded("full").await;
    let evacuate = json!({"goal": "evacuate", "hosts": ["a"]});
    let ask = async || {
        let ran: Ran = cluster.client.post("/v1/scheduler/run", &evacuate).await.unwrap();
        ran.decision.unwrap()
    };
    let (first, second) = (ask().await, ask().await);
    let states = async |id: u64| {
        let found = cluster.decisions().await.into_iter().find(|record| record.id == id).unwrap();
        found.steps.into_iter().map(|step| step.state).collect::<Vec<_>>()
    };
    assert_eq!(states(first).await, [StepState::Dropped; 2]);
    assert_eq!(states(second).await, [StepState::Recommended; 2]);
    assert_eq!(cluster.all_moves().await, []);
    cluster.tell(second, "apply").await.unwrap();
    let owner = async |vm: &str| cluster.vm(vm).await.owner.unwrap();
    cluster
        .until("both have left", async |_| {
            owner("web1").await.as_str() == "b" && owner("web2").await.as_str() == "b"
        })
        .await;
    cluster.end().await;
}
