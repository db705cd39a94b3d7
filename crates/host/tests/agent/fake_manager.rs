//! A stand-in for the manager: notes what it is told, and answers the arbiter's questions as the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use godwit_api::Token;
use godwit_api::server::{ErrorResponse, Json, require_token, serve};
use godwit_types::api::{Empty, Health};
use godwit_types::host::HostReport;
use godwit_types::ownership::{ClaimRequest, CommitRequest, Verdict};
use godwit_types::{ApiError, ErrorCode};
use tokio::sync::oneshot;

/// What the manager was told, and what it says.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) reports: Vec<HostReport>,
    pub(crate) commits: Vec<CommitRequest>,
    pub(crate) claims: Vec<ClaimRequest>,
    /// None: the store is broken, every question ends in an error.
    pub(crate) verdict: Option<Verdict>,
}

pub(crate) type Shared = Arc<Mutex<Book>>;

/// A manager that can be reached until this is dropped.
pub(crate) struct Manager {
    _stop: oneshot::Sender<()>,
}

impl Manager {
    pub(crate) async fn start(address: SocketAddr, token: Token, book: Shared) -> Self {
        let closed = Router::new()
            .route("/v1/hosts/{name}/heartbeat", post(heartbeat))
            .route("/v1/arbiter/commit", post(commit))
            .route("/v1/arbiter/claim", post(claim));
        let router = require_token(closed, token).route("/v1/health", get(health)).with_state(book);
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            serve(listener, router, stopped).await;
        });
        Self { _stop: stop }
    }
}

async fn health() -> Json<Health> {
    Json(Health { version: "0".to_owned() })
}

async fn heartbeat(State(book): State<Shared>, Json(report): Json<HostReport>) -> Json<Empty> {
    book.lock().unwrap().reports.push(report);
    Json(Empty {})
}

async fn commit(
    State(book): State<Shared>,
    Json(asked): Json<CommitRequest>,
) -> Result<Json<Verdict>, ErrorResponse> {
    let mut book = book.lock().unwrap();
    book.commits.push(asked);
    verdict(&book)
}

async fn claim(
    State(book): State<Shared>,
    Json(asked): Json<ClaimRequest>,
) -> Result<Json<Verdict>, ErrorResponse> {
    let mut book = book.lock().unwrap();
    book.claims.push(asked);
    verdict(&book)
}

fn verdict(book: &Book) -> Result<Json<Verdict>, ErrorResponse> {
    let broken = || ErrorResponse(ApiError::new(ErrorCode::Internal, "the store is broken"));
    book.verdict.clone().map(Json).ok_or_else(broken)
}
