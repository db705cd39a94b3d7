//! One HTTP/1.1 connection that is kept open, and the client that keeps asking on it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{LoadOptions, Requests, web};
use crate::{LabError, Result};

/// Between an answer and the next request: leaves the machine to the guest without hiding a gap.
const PAUSE: Duration = Duration::from_millis(1);
/// Between a failure and the next attempt to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Longest header block, and longest body, that a guest may send, in bytes.
const PART_BYTES_MAX: u64 = 64 << 10;

/// An open connection.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; every later read and write may take up to `limit` too.
    pub(super) fn open(address: SocketAddrV4, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::V4(address), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request without a body; returns the status and the body.
    pub(super) fn request(&mut self, method: &str, path: &str) -> io::Result<(u16, String)> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: guest\r\nContent-Length: 0\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status: u16 = status.ok_or_else(|| malformed("no HTTP status"))?;
        let length = self.content_length()?;
        if length.is_none() && status != 204 {
            return Err(malformed("no Content-Length"));
        }
        let length = length.unwrap_or(0);
        if length > PART_BYTES_MAX {
            return Err(malformed("the body is too long"));
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body)?;
        String::from_utf8(body).map(|body| (status, body)).map_err(|_| malformed("the body is not text"))
    }

    fn content_length(&mut self) -> io::Result<Option<u64>> {
        let (mut length, mut total) = (None, 0);
        loop {
            let line = self.line()?;
            total += line.len() as u64 + 2;
            if line.is_empty() {
                return Ok(length);
            }
            if total > PART_BYTES_MAX {
                return Err(malformed("the header is too long"));
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse().map_err(|_| malformed("a bad Content-Length"))?);
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(PART_BYTES_MAX).read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the guest closed the connection")),
        }
    }
}

/// Starts the client: it connects once, and again only after a failure.
pub(super) fn spawn(
    options: &LoadOptions,
    stop: Arc<AtomicBool>,
    requests: Arc<Mutex<Requests>>,
) -> Result<JoinHandle<()>> {
    let options = options.clone();
    let client = move || {
        if let Err(error) = options.client.enter() {
            return record(&requests, Err(error.chain()));
        }
        let mut client =
            Client { address: web(options.guest), limit: options.request_limit, last: 0, connection: None };
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let outcome = client.ask().map(|()| begun.elapsed());
            let failed = outcome.is_err();
            record(&requests, outcome);
            std::thread::sleep(if failed { RECONNECT_PAUSE } else { PAUSE });
        }
    };
    std::thread::Builder::new().name("load-http".into()).spawn(client).map_err(LabError::io("start a thread"))
}

struct Client {
    address: SocketAddrV4,
    limit: Duration,
    /// The guest's request counter as last seen. A guest that lost its memory would count backwards.
    last: u64,
    connection: Option<Connection>,
}

impl Client {
    /// One request. After an error the connection is gone.
    fn ask(&mut self) -> Result<(), String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                Connection::open(self.address, self.limit).map_err(|error| format!("connect: {error}"))?
            }
        };
        let (status, body) = connection.request("GET", "/").map_err(|error| format!("request: {error}"))?;
        let count: Option<u64> = body.trim().parse().ok();
        match count {
            Some(count) if status == 200 && count > self.last => self.last = count,
            _ => return Err(format!("status {status}, counter '{}' after {}", body.trim(), self.last)),
        }
        self.connection = Some(connection);
        Ok(())
    }
}

/// Counts an answer, or a failure.
pub(super) fn record(requests: &Mutex<Requests>, outcome: Result<Duration, String>) {
    let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(took) => {
            requests.answered += 1;
            requests.slowest = requests.slowest.max(took);
        }
        Err(failure) => {
            requests.failed += 1;
            requests.first_failure.get_or_insert(failure);
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn server(answers: Vec<&'static str>) -> SocketAddrV4 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn ask_all(answers: Vec<&'static str>) -> Vec<Result<(), String>> {
        let count = answers.len();
        let limit = Duration::from_secs(2);
        let mut client = Client { address: server(answers), limit, last: 0, connection: None };
        (0..count).map(|_| client.ask()).collect()
    }

    const ONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1";
    const TWO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2";

    #[test]
    fn answers_that_count_up_on_one_connection_succeed() {
        assert_eq!(ask_all(vec![ONE, TWO]), [Ok(()), Ok(())]);
    }

    #[test]
    fn a_guest_that_counts_backwards_or_answers_badly_has_failed() {
        assert!(ask_all(vec![TWO, ONE])[1].is_err());
        assert!(ask_all(vec!["HTTP/1.1 503 Busy\r\nContent-Length: 1\r\n\r\n1"])[0].is_err());
        assert!(ask_all(vec!["HTTP/1.1 200 OK\r\n\r\n"])[0].is_err());
    }

    #[test]
    fn a_closed_connection_is_a_failure_and_not_an_empty_answer() {
        let mut client =
            Client { address: server(vec![ONE]), limit: Duration::from_secs(2), last: 0, connection: None };
        assert_eq!(client.ask(), Ok(()));
        assert!(client.ask().is_err());
    }
}
