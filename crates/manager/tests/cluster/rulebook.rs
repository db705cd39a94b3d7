//! What people lay down for the scheduler: kept, told of, and refused with what to do.

use godwit_types::{ApiError, ErrorCode};
use serde_json::{Value, json};

use super::Cluster;

impl Cluster {
    async fn ask(&self, path: &str, document: Value) -> Result<Value, ApiError> {
        self.client.post(path, &document).await
    }

    /// Asks for what is refused.
    async fn refused(&self, path: &str, document: Value) -> ApiError {
        let error = self.ask(path, document).await.unwrap_err();
        assert!(error.remedy.is_some(), "no remedy: {error:?}");
        error
    }

    async fn changes(&self) -> Vec<String> {
        let events = self.events().await.into_iter().filter(|event| event.kind == "rulebook.changed");
        events.map(|event| event.message).collect()
    }
}

fn apart(name: &str, vms: &[&str]) -> Value {
    json!({"name": name, "must": true, "kind": {"kind": "apart", "vms": vms}})
}

#[tokio::test]
async fn rules_are_kept_over_a_restart_and_told_of() {
    let mut cluster = Cluster::start().await;
    cluster.create("web1").await;
    cluster.create("web2").await;
    let rule = cluster.ask("/v1/rules", apart("webs", &["web1", "web2"])).await.unwrap();
    cluster.stop_manager().await;
    cluster.start_manager().await;
    assert_eq!(cluster.get::<Vec<Value>>("/v1/rules").await, std::slice::from_ref(&rule));
    assert_eq!(cluster.get::<Value>("/v1/rules/webs").await, rule);
    let again = cluster.refused("/v1/rules", apart("webs", &["web1", "web2"])).await;
    assert_eq!(again.code, ErrorCode::Conflict);
    let _: Value = cluster.client.delete("/v1/rules/webs").await.unwrap();
    assert_eq!(cluster.get::<Vec<Value>>("/v1/rules").await, [] as [Value; 0]);
    assert_eq!(cluster.changes().await, ["the rule webs was added", "the rule webs was removed"]);
    cluster.end().await;
}

#[tokio::test]
async fn a_rule_about_what_does_not_exist_is_refused_by_name() {
    let cluster = Cluster::start().await;
    let vm = cluster.create("web1").await;
    cluster.create("web2").await;
    let run_on = |hosts: Value| json!({"name": "r", "must": true, "kind": {"kind": "run_on", "vms": ["web1"], "hosts": hosts}});
    for (rule, missing) in [
        (apart("r", &["web1", "web3"]), "'web3'"),
        (apart("r", &["web1", &vm.id.to_string()]), "there is no VM"),
        (run_on(json!({"names": ["c"]})), "'c'"),
        (run_on(json!({"labels": ["ssd"]})), "'ssd'"),
    ] {
        let error = cluster.refused("/v1/rules", rule).await;
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains(missing), "{missing} is missing from: {error}");
    }
    let error = cluster.refused("/v1/rules", apart("r", &["web1"])).await;
    assert_eq!(error.code, ErrorCode::Invalid);
    cluster.ask("/v1/hosts/b/settings", json!({"labels": ["ssd"]})).await.unwrap();
    cluster.ask("/v1/rules", run_on(json!({"names": ["a"], "labels": ["ssd"]}))).await.unwrap();
    let error = cluster.client.delete::<Value>("/v1/rules/nope").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    cluster.end().await;
}

#[tokio::test]
async fn a_vm_that_is_forgotten_leaves_its_rules_and_the_last_one_takes_its_rule_along() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    cluster.create("web2").await;
    cluster.ask("/v1/rules", apart("webs", &["web1", "web2"])).await.unwrap();
    let _: Value = cluster.client.delete("/v1/vms/web1").await.unwrap();
    assert_eq!(cluster.get::<Value>("/v1/rules/webs").await["kind"]["vms"], json!(["web2"]));
    let _: Value = cluster.client.delete("/v1/vms/web2").await.unwrap();
    assert_eq!(cluster.get::<Vec<Value>>("/v1/rules").await, [] as [Value; 0]);
    // One of the same name is another VM.
    cluster.create("web1").await;
    assert_eq!(cluster.get::<Vec<Value>>("/v1/rules").await, [] as [Value; 0]);
    cluster.end().await;
}

#[tokio::test]
async fn pools_that_are_no_tree_are_refused_and_change_nothing() {
    let cluster = Cluster::start().await;
    cluster.ask("/v1/pools/gold", json!({"controls": {"cpu": {"shares": 4000}}})).await.unwrap();
    cluster.ask("/v1/pools/web", json!({"parent": "gold"})).await.unwrap();
    let before: Value = cluster.get("/v1/pools").await;
    for (path, change, reason) in [
        ("/v1/pools/gold", json!({"parent": "web"}), "lies within itself"),
        ("/v1/pools/gold", json!({"parent": "iron"}), "'iron', which does not exist"),
        ("/v1/pools/gold", json!({"controls": {"cpu": {"shares": 0}}}), "no shares of CPU"),
        (
            "/v1/pools/gold",
            json!({"controls": {"memory": {"reservation": 2, "limit": 1}}}),
            "is limited to 1B",
        ),
        ("/v1/pools/gold", json!({"name": "silver"}), "cannot be called 'silver'"),
        ("/v1/pools/gold", json!({"sharess": 1}), "`sharess`"),
    ] {
        let error = cluster.refused(path, change).await;
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(error.message.contains(reason), "{reason} is missing from: {error}");
    }
    assert_eq!(cluster.get::<Value>("/v1/pools").await, before);
    assert_eq!(before[0]["controls"]["cpu"]["shares"], 4000);
    cluster.end().await;
}

