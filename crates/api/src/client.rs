//! The client: typed JSON over kept-open HTTP/1.1 connections.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use godwit_types::{ApiError, ErrorCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::RESPONSE_BYTES_MAX;
use crate::events::Events;
use crate::token::Token;
use crate::url::BaseUrl;

/// How long a request may take unless [`Client::with_timeout`] says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the connection may take; part of the request's time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused connection is kept. Shorter than a server's patience, so that the server never closes a
/// connection on which a request is just being sent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection asks the server's kernel for a sign of life after this long, and then this often.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// A server whose kernel acknowledges nothing for as long is gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(15);
/// Unused connections kept.
const IDLE_CONNECTIONS_MAX: usize = 4;

const REACH_REMEDY: &str = "check that it runs and listens there, and that no firewall is in between";

/// A raw byte stream that a connection was upgraded to.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Asks one API server. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    base: BaseUrl,
    token: Option<Token>,
    timeout: Duration,
}

impl Client {
    /// A client of the server at `base`. Nothing is connected yet.
    pub fn new(base: impl Into<BaseUrl>, token: Option<Token>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // A peer that is gone takes its connections along, event streams and consoles included.
        connector.set_keepalive(Some(KEEPALIVE_IDLE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_tcp_user_timeout(Some(GONE_TIMEOUT));
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Self { pool, base: base.into(), token, timeout: REQUEST_TIMEOUT }
    }

    /// The same client, whose requests may take `timeout` from sending to the answer's last byte.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The server's address.
    pub fn base(&self) -> &BaseUrl {
        &self.base
    }

    /// `GET path`.
    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R, ApiError> {
        self.exchange(Method::GET, path, None).await
    }

    /// `POST path` with `body` as JSON.
    pub async fn post<B: Serialize, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R, ApiError> {
        let body = serde_json::to_vec(body).map_err(|e| {
            ApiError::new(ErrorCode::Internal, format!("cannot write the request as JSON: {e}"))
        })?;
        self.exchange(Method::POST, path, Some(body.into())).await
    }

    /// `DELETE path`.
    pub async fn delete<R: DeserializeOwned>(&self, path: &str) -> Result<R, ApiError> {
        self.exchange(Method::DELETE, path, None).await
    }

    /// The events after the sequence number `after`, as they happen. Connects when first asked for an event.
    pub fn events(&self, path: &str, after: u64) -> Events {
        Events::new(self.clone(), path.to_owned(), after)
    }

    /// Turns a connection into a raw byte stream of `protocol`.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<Upgraded, ApiError> {
        let request = self.request(Method::GET, path, None)?;
        let (mut parts, body) = request.into_parts();
        let protocol =
            protocol.parse().map_err(|_| invalid(format!("'{protocol}' cannot stand in a header")))?;
        parts.headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
        self.in_time(async {
            let response = self.send(Request::from_parts(parts, body)).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(match self.read_document::<serde_json::Value>(response).await {
                    Ok(_) => ApiError::new(
                        ErrorCode::Failed,
                        format!("{} does not offer a stream at {path}", self.base),
                    ),
                    Err(error) => error,
                });
            }
            let upgraded = hyper::upgrade::on(response).await.map_err(|e| self.unreachable(&e))?;
            Ok(TokioIo::new(upgraded))
        })
        .await
    }

    async fn exchange<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<R, ApiError> {
        let request = self.request(method, path, body)?;
        self.in_time(async { self.read_document(self.send(request).await?).await }).await
    }

    /// A request with the headers that all have.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let uri = self.base.join(path).map_err(|e| invalid(e.to_string()))?;
        let mut request = Request::builder().method(method).uri(uri).header(ACCEPT, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body.unwrap_or_default())).map_err(|e| invalid(e.to_string()))
    }

    /// Sends, and returns once the response's head is there. The caller bounds the time.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ApiError> {
        self.pool.request(request).await.map_err(|e| self.unreachable(&e))
    }

    /// The document in the response's body, or the error in it.
    pub(crate) async fn read_document<R: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<R, ApiError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await;
        let body = body.map_err(|e| self.unreachable(e.as_ref()))?.to_bytes();
        if !status.is_success() {
            return Err(serde_json::from_slice(&body).unwrap_or_else(|_| self.foreign(status)));
        }
        serde_json::from_slice(&body).map_err(|e| {
            let message = format!("{} sent a document that this version cannot read: {e}", self.base);
            ApiError::new(ErrorCode::Failed, message)
                .remedy("check that both sides run the same version of Godwit")
        })
    }

    pub(crate) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| {
            let message = format!("{} did not answer within {} ms", self.base, self.timeout.as_millis());
            Err(ApiError::new(ErrorCode::Unreachable, message).remedy(REACH_REMEDY))
        })
    }

    pub(crate) fn unreachable(&self, error: &(dyn Error + 'static)) -> ApiError {
        let message = format!("cannot reach {}: {}", self.base, innermost(error));
        ApiError::new(ErrorCode::Unreachable, message).remedy(REACH_REMEDY)
    }

    /// An error status without one of our documents: something else answered.
    fn foreign(&self, status: StatusCode) -> ApiError {
        let message = format!("{} answered {status} without an error document", self.base);
        ApiError::new(ErrorCode::Failed, message)
            .remedy("check that this is the address of a Godwit manager or agent")
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

/// The text of the cause at the bottom, which says what the system said.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
