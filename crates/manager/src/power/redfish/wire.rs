//! JSON over HTTPS with one controller.

use std::io;
use std::sync::Arc;

use godwit_types::power::Fingerprint;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::RedfishError;
use super::trust::{Roots, Trust, Why};

/// Most that is read of one answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Most of what a controller says that is told, in characters.
const SAID_CHARS_MAX: usize = 300;
/// The header with a session's token (DSP0266, "Redfish session login authentication").
const TOKEN: &str = "x-auth-token";

/// Whom is spoken to, and the session, once there is one. Connections end with it.
pub(super) struct Wire {
    address: String,
    port: u16,
    trust: Arc<Trust>,
    pinned: bool,
    token: Option<HeaderValue>,
    sender: Option<SendRequest<Full<Bytes>>>,
    connections: JoinSet<()>,
}

impl Wire {
    pub(super) fn new(address: &str, port: u16, pinned: Option<Fingerprint>, roots: Roots) -> Self {
        Self {
            address: address.to_owned(),
            port,
            pinned: pinned.is_some(),
            trust: Trust::new(pinned, roots),
            token: None,
            sender: None,
            connections: JoinSet::new(),
        }
    }

    /// The controller in words.
    pub(super) fn at(&self) -> String {
        format!("the controller at {}:{}", self.address, self.port)
    }

    pub(super) fn strange(&self, what: String) -> RedfishError {
        RedfishError::Strange { at: self.at(), what }
    }

    fn broken(&self, why: impl ToString) -> RedfishError {
        RedfishError::Broken { at: self.at(), why: why.to_string() }
    }

    /// Where a reference leads, on this very controller.
    pub(super) fn link(&self, reference: &Value) -> Result<String, RedfishError> {
        let path = reference["@odata.id"].as_str().filter(|path| path.starts_with('/'));
        path.map(str::to_owned)
            .ok_or_else(|| self.strange(format!("no reference, but {}", short(&reference.to_string()))))
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Value, RedfishError> {
        self.ask(Method::GET, path, None, &format!("show {path}")).await
    }

    /// Asks for something, and takes nothing but success for an answer. `deed` names it for people.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
        deed: &str,
    ) -> Result<Value, RedfishError> {
        let (status, _, answer) = self.exchange(method, path, body).await?;
        if status.is_success() {
            return Ok(answer);
        }
        let (deed, said) = (deed.to_owned(), said(&answer));
        Err(RedfishError::Refused { at: self.at(), deed, status: status.as_u16(), said })
    }

    /// Opens a session, with which everything from now on is asked; where it is.
    pub(super) async fn open_session(
        &mut self,
        path: &str,
        login: Value,
        user: &str,
    ) -> Result<String, RedfishError> {
        let (status, headers, answer) = self.exchange(Method::POST, path, Some(login)).await?;
        if !status.is_success() {
            return Err(RedfishError::Login { at: self.at(), user: user.to_owned(), said: said(&answer) });
        }
        let Some(mut token) = headers.get(TOKEN).cloned() else {
            return Err(self.strange("a session without a token".into()));
        };
        token.set_sensitive(true);
        self.token = Some(token);
        let place = headers.get(LOCATION).and_then(|place| place.to_str().ok()?.parse::<Uri>().ok());
        let place = place.map(|place| place.path().to_owned());
        place.map_or_else(|| self.link(&answer), Ok)
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, HeaderMap, Value), RedfishError> {
        let sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, format!("{}:{}", bracketed(&self.address), self.port))
            .header(ACCEPT, "application/json")
            .header("odata-version", "4.0");
        if let Some(token) = &self.token {
            request = request.header(TOKEN, token.clone());
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                body.to_string().into()
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body));
        let request = request.map_err(|_| self.strange(format!("a place that is none: {}", short(path))))?;
        let sender = self.sender.insert(sender);
        let answered = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let answer = answered.await.map_err(|error| self.broken(error))?;
        let (parts, body) = answer.into_parts();
        let body =
            Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| self.broken(error))?;
        // An answer without a document says what it says by its status.
        let document = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        Ok((parts.status, parts.headers, document))
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, RedfishError> {
        let at = self.at();
        let reach = |source| RedfishError::Reach { at: at.clone(), source };
        let name = ServerName::try_from(self.address.clone())
            .map_err(|_| reach(io::Error::other("this is neither a name nor an address")))?;
        let config = self.trust.config().map_err(|error| self.broken(error))?;
        let tcp = TcpStream::connect((self.address.as_str(), self.port)).await.map_err(reach)?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let tls = tls.map_err(|error| self.not_secure(error))?;
        let (sender, connection) = handshake(TokioIo::new(tls)).await.map_err(|error| self.broken(error))?;
        self.connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection to a controller ended: {error}");
            }
        });
        Ok(sender)
    }

    fn not_secure(&self, error: io::Error) -> RedfishError {
        let refused = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match refused {
            Some(refused @ rustls::Error::InvalidCertificate(_)) => RedfishError::Certificate {
                at: self.at(),
                why: Why(refused).to_string(),
                seen: self.trust.seen(),
                pinned: self.pinned,
            },
            _ => self.broken(format!("TLS: {error}")),
        }
    }
}

/// An IPv6 address as it stands before a port.
fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// What an error says (DSP0266, "Error responses"), in one line.
fn said(answer: &Value) -> String {
    let error = &answer["error"];
    let more = error["@Message.ExtendedInfo"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<&str> = more.iter().filter_map(|info| info["Message"].as_str()).collect();
    match (texts.is_empty(), error["message"].as_str()) {
        (false, _) => short(&texts.join(" ")),
        (true, Some(message)) => short(message),
        (true, None) => "it does not say why".into(),
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect()
}
