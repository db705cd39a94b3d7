use godwit_scheduler::entitlement::Happiness;
use godwit_scheduler::planner::{Cost, Goal, Reason, Standing, Step};
use godwit_scheduler::record::Outline;
use godwit_types::{ApiError, ErrorCode};
use uuid::Uuid;

use super::*;

fn standing() -> Standing {
    Standing { score: 0.0, happiness: Happiness::FULL, unhappiest: None, broken: vec![], watts: 0 }
}

fn step(vm: &str, state: StepState, after: &[usize], task: Option<u128>) -> StepRecord {
    let [from, to] = ["a", "b"].map(|host| host.parse().unwrap());
    let action = Action::Move { vm: vm.parse().unwrap(), from, to };
    let (cost, reason, after) = (Cost::default(), Reason::Start, after.to_vec());
    let step = Step { action, priority: 3, reason, gain: 0.0, cost, after, begins_ms: 0, ends_ms: 0 };
    let task = task.map(|id| TaskId(Uuid::from_u128(id)));
    StepRecord { step, state, applied: false, changed_unix_ms: 0, task, detail: None }
}

fn record(steps: Vec<StepRecord>) -> DecisionRecord {
    let outline =
        Outline { before: standing(), after: standing(), unmoved: vec![], findings: vec![], kept_on: vec![] };
    DecisionRecord { id: 7, unix_ms: 0, cause: String::new(), goal: Goal::Balance, outline, steps }
}

fn task(id: u128, vm: &str, to: &str, state: TaskState) -> (TaskId, Task) {
    let id = TaskId(Uuid::from_u128(id));
    let kind = TaskKind::MigrateVm { from: "a".parse().unwrap(), to: to.parse().unwrap() };
    let failed = matches!(state, TaskState::Failed | TaskState::Cancelled);
    let task = Task {
        id,
        kind,
        vm: Some(godwit_types::VmId(Uuid::nil())),
        vm_name: vm.parse().ok(),
        state,
        message: "m".into(),
        started_unix_ms: 0,
        finished_unix_ms: state.is_final().then_some(1),
        turn: None,
        progress: None,
        storage: None,
        forecast: None,
        report: None,
        error: failed.then(|| ApiError::new(ErrorCode::Failed, "the cable was pulled")),
    };
    (id, task)
}

fn became(
    steps: Vec<StepRecord>,
    tasks: impl IntoIterator<Item = (TaskId, Task)>,
) -> Vec<(usize, StepState)> {
    let changes = changes(&record(steps), &tasks.into_iter().collect());
    changes.into_iter().map(|change| (change.step, change.state)).collect()
}

#[test]
fn a_step_ends_as_its_task_does() {
    let running = |task| step("web1", StepState::Running, &[], Some(task));
    let steps = vec![running(1), running(2), running(3), running(4)];
    let tasks = [
        task(1, "web1", "b", TaskState::Succeeded),
        task(2, "web1", "b", TaskState::Failed),
        task(3, "web1", "b", TaskState::Waiting),
    ];
    let changes = changes(&record(steps), &tasks.into_iter().collect());
    assert_eq!(changes[0].state, StepState::Done);
    assert_eq!(
        (changes[1].state, changes[1].detail.as_deref()),
        (StepState::Failed, Some("the cable was pulled"))
    );
    assert_eq!(changes[2].step, 3, "what goes on has not changed: {changes:?}");
    assert_eq!(changes[2].state, StepState::Failed, "nothing is known of its task");
}

#[test]
fn what_waits_for_a_step_that_was_not_done_is_dropped_and_so_is_what_waits_for_that() {
    let steps = vec![
        step("web1", StepState::Running, &[], Some(1)),
        step("web2", StepState::Approved, &[0], None),
        step("web3", StepState::Approved, &[1], None),
        step("web4", StepState::Approved, &[], None),
    ];
    let became = became(steps, [task(1, "web1", "b", TaskState::Cancelled)]);
    assert_eq!(became, [(0, StepState::Failed), (1, StepState::Dropped), (2, StepState::Dropped)]);
}

#[test]
fn a_move_that_was_begun_and_not_written_down_is_found_again() {
    let steps = || vec![step("web1", StepState::Approved, &[], None)];
    assert_eq!(became(steps(), [task(1, "web1", "b", TaskState::Running)]), [(0, StepState::Running)]);
    assert_eq!(became(steps(), [task(1, "web1", "c", TaskState::Running)]), [], "to another host");
    assert_eq!(became(steps(), [task(1, "web2", "b", TaskState::Running)]), [], "of another VM");
    assert_eq!(became(steps(), [task(1, "web1", "b", TaskState::Succeeded)]), [], "of long ago");
}
