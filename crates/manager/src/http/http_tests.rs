//! The routes and their description.

use std::collections::BTreeSet;
use std::path::Path;

use godwit_api::{Client, Token};
use godwit_types::ErrorCode;
use tokio::net::TcpListener;
use utoipa::openapi::PathItem;

use super::*;
use crate::manager::Limits;
use crate::store::Store;

/// When set, the checked-in document is written instead of compared.
const BLESS: &str = "GODWIT_BLESS";

fn described() -> BTreeSet<(String, &'static str)> {
    let methods = |(path, item): (&String, &PathItem)| {
        let all = [("GET", &item.get), ("POST", &item.post), ("DELETE", &item.delete)];
        let path = path.clone();
        let present = all.map(|(method, operation)| operation.as_ref().map(|_| (path.clone(), method)));
        present.into_iter().flatten()
    };
    openapi().paths.paths.iter().flat_map(methods).collect()
}

/// Every method of every route that is not answered by "does not take".
async fn served(client: &Client) -> BTreeSet<(String, &'static str)> {
    let mut served = BTreeSet::new();
    for (path, _) in routes().into_iter().chain(open_routes()) {
        let uri = path.replace(['{', '}'], "");
        let answers = [
            ("GET", client.get::<serde_json::Value>(&uri).await),
            ("POST", client.post::<_, serde_json::Value>(&uri, &()).await),
            ("DELETE", client.delete(&uri).await),
        ];
        for (method, answer) in answers {
            match answer {
                Err(error) if error.code == ErrorCode::Invalid => {
                    assert!(error.message.contains("does not take"))
                }
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::Unauthorized, "{method} {path}: {error}");
                    served.insert((path.to_owned(), method));
                }
                Ok(_) => {
                    assert_eq!(path, "/v1/health", "answers without a token");
                    served.insert((path.to_owned(), method));
                }
            }
        }
    }
    served
}

#[tokio::test]
async fn every_route_is_described_and_guarded_and_nothing_else_is_described() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let token = Token::new("0123456789abcdef").unwrap();
    let manager = Manager::new(store, token, dir.path().join("power"), Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(listener.local_addr().unwrap(), None);
    let server = godwit_api::server::serve(listener, router(Arc::new(manager)), std::future::pending());
    let served = tokio::select! {
        () = server => unreachable!("it is never told to stop"),
        served = served(&client) => served,
    };
    assert_eq!(served, described());
}

#[test]
fn every_operation_has_its_own_id() {
    let document = openapi();
    let operations = document.paths.paths.values().flat_map(|item| [&item.get, &item.post, &item.delete]);
    let ids: Vec<_> = operations.flatten().map(|operation| operation.operation_id.clone().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}

#[test]
fn the_checked_in_description_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let current = openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == current,
        "docs/openapi.json is not what the code says: write it with {BLESS}=1 cargo test -p godwit-manager, and commit it"
    );
}
