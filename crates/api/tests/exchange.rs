//! A client and a server over loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use godwit_api::server::{Json, Path, Query, require_token, serve, with_error_documents};
use godwit_api::{BaseUrl, CONSOLE_PROTOCOL, Client, REQUEST_BYTES_MAX, Token};
use godwit_types::api::{Empty, Health};
use godwit_types::event::Event;
use godwit_types::{ErrorCode, Name};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, router(), async {
            let _ = stopped.await;
        }));
        Self { address, stop, task }
    }

    fn client(&self) -> Client {
        Client::new(self.address, Token::new(TOKEN))
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

fn router() -> Router {
    let closed = Router::new()
        .route("/echo", post(|Json(health): Json<Health>| async { Json(health) }))
        .route("/names/{name}", get(|Path(name): Path<Name>| async move { Json(name) }))
        .route("/sum", get(|Query([a, b]): Query<[(String, u64); 2]>| async move { Json(a.1 + b.1) }))
        .route("/slow", get(std::future::pending::<Json<Empty>>))
        .route("/console", get(console))
        .route("/events", get(events));
    let open = Router::new().route("/v1/health", get(|| async { Json(Health { version: "1".into() }) }));
    with_error_documents(require_token(closed, Token::new(TOKEN).unwrap()).merge(open))
}

async fn console(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut line = [0; 5];
        stream.read_exact(&mut line).await.unwrap();
        line.reverse();
        stream.write_all(&line).await.unwrap();
    });
    let headers = [("connection", "upgrade"), ("upgrade", CONSOLE_PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Two events after the last one seen, then the connection ends.
async fn events(headers: HeaderMap) -> Response {
    let last: u64 = headers["last-event-id"].to_str().unwrap().parse().unwrap();
    let event = |sequence| {
        let event = Event {
            sequence,
            unix_ms: 0,
            kind: "test".into(),
            message: "m".into(),
            vm: None,
            host: None,
            task: None,
        };
        format!("id: {sequence}\ndata: {}\n\n", serde_json::to_string(&event).unwrap())
    };
    let text = format!(": hello\n\n{}{}", event(last + 1), event(last + 2));
    Body::new(http_body_util::Full::new(Bytes::from(text)).map_err(|e: Infallible| e)).into_response()
}

#[tokio::test]
async fn documents_go_there_and_back() {
    let server = Server::start().await;
    let health = Health { version: "7".into() };
    let answer: Health = server.client().post("/echo", &health).await.unwrap();
    assert_eq!(answer, health);
    assert_eq!(server.client().get::<String>("/names/web1").await.unwrap(), "web1");
    server.stop().await;
}

#[tokio::test]
async fn a_missing_or_wrong_token_is_refused_except_where_the_route_is_open() {
    let server = Server::start().await;
    for token in [None, Token::new("fedcba9876543210fedcba9876543210")] {
        let client = Client::new(server.address, token);
        let error = client.get::<String>("/names/web1").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthorized);
        assert!(error.remedy.unwrap().contains("token"));
        assert_eq!(client.get::<Health>("/v1/health").await.unwrap().version, "1");
    }
    server.stop().await;
}

#[tokio::test]
async fn malformed_requests_are_told_what_is_wrong() {
    let server = Server::start().await;
    let client = server.client();
    let wrong = client.post::<_, Empty>("/echo", &serde_json::json!({"verzion": "7"})).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::Invalid);
    assert!(wrong.message.contains("version"), "{}", wrong.message);
    let name = client.get::<String>("/names/-x").await.unwrap_err();
    assert_eq!(name.code, ErrorCode::Invalid);
    assert!(name.message.contains("letters, digits"), "{}", name.message);
    let nothing = client.get::<Empty>("/nothing").await.unwrap_err();
    assert_eq!(nothing.code, ErrorCode::NotFound);
    let method = client.delete::<Empty>("/echo").await.unwrap_err();
    assert_eq!(method.code, ErrorCode::Invalid);
    server.stop().await;
}

#[tokio::test]
async fn an_oversized_request_is_refused() {
    let server = Server::start().await;
    let health = Health { version: "7".repeat(REQUEST_BYTES_MAX) };
    let error = server.client().post::<_, Health>("/echo", &health).await.unwrap_err();
    assert!(matches!(error.code, ErrorCode::Invalid | ErrorCode::Unreachable), "{error:?}");
    server.stop().await;
}

#[tokio::test]
async fn nobody_listening_is_reported_with_the_address_and_a_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Client::new(address, None).get::<Health>("/v1/health").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.message.contains(&address.to_string()), "{}", error.message);
    assert!(error.remedy.is_some());
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let server = Server::start().await;
    let client = server.client().with_timeout(Duration::from_millis(50));
    let error = client.get::<Empty>("/slow").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    // And a request that never ends does not keep the server from stopping.
    let slow = server.client();
    let waiting = tokio::spawn(async move { slow.get::<Empty>("/slow").await });
    tokio::task::yield_now().await;
    server.stop().await;
    assert_eq!(waiting.await.unwrap().unwrap_err().code, ErrorCode::Unreachable);
}

#[tokio::test]
async fn events_go_on_after_a_lost_connection_without_gap_or_repeat() {
    let server = Server::start().await;
    let mut events = server.client().events("/events", 10);
    for expected in 11..=15 {
        assert_eq!(events.next().await.unwrap().sequence, expected);
    }
    let mut refused = Client::new(server.address, None).events("/events", 0);
    assert_eq!(refused.next().await.unwrap_err().code, ErrorCode::Unauthorized);
    server.stop().await;
}

#[tokio::test]
async fn an_upgraded_connection_carries_raw_bytes() {
    let server = Server::start().await;
    let mut stream = server.client().upgrade("/console", CONSOLE_PROTOCOL).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "olleh");
    let error = server.client().upgrade("/nothing", CONSOLE_PROTOCOL).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    server.stop().await;
}

#[test]
fn base_urls_come_from_text_and_from_addresses() {
    let url: BaseUrl = "http://127.0.0.1:7400".parse().unwrap();
    assert_eq!(BaseUrl::from("127.0.0.1:7400".parse::<SocketAddr>().unwrap()), url);
}
