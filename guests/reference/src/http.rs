//! Just enough of HTTP/1.1, with connections that stay open.

use core::fmt::{self, Write};

use smoltcp::socket::tcp::{Socket, State};

use crate::text::Text;

/// Longest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 1024;
/// Longest response, in bytes: head and body.
pub const RESPONSE_BYTES_MAX: usize = HEAD_ROOM + BODY_BYTES_MAX;
const HEAD_ROOM: usize = 256;
const BODY_BYTES_MAX: usize = 8192 - HEAD_ROOM;

/// One connection's place in its stream of requests.
#[derive(Default)]
pub struct Connection {
    /// Bytes of a request's body still to be passed over.
    body_left: usize,
    closing: bool,
}

/// What a client asks.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
}

/// What it is answered.
pub struct Response {
    status: &'static str,
    content_type: &'static str,
    body: Text<BODY_BYTES_MAX>,
}

impl Response {
    pub fn new(status: &'static str, content_type: &'static str, body: &dyn fmt::Display) -> Self {
        let mut text = Text::new();
        write!(text, "{body}").expect("bodies are shorter than the longest response");
        Self { status, content_type, body: text }
    }

    pub fn empty(status: &'static str) -> Self {
        Self { status, content_type: "", body: Text::new() }
    }
}

impl Connection {
    /// Answers the requests that have arrived whole, as far as there is room for the answers.
    pub fn serve(&mut self, socket: &mut Socket<'_>, answer: &mut dyn FnMut(Request<'_>) -> Response) {
        while !self.closing && socket.send_capacity() - socket.send_queue() >= RESPONSE_BYTES_MAX {
            self.skip_body(socket);
            let mut buffer = [0; HEAD_BYTES_MAX];
            let length = socket.peek_slice(&mut buffer).unwrap_or(0);
            let received = &buffer[..length];
            let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                if length == HEAD_BYTES_MAX {
                    self.closing = true;
                    respond(socket, &Response::empty("431 Request Header Fields Too Large"), true);
                }
                break;
            };
            let head = Head::parse(&received[..end]);
            self.closing = head.as_ref().is_none_or(|head| head.close);
            self.body_left = head.as_ref().map_or(0, |head| head.body_bytes);
            let response = match head {
                Some(head) => answer(head.request),
                None => Response::empty("400 Bad Request"),
            };
            respond(socket, &response, self.closing);
            discard(socket, end + 4);
        }
        let peer_is_done = socket.state() == State::CloseWait && socket.recv_queue() < HEAD_BYTES_MAX;
        if self.closing || (peer_is_done && socket.send_queue() == 0) {
            socket.close();
        }
    }

    fn skip_body(&mut self, socket: &mut Socket<'_>) {
        self.body_left -= discard(socket, self.body_left);
    }
}

/// Passes over up to `most` received bytes. Answers how many.
fn discard(socket: &mut Socket<'_>, most: usize) -> usize {
    let mut passed = 0;
    while passed < most && socket.can_recv() {
        let left = most - passed;
        passed += socket.recv(|bytes| (bytes.len().min(left), bytes.len().min(left))).unwrap_or(left);
    }
    passed
}

/// A request's head.
struct Head<'a> {
    request: Request<'a>,
    body_bytes: usize,
    close: bool,
}

impl<'a> Head<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        let mut lines = core::str::from_utf8(head).ok()?.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let request = Request { method: words.next()?, path: words.next()? };
        let mut parsed = Self { request, body_bytes: 0, close: words.next()? != "HTTP/1.1" };
        for line in lines {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                parsed.body_bytes = value.parse().ok()?;
            } else if name.eq_ignore_ascii_case("connection") {
                parsed.close |= value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return None;
            }
        }
        Some(parsed)
    }
}

fn respond(socket: &mut Socket<'_>, response: &Response, close: bool) {
    let mut head = Text::<HEAD_ROOM>::new();
    let body = response.body.as_str();
    let _ = write!(head, "HTTP/1.1 {}\r\n", response.status);
    if !response.content_type.is_empty() {
        let _ = write!(head, "Content-Type: {}\r\nContent-Length: {}\r\n", response.content_type, body.len());
    } else if !response.status.starts_with("204") {
        let _ = head.write_str("Content-Length: 0\r\n");
    }
    let _ = head.write_str(if close { "Connection: close\r\n\r\n" } else { "\r\n" });
    for part in [head.as_str(), body] {
        // There is room: `serve` has looked.
        let _ = socket.send_slice(part.as_bytes());
    }
}
