//! What a move would cost, asked before it and recorded with it.

use godwit_types::check::{Check, Finding};
use godwit_types::forecast::{KnownFrom, MigrationPlan, Outlook, PlanMigration};
use godwit_types::migration::Budget;
use godwit_types::task::{Task, TaskState};
use godwit_types::vm::VmState;
use godwit_types::{ApiError, ErrorCode};

use super::Cluster;

impl Cluster {
    async fn plan(&self, vm: &str, to: &str) -> MigrationPlan {
        let (to, budget) = (to.parse().unwrap(), Budget::default());
        let asked = PlanMigration { to, budget, move_disks: None, sample_ms: 1000 };
        self.client.post(&format!("/v1/vms/{vm}/plan-migration"), &asked).await.unwrap()
    }

    async fn moved(&self, to: &str) -> Task {
        let task = self.migrate("web1", to).await;
        let ended = self.ended(task.id).await;
        assert_eq!(ended.state, TaskState::Succeeded, "{}", ended.message);
        ended
    }
}

#[tokio::test]
async fn a_plan_tells_the_cost_and_moves_and_reserves_nothing() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    let plan = cluster.plan("web1", "b").await;
    let told = plan.forecast.as_ref().unwrap_or_else(|| panic!("{plan:#?}"));
    assert_eq!((told.basis.link.known_from, told.basis.memory), (KnownFrom::Assumption, vm.spec.memory));
    assert_eq!(told.basis.zero.0, vm.spec.memory.0 / 2);
    assert!(told.outlook.is_expected() && plan.can_be_met(), "{plan:#?}");
    assert_eq!(cluster.vm("web1").await, vm);
    assert!(!cluster.b.was_asked("POST incoming"));
    cluster.end().await;
}

#[tokio::test]
async fn a_guest_that_writes_more_than_the_link_carries_is_told_what_could_be_met() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.a.script(|script| script.pages_per_ms = 400.0);
    let plan = cluster.plan("web1", "b").await;
    let told = plan.forecast.as_ref().unwrap();
    assert!(!plan.can_be_met() && told.outlook >= Outlook::Unlikely, "{plan:#?}");
    assert!(told.reason.as_ref().unwrap().contains("50 ms"), "{told:#?}");
    assert!(told.remedies[0].starts_with("--max-blackout "), "{told:#?}");
    cluster.end().await;
}

#[tokio::test]
async fn what_speaks_against_the_move_is_in_the_plan_whatever_it_would_cost() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    let full = Finding::blocked(Check::Memory, "full", "free some");
    cluster.b.script(|script| script.admission = vec![full.clone()]);
    let plan = cluster.plan("web1", "b").await;
    assert!(plan.check.findings.contains(&full) && plan.forecast.is_some(), "{plan:#?}");
    assert!(!plan.can_be_met());
    cluster.create("web2").await;
    let plan = cluster.plan("web2", "b").await;
    let error = plan.error.as_ref().unwrap();
    assert!(error.message.contains("web2 does not run") && plan.forecast.is_none(), "{plan:#?}");
    cluster.end().await;
}

#[tokio::test]
async fn every_move_keeps_its_forecast_beside_its_report_and_the_next_plan_learns_from_it() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    let task = cluster.moved("b").await;
    let (report, forecast) = (task.report.unwrap(), task.forecast.unwrap());
    let predicted = report.predicted.unwrap();
    assert_eq!((predicted.total_ms, predicted.blackout_ms), (forecast.total_ms, forecast.blackout_ms));
    assert!(cluster.event_kinds().await.iter().any(|kind| kind == "vm.forecast"));
    let link = cluster.plan("web1", "a").await.forecast.unwrap().basis.link;
    assert_eq!((link.known_from, link.handoff_ms.expected), (KnownFrom::Pair { migrations: 1 }, 12.5));
    let mib_per_s = link.bytes_per_s.expected / f64::from(1 << 20);
    assert_eq!(mib_per_s.round(), 64.0);
    cluster.end().await;
}

#[tokio::test]
async fn a_guest_that_cannot_be_watched_moves_all_the_same_and_that_is_said() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    let deaf = ApiError::new(ErrorCode::Invalid, "not a request: survey");
    cluster.a.script(|script| script.survey_error = Some(deaf.clone()));
    let task = cluster.moved("b").await;
    assert_eq!((task.report.unwrap().predicted, task.forecast), (None, None));
    let events = cluster.events().await;
    let said = events.iter().any(|event| event.message == "no forecast for web1: not a request: survey");
    assert!(said, "{events:#?}");
    cluster.vm_is("web1", VmState::Running).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_move_that_will_not_keep_to_its_budget_begins_with_a_warning() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.a.script(|script| script.pages_per_ms = 400.0);
    let task = cluster.moved("b").await;
    assert!(!task.forecast.unwrap().outlook.is_expected());
    let events = cluster.events().await;
    let warned = events.iter().find(|event| event.kind == "vm.migration_warning").unwrap();
    assert!(warned.message.contains("will probably not keep to its budget"), "{warned:#?}");
    cluster.end().await;
}
