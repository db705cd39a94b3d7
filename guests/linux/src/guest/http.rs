//! HTTP/1.1 with kept-open connections, as much of it as the guest contract needs.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::{State, count};
use crate::boot::{Power, power};

const PORT: u16 = 80;
const CONNECTIONS_MAX: usize = 64;
const HEAD_BYTES_MAX: u64 = 8 << 10;
/// A download goes on at about 10 KiB a second: emulated hosts are slow, and what counts is that it is never interrupted.
const DOWNLOAD_NUMBERS: u64 = 256;
const DOWNLOAD_PAUSE: Duration = Duration::from_millis(200);
/// How long an answer has to reach the client before the guest powers off.
const FAREWELL: Duration = Duration::from_millis(200);

/// Opens the port, and answers from then on.
pub(super) fn listen(state: &Arc<State>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let state = Arc::clone(state);
    thread::spawn(move || accept(&listener, &state));
    Ok(())
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((connection, _)) = listener.accept() else { continue };
        if open.load(Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, Relaxed);
        let (state, open) = (Arc::clone(state), Arc::clone(&open));
        thread::spawn(move || {
            // A client that goes away in the middle of a request is no concern of the guest.
            let _ = converse(connection, &state);
            open.fetch_sub(1, Relaxed);
        });
    }
}

fn converse(mut connection: TcpStream, state: &State) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        if request.target == "GET /download" {
            return download(connection);
        }
        let answer = respond(state, &request.target);
        connection.write_all(&answer.encode(request.close))?;
        if let Some(how) = answer.then {
            thread::sleep(FAREWELL);
            power(how);
        }
        if request.close {
            break;
        }
    }
    Ok(())
}

/// Sends numbers, from 0 on, each as 8 bytes, little-endian, until the client goes away.
fn download(mut connection: TcpStream) -> io::Result<()> {
    connection.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nconnection: close\r\n\r\n",
    )?;
    for first in (0u64..).step_by(DOWNLOAD_NUMBERS as usize) {
        let numbers: Vec<u8> = (first..first + DOWNLOAD_NUMBERS).flat_map(u64::to_le_bytes).collect();
        connection.write_all(&numbers)?;
        thread::sleep(DOWNLOAD_PAUSE);
    }
    Ok(())
}

struct Request {
    /// Method and path, such as `GET /report`.
    target: String,
    /// Whether the client wants the connection closed afterwards.
    close: bool,
}

/// The next request; `None` when the client has closed the connection.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = io::Read::take(reader.by_ref(), HEAD_BYTES_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let target = [words.next().unwrap_or_default(), words.next().unwrap_or_default()].join(" ");
    let (mut close, mut body_bytes) = (false, 0);
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = line.trim().to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("connection", value)) => close = value.trim() == "close",
            Some(("content-length", value)) => body_bytes = value.trim().parse().unwrap_or(0),
            Some(_) => {}
        }
    }
    io::copy(&mut io::Read::take(reader, body_bytes), &mut io::sink())?;
    Ok(Some(Request { target, close }))
}

struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
    then: Option<Power>,
}

fn respond(state: &State, target: &str) -> Answer {
    match target {
        "GET /" => Answer::text("200 OK", count(&state.requests).to_string()),
        "GET /report" => {
            Answer { content_type: "application/json", ..Answer::text("200 OK", state.report()) }
        }
        "POST /gap/reset" => {
            state.max_gap_us.store(0, Relaxed);
            Answer::empty(None)
        }
        "POST /poweroff" => Answer::empty(Some(Power::Off)),
        "POST /reboot" => Answer::empty(Some(Power::Reboot)),
        _ => Answer::text("404 Not Found", format!("{target} is not served\n")),
    }
}

impl Answer {
    fn text(status: &'static str, body: String) -> Self {
        Self { status, content_type: "text/plain", body, then: None }
    }

    fn empty(then: Option<Power>) -> Self {
        Self { then, ..Self::text("204 No Content", String::new()) }
    }

    fn encode(&self, close: bool) -> Vec<u8> {
        let Self { status, content_type, body, .. } = self;
        let connection = if close { "close" } else { "keep-alive" };
        let length = match *status {
            "204 No Content" => String::new(),
            _ => format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len()),
        };
        format!("HTTP/1.1 {status}\r\n{length}connection: {connection}\r\n\r\n{body}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(requests: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(requests.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        converse(server, &State::default()).unwrap();
        io::read_to_string(client).unwrap()
    }

    #[test]
    fn one_connection_carries_many_requests_with_bodies_and_ends_when_asked_to() {
        let text = answers(
            "GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST /gap/reset HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
             GET /nothing HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        );
        let parts: Vec<&str> = text.split("HTTP/1.1 ").skip(1).collect();
        assert_eq!(parts.len(), 4, "{text}");
        assert!(parts[0].starts_with("200 OK") && parts[0].ends_with("\r\n\r\n1"));
        assert!(parts[1].starts_with("204") && !parts[1].contains("content-length"));
        assert!(parts[2].starts_with("404"));
        assert!(parts[3].contains("connection: close") && parts[3].ends_with("\r\n\r\n2"));
    }

    #[test]
    fn a_download_counts_from_zero_until_its_client_goes_away() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(b"GET /download HTTP/1.1\r\n\r\n").unwrap();
        let serving = thread::spawn(move || converse(server, &State::default()));
        let mut reader = BufReader::new(client);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        for expected in 0..2 * DOWNLOAD_NUMBERS {
            let mut number = [0; 8];
            io::Read::read_exact(&mut reader, &mut number).unwrap();
            assert_eq!(u64::from_le_bytes(number), expected);
        }
        drop(reader);
        assert!(serving.join().unwrap().is_err());
    }

    #[test]
    fn a_request_that_never_ends_is_given_up() {
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(20_000));
        assert!(read_request(&mut endless.as_bytes()).is_err());
    }
}
