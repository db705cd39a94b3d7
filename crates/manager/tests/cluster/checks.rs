//! Whether a VM can move, asked without moving it.

use godwit_types::ErrorCode;
use godwit_types::check::{Check, Finding, HostCheck, Verdict};
use godwit_types::vm::VmState;
use serde_json::Value;

use super::Cluster;

fn blocked(host: &HostCheck) -> Vec<&Finding> {
    host.findings.iter().filter(|finding| finding.is_blocked()).collect()
}

#[tokio::test]
async fn every_host_is_judged_and_nothing_moves_or_is_reserved() {
    let cluster = Cluster::start().await;
    let vm = cluster.running("web1").await;
    let check = cluster.check("web1", None).await;
    let verdicts: Vec<_> = check.hosts.iter().map(|host| (host.host.as_str(), host.verdict)).collect();
    assert_eq!(verdicts, [("a", Verdict::Blocked), ("b", Verdict::Ok)], "{check:#?}");
    assert!(check.can_move() && check.from.as_ref().is_some_and(|from| from.as_str() == "a"));
    assert!(blocked(&check.hosts[0])[0].reason.contains("is on a already"));
    let checks: Vec<Check> = check.hosts[1].findings.iter().map(|finding| finding.check).collect();
    let asked = Check::ALL.into_iter().filter(|check| *check != Check::PostCopy);
    assert_eq!(checks, asked.collect::<Vec<_>>());
    let one = cluster.check("web1", Some("b")).await;
    assert_eq!(one.hosts.len(), 1);
    let now = cluster.vm("web1").await;
    assert_eq!((now.state, now.task, now.owner, now.epoch), (VmState::Running, None, vm.owner, vm.epoch));
    assert!(!cluster.b.was_asked("POST incoming"));
    assert!(cluster.client.get::<Value>("/v1/vms/web1/migration-check?to=nope").await.is_err());
    cluster.end().await;
}

#[tokio::test]
async fn a_migration_is_refused_with_the_very_list_that_the_check_shows() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.b.script(|script| {
        script.clock_ms = 60_000;
        script.admission = vec![Finding::blocked(Check::Memory, "no memory", "free some")];
    });
    cluster.b.known().facts.networks.clear();
    let check = cluster.check("web1", Some("b")).await;
    let found = blocked(&check.hosts[0]);
    let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
    assert_eq!(checks, [Check::Memory, Check::Networks, Check::Clock], "{check:#?}");
    assert!(!check.can_move());
    let error = cluster.try_migrate("web1", "b").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    for finding in found.iter().filter(|finding| finding.check != Check::Clock) {
        assert!(error.message.contains(&finding.reason), "{} is missing from: {error}", finding.reason);
    }
    assert!(error.message.contains("the clock of b is"), "{error}");
    assert_eq!(cluster.vm("web1").await.task, None);
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_that_does_not_run_is_told_so_with_all_else() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    cluster.b.script(|script| script.admission = vec![Finding::blocked(Check::Memory, "full", "free some")]);
    let check = cluster.check("web1", Some("b")).await;
    let checks: Vec<Check> = blocked(&check.hosts[0]).iter().map(|finding| finding.check).collect();
    assert_eq!(checks, [Check::Vm, Check::Memory], "{check:#?}");
    cluster.end().await;
}

#[tokio::test]
async fn a_host_whose_agent_is_gone_is_blocked_and_the_others_are_judged_all_the_same() {
    let cluster = Cluster::start().await;
    cluster.running("web1").await;
    cluster.b.die();
    let check = cluster.check("web1", None).await;
    let judged = check.hosts.iter().find(|host| host.host.as_str() == "b").unwrap();
    assert!(blocked(judged).iter().any(|finding| finding.check == Check::Host), "{judged:#?}");
    assert_eq!(check.hosts.len(), 2);
    cluster.end().await;
}