#[tokio::test]
async fn a_pool_is_removed_once_nothing_is_in_it() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    cluster.ask("/v1/pools/gold", json!({})).await.unwrap();
    cluster.ask("/v1/pools/web", json!({"parent": "gold"})).await.unwrap();
    cluster.ask("/v1/vms/web1/settings", json!({"pool": "gold"})).await.unwrap();
    let error = cluster.client.delete::<Value>("/v1/pools/gold").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("pool web, VM web1 are in it"), "{error}");
    cluster.ask("/v1/pools/web", json!({"parent": null})).await.unwrap();
    cluster.ask("/v1/vms/web1/settings", json!({"pool": null})).await.unwrap();
    let _: Value = cluster.client.delete("/v1/pools/gold").await.unwrap();
    let error = cluster.refused("/v1/vms/web1/settings", json!({"pool": "gold"})).await;
    assert!(error.message.contains("'gold', which does not exist"), "{error}");
    cluster.end().await;
}

#[tokio::test]
async fn a_reservation_that_cannot_be_honoured_is_refused_before_and_after_the_start() {
    let cluster = Cluster::start().await;
    cluster.create("web1").await;
    let small = json!({"expandable": {"memory": false}, "controls": {"memory": {"reservation": 1000}}});
    cluster.ask("/v1/pools/small", small).await.unwrap();
    // It does not run yet, so it takes nothing.
    let wish = json!({"pool": "small", "controls": {"memory": {"reservation": 1001}}});
    cluster.ask("/v1/vms/web1/settings", wish).await.unwrap();
    let error = cluster.try_start("web1", Some("a")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("pool 'small' reserves 1B of memory more"), "{error}");
    cluster
        .ask("/v1/vms/web1/settings", json!({"controls": {"memory": {"reservation": 1000}}}))
        .await
        .unwrap();
    let task = cluster.try_start("web1", Some("a")).await.unwrap();
    cluster.ended(task.id).await;
    let error =
        cluster.refused("/v1/vms/web1/settings", json!({"controls": {"memory": {"reservation": 1001}}}));
    assert_eq!(error.await.code, ErrorCode::Refused);
    let error = cluster
        .refused("/v1/pools/small", json!({"controls": {"memory": {"reservation": 1_u64 << 50}}}))
        .await;
    assert!(error.message.contains("beyond what the hosts have"), "{error}");
    cluster.end().await;
}

#[tokio::test]
async fn preparing_for_the_loss_of_hosts_is_refused_where_what_is_left_would_not_do() {
    let cluster = Cluster::start().await;
    cluster.ask("/v1/pools/gold", json!({"controls": {"memory": {"reservation": 4096}}})).await.unwrap();
    cluster.ask("/v1/policy", json!({"failures_to_tolerate": 1})).await.unwrap();
    let error = cluster.refused("/v1/policy", json!({"failures_to_tolerate": 2})).await;
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("without the 2 largest"), "{error}");
    cluster.end().await;
}

#[tokio::test]
async fn the_policy_keeps_what_a_change_does_not_name() {
    let cluster = Cluster::start().await;
    let policy: Value = cluster.get("/v1/policy").await;
    assert_eq!((&policy["threshold"], &policy["automation"]), (&json!(3), &json!("partial")));
    cluster.ask("/v1/policy", json!({"power": {"enabled": true}})).await.unwrap();
    let policy = cluster.ask("/v1/policy", json!({"automation": "full"})).await.unwrap();
    assert_eq!((&policy["automation"], &policy["power"]["enabled"]), (&json!("full"), &json!(true)));
    let error = cluster.refused("/v1/policy", json!({"threshold": 7, "power": {"band_percent": 99}})).await;
    assert!(error.message.contains("threshold 7") && error.message.contains("give or take 99 %"), "{error}");
    assert_eq!(cluster.get::<Value>("/v1/policy").await, policy);
    cluster.end().await;
}

#[tokio::test]
async fn settings_of_unknown_vms_and_hosts_are_not_found_and_bad_ones_refused() {
    let cluster = Cluster::start().await;
    for path in ["/v1/vms/nope/settings", "/v1/hosts/nope/settings"] {
        assert_eq!(cluster.refused(path, json!({})).await.code, ErrorCode::NotFound);
        assert_eq!(cluster.client.get::<Value>(path).await.unwrap_err().code, ErrorCode::NotFound);
    }
    let bmc = json!({"driver": {"kind": "ipmi", "address": "-f", "user": "root", "password": "bmc"}});
    let error = cluster.refused("/v1/hosts/a/settings", bmc).await;
    assert!(error.message.contains("management controller"), "{error}");
    let error = cluster.refused("/v1/hosts/a/settings", json!({"power": {"watts": [7]}})).await;
    assert!(error.message.contains("two points"), "{error}");
    let outside = json!({"driver": {"kind": "simulated", "program": "../../bin/sh"}});
    assert_eq!(cluster.refused("/v1/hosts/a/settings", outside).await.code, ErrorCode::Invalid);
    let kept: Value = cluster.get("/v1/hosts/a/settings").await;
    assert_eq!(kept["driver"], json!({"kind": "none"}));
    cluster.end().await;
}
