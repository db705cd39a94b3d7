//! Following server-sent events across lost connections.
//!
//! ```text
//!  disconnected --connect, Last-Event-ID--> connected --event--> connected
//!       ^  '--fails for RECONNECT_PATIENCE--> error          |
//!       '------------ closed, silent, malformed -------------'
//! ```

use std::time::Duration;

use godwit_types::event::Event;
use godwit_types::{ApiError, ErrorCode};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderValue};
use tokio::time::{Instant, sleep, timeout};

use crate::client::Client;

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed attempt to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// How long attempts to connect may go on failing before the caller is told.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// How long the stream may be silent. The server sends a comment far more often.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Longest event that is read, in bytes.
const EVENT_BYTES_MAX: usize = 64 << 10;

/// A stream of events. A lost connection is made again and continues where it stopped.
#[derive(Debug)]
pub struct Events {
    client: Client,
    path: String,
    last: u64,
    body: Option<Incoming>,
    parser: Parser,
}

impl Events {
    pub(crate) fn new(client: Client, path: String, after: u64) -> Self {
        Self { client, path, last: after, body: None, parser: Parser::default() }
    }

    /// The next event. Safe to cancel.
    ///
    /// # Errors
    /// What the server refuses at once (a wrong token), and [`ErrorCode::Unreachable`] after failing to connect for
    /// a while; asking again then tries again.
    pub async fn next(&mut self) -> Result<Event, ApiError> {
        loop {
            if let Some(event) = self.parser.next()? {
                self.last = event.sequence;
                return Ok(event);
            }
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            match timeout(SILENCE_MAX, body.frame()).await {
                Ok(Some(Ok(frame))) => self.parser.feed(frame.data_ref().map_or(&[], |data| data)),
                Ok(Some(Err(_)) | None) | Err(_) => self.disconnect(),
            }
        }
    }

    fn disconnect(&mut self) {
        self.body = None;
        self.parser = Parser::default();
    }

    async fn connect(&mut self) -> Result<(), ApiError> {
        let give_up = Instant::now() + RECONNECT_PATIENCE;
        loop {
            match self.connect_once().await {
                Err(error) if error.code == ErrorCode::Unreachable && Instant::now() < give_up => {
                    sleep(RECONNECT_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn connect_once(&mut self) -> Result<(), ApiError> {
        let client = self.client.with_timeout(CONNECT_TIMEOUT);
        let mut request = client.request(Method::GET, &self.path, None)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        request.headers_mut().insert("last-event-id", HeaderValue::from(self.last));
        let response = client.in_time(client.send(request)).await?;
        if !response.status().is_success() {
            let refused = client.in_time(client.read_document::<serde_json::Value>(response)).await;
            return refused.map(|_| ());
        }
        self.body = Some(response.into_body());
        Ok(())
    }
}

/// The part of the event stream format that the manager uses: `data:` lines that an empty line ends.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    data: Vec<u8>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete event in what was fed.
    fn next(&mut self) -> Result<Option<Event>, ApiError> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = line.trim_ascii_end();
            if let Some(data) = line.strip_prefix(b"data:") {
                self.data.extend_from_slice(data.trim_ascii_start());
            } else if line.is_empty() && !self.data.is_empty() {
                let data = std::mem::take(&mut self.data);
                return serde_json::from_slice(&data).map(Some).map_err(|e| unreadable(&e.to_string()));
            }
        }
        if self.buffer.len() + self.data.len() > EVENT_BYTES_MAX {
            return Err(unreadable("it is too long"));
        }
        Ok(None)
    }
}

fn unreadable(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Failed,
        format!("the manager sent an event that this version cannot read: {why}"),
    )
    .remedy("check that both sides run the same version of Godwit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let text = ": hello\n\nid: 7\ndata: {\"sequence\":7,\"unix_ms\":1,\"kind\":\"vm.created\",\"message\":\"m\"}\r\n\r\n:\n";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            parser.feed(&text.as_bytes()[..cut]);
            let early = parser.next().unwrap();
            parser.feed(&text.as_bytes()[cut..]);
            let event = early.or_else(|| parser.next().unwrap()).expect("one event");
            assert_eq!((event.sequence, event.kind.as_str()), (7, "vm.created"));
            assert!(parser.next().unwrap().is_none());
        }
    }

    #[test]
    fn an_endless_event_is_refused_instead_of_kept() {
        let mut parser = Parser::default();
        parser.feed(&vec![b'x'; EVENT_BYTES_MAX + 1]);
        assert_eq!(parser.next().unwrap_err().code, ErrorCode::Failed);
    }
}
