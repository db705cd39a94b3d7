//! What a bad request is told.

use godwit_api::{Client, Token};
use godwit_types::ErrorCode;
use godwit_types::api::Empty;
use godwit_types::vm::CreateVm;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Cluster, spec};

#[tokio::test]
async fn unknown_names_are_not_found_and_named() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    cluster.running("web1").await;
    let task = Uuid::nil();
    let errors = [
        client.get::<Value>("/v1/vms/nope").await.unwrap_err(),
        client.get::<Value>("/v1/hosts/nope").await.unwrap_err(),
        client.delete::<Value>("/v1/vms/nope").await.unwrap_err(),
        cluster.try_start("nope", None).await.unwrap_err(),
        cluster.try_migrate("nope", "b").await.unwrap_err(),
        cluster.try_migrate("web1", "nope").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code, ErrorCode::NotFound, "{error}");
        assert!(error.message.contains("'nope'") && error.remedy.is_some(), "{error:?}");
    }
    let error = client.get::<Value>(&format!("/v1/tasks/{task}")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    cluster.end().await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_everywhere() {
    let cluster = Cluster::start().await;
    let stranger = Client::new(cluster.config.listen, Token::new("not-the-right-token"));
    for path in ["/v1/vms", "/v1/hosts", "/v1/tasks", "/v1/events", "/v1/openapi.json"] {
        assert_eq!(stranger.get::<Value>(path).await.unwrap_err().code, ErrorCode::Unauthorized, "{path}");
    }
    let claim = stranger.post::<_, Value>("/v1/arbiter/claim", &json!({})).await.unwrap_err();
    assert_eq!(claim.code, ErrorCode::Unauthorized);
    assert!(stranger.get::<Value>("/v1/health").await.unwrap()["version"].is_string());
    cluster.end().await;
}

#[tokio::test]
async fn malformed_and_impossible_documents_are_refused_with_the_reason() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    let good = serde_json::to_value(CreateVm { name: "web1".parse().unwrap(), spec: spec() }).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        bad
    };
    for (bad, reason) in [
        (json!({}), "name"),
        (with("/name", json!("a/b")), "letters, digits"),
        (with("/spec/vcpus", json!(0)), "vCPUs"),
        (with("/spec/memory", json!(1)), "memory"),
        (with("/spec/disks/0/image", json!("shared/../etc/passwd")), "'..'"),
        (with("/spec/nics/0", json!({"network": "lan", "mac": "01:00:00:00:00:00"})), "unicast"),
    ] {
        let error = client.post::<_, Value>("/v1/vms", &bad).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid, "{bad}");
        assert!(error.message.contains(reason), "{reason} is missing from: {}", error.message);
    }
    let elsewhere = client.post::<_, Empty>("/v1/hosts/c/heartbeat", &json!({})).await.unwrap_err();
    assert_eq!(elsewhere.code, ErrorCode::Invalid);
    cluster.end().await;
}

#[tokio::test]
async fn a_name_or_a_mac_address_that_is_taken_is_a_conflict() {
    let cluster = Cluster::start().await;
    let first = cluster.create("web1").await;
    let mut again = CreateVm { name: "web1".parse().unwrap(), spec: spec() };
    let error = cluster.client.post::<_, Value>("/v1/vms", &again).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    again.name = "web2".parse().unwrap();
    again.spec.nics[0].mac = first.spec.nics[0].mac;
    let error = cluster.client.post::<_, Value>("/v1/vms", &again).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("web1"), "{}", error.message);
    cluster.end().await;
}

#[tokio::test]
async fn the_description_is_served() {
    let cluster = Cluster::start().await;
    let document = cluster.get::<Value>("/v1/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/v1/vms/{vm}/migrate"]["post"].is_object());
    cluster.end().await;
}
