use std::slice;

use godwit_scheduler::decision::ENGINE_VERSION;
use godwit_scheduler::entitlement::Happiness;
use godwit_scheduler::planner::{Cost, Standing, Step};
use godwit_scheduler::record::{Outline, StepRecord};
use godwit_scheduler::snapshot::{Needs, Snapshot, Vm, Writes};
use godwit_scheduler::{PerResource, Resource};

use super::*;

fn maintenance() -> Reason {
    Reason::Maintenance { host: "a".parse().unwrap() }
}

fn evenness() -> Reason {
    Reason::Evenness { resource: Resource::Cpu }
}

fn step(vm: &str, priority: u8, reason: Reason, after: &[usize]) -> Step {
    let [from, to] = ["a", "b"].map(|host| host.parse().unwrap());
    let action = Action::Move { vm: vm.parse().unwrap(), from, to };
    let (cost, after) = (Cost::default(), after.to_vec());
    Step { action, priority, reason, gain: 0.0, cost, after, begins_ms: 0, ends_ms: 0 }
}

fn vm(name: &str, automation: Automation) -> Vm {
    Vm {
        name: name.parse().unwrap(),
        host: "a".parse().ok(),
        pool: None,
        controls: PerResource::default(),
        demand: PerResource::default(),
        expected: PerResource::default(),
        demand_long: PerResource::default(),
        recent_mhz: Vec::new(),
        ahead_mhz: Vec::new(),
        measured_unix_ms: None,
        vcpus: 1,
        memory: 0,
        needs: Needs::default(),
        pinned: None,
        automation,
        writes: Writes::default(),
        moved_unix_ms: vec![],
        disks: vec![],
    }
}

fn plan(steps: Vec<Step>) -> Plan {
    let standing =
        Standing { score: 0.0, happiness: Happiness::FULL, unhappiest: None, broken: vec![], watts: 0 };
    Plan {
        steps,
        before: standing.clone(),
        after: standing,
        unmoved: vec![],
        findings: vec![],
        kept_on: vec![],
    }
}

fn decided(automation: Automation, vms: Vec<Vm>, steps: Vec<Step>) -> Vec<StepState> {
    let policy = Policy { automation, threshold: 3, ..Policy::default() };
    let snapshot = Snapshot { at_unix_ms: 0, hosts: vec![], vms, pools: vec![], rules: vec![] };
    let decision = Decision {
        engine: ENGINE_VERSION,
        seed: 0,
        goal: Goal::Balance,
        policy,
        snapshot,
        plan: plan(steps),
    };
    states(&decision)
}

const DONE: StepState = StepState::Approved;
const TOLD: StepState = StepState::Recommended;

#[test]
fn full_automation_does_what_is_within_the_threshold_and_the_others_recommend() {
    let steps = || {
        vec![
            step("web1", 1, evenness(), &[]),
            step("web2", 3, evenness(), &[]),
            step("web3", 4, evenness(), &[]),
        ]
    };
    let vms = || ["web1", "web2", "web3"].map(|name| vm(name, Automation::Inherit)).to_vec();
    assert_eq!(decided(Automation::Full, vms(), steps()), [DONE, DONE, TOLD]);
    for automation in [Automation::Manual, Automation::Partial, Automation::Inherit] {
        assert_eq!(decided(automation, vms(), steps()), [TOLD, TOLD, TOLD]);
    }
}

#[test]
fn a_vms_own_automation_comes_before_the_clusters() {
    let steps = vec![step("web1", 2, evenness(), &[]), step("web2", 2, evenness(), &[])];
    let vms = vec![vm("web1", Automation::Full), vm("web2", Automation::Manual)];
    assert_eq!(decided(Automation::Manual, vms.clone(), steps.clone()), [DONE, TOLD]);
    assert_eq!(decided(Automation::Full, vms, steps), [DONE, TOLD]);
}

#[test]
fn a_host_is_emptied_whatever_the_automation_with_the_steps_that_this_waits_for() {
    let room = Reason::Room { vm: "web3".parse().unwrap() };
    let steps = vec![
        step("web1", 1, room, &[]),
        step("web2", 2, evenness(), &[]),
        step("web3", 1, maintenance(), &[0]),
    ];
    let vms = ["web1", "web2", "web3"].map(|name| vm(name, Automation::Manual)).to_vec();
    assert_eq!(decided(Automation::Manual, vms, steps), [DONE, TOLD, DONE]);
}

#[test]
fn what_waits_for_a_step_that_people_must_apply_waits_for_them_too() {
    let steps = vec![step("web1", 2, evenness(), &[]), step("web2", 2, evenness(), &[0])];
    let vms = vec![vm("web1", Automation::Manual), vm("web2", Automation::Full)];
    assert_eq!(decided(Automation::Full, vms, steps), [TOLD, TOLD]);
}

#[test]
fn a_plan_is_the_same_if_the_steps_still_open_are_whatever_numbers_its_findings_name() {
    let one = step("web1", 3, evenness(), &[]);
    let two = step("web2", 3, evenness(), &[]);
    let recorded = |state, steps: &[Step], finding: &str| DecisionRecord {
        id: 1,
        unix_ms: 0,
        cause: String::new(),
        goal: Goal::Balance,
        outline: Outline { findings: vec![finding.into()], ..Outline::from(&plan(vec![])) },
        steps: steps
            .iter()
            .map(|step| StepRecord {
                step: step.clone(),
                state,
                applied: false,
                changed_unix_ms: 0,
                task: None,
                detail: None,
            })
            .collect(),
    };
    let with =
        |steps: &[Step], finding: &str| Plan { findings: vec![finding.into()], ..plan(steps.to_vec()) };
    let open = recorded(TOLD, slice::from_ref(&one), "not heard of for 61 s");
    assert!(is_same(&open, &with(slice::from_ref(&one), "not heard of for 121 s")));
    assert!(!is_same(&open, &with(slice::from_ref(&two), "not heard of for 61 s")));
    assert!(!is_same(&open, &with(slice::from_ref(&one), "something else")));
    assert!(!is_same(&open, &with(&[], "not heard of for 61 s")));
    let done = recorded(StepState::Done, &[one], "");
    assert!(is_same(&done, &with(&[], "")), "what is done is no longer planned");
}
