//! Decisions can be made again, compared and explained.

use godwit_scheduler::decision::{Decision, ENGINE_VERSION};
use godwit_scheduler::planner::{Action, Goal};
use godwit_scheduler::policy::Policy;
use godwit_scheduler::rules::RuleKind;

use crate::cases::*;

fn starving() -> Decision {
    let vms = (0..6).map(|at| vm(&format!("vm{at}"), Some("a"), 3000, 4)).collect();
    let policy = Policy { moved_max_permille: 1000, ..Policy::default() };
    Decision::make(cluster(&["a", "b", "c"], vms), policy, Goal::Balance, 3)
}

#[test]
fn a_decision_that_was_stored_and_read_is_made_again_to_the_bit() {
    let decision = starving();
    let text = serde_json::to_string(&decision).unwrap();
    let read: Decision = serde_json::from_str(&text).unwrap();
    let replay = read.replay(None);
    assert!(replay.difference.is_none() && !replay.plan.steps.is_empty(), "{replay}");
    assert_eq!(serde_json::to_string(&replay.plan).unwrap(), serde_json::to_string(&decision.plan).unwrap());
    assert_eq!((replay.engine_then, replay.engine_now), (ENGINE_VERSION, ENGINE_VERSION));
    assert!(replay.to_string().starts_with("the same plan to the bit"), "{replay}");
}

#[test]
fn another_policy_gives_another_plan_and_the_difference_is_told() {
    let decision = starving();
    let timid = Policy { threshold: 1, ..decision.policy.clone() };
    let replay = decision.replay(Some(&timid));
    let difference = replay.difference.as_ref().expect("nothing is moved now");
    assert_eq!((difference.dropped.len(), difference.added.len()), (decision.plan.steps.len(), 0));
    assert!(replay.to_string().contains("- move VM 'vm"), "{replay}");
    let mut grown = decision.snapshot.clone();
    grown.hosts.push(host("d"));
    let replay = decision.replay_on(&grown, None);
    let to_new = |action: &Action| matches!(action, Action::Move { to, .. } if *to == name("d"));
    assert!(replay.difference.is_some_and(|difference| difference.added.iter().any(to_new)));
}

#[test]
fn a_vm_is_explained_with_what_every_host_would_give() {
    let mut snapshot =
        cluster(&["a", "b", "c"], vec![vm("hungry", Some("a"), 9000, 4), vm("next", Some("a"), 9000, 4)]);
    snapshot.rules.push(must("licence", RuleKind::RunOn { vms: names(&["hungry"]), hosts: on(&["a", "b"]) }));
    let decision = Decision::make(snapshot, Policy::default(), Goal::Balance, 1);
    let explained = decision.explain(&name("hungry")).expect("it is there");
    assert_eq!(explained.received.map(|received| received.cpu), Some(5000));
    assert_eq!(explained.entitled.cpu, 9000);
    let offers: Vec<_> =
        explained.offers.iter().map(|offer| (offer.received.cpu, offer.against.len())).collect();
    assert_eq!(offers, [(5000, 0), (9000, 0), (9000, 1)]);
    let text = explained.to_string();
    for part in
        ["on host 'a'", "happiness    55.5 %", "host 'c': rule 'licence'", "host 'b': happiness 100.0 %"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(decision.explain(&name("nobody")).is_none());
}
