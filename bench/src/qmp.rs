//! QEMU's control socket: one JSON document a line, answers and events mixed
//! (<https://www.qemu.org/docs/master/interop/qmp-spec.html>).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{BenchError, Result};

/// How long QEMU may take to open its socket, and to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const CONNECT_EVERY: Duration = Duration::from_millis(20);

pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has arrived of the next line.
    unfinished: Vec<u8>,
    events: VecDeque<Event>,
}

/// Something that QEMU tells unasked.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) name: String,
    /// Of a `MIGRATION` event: `active`, `completed`, `failed` and others.
    pub(crate) status: Option<String>,
    pub(crate) at: Instant,
}

impl Qmp {
    /// Waits for the socket, and shakes hands.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(BenchError::io(format!("connect to {}", path.display()))(error));
                }
                Err(_) => std::thread::sleep(CONNECT_EVERY),
            }
        };
        let mut qmp =
            Self { stream: BufReader::new(stream), unfinished: Vec::new(), events: VecDeque::new() };
        let _greeting = qmp.read(deadline)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command, and returns its answer.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let writing = BenchError::io(format!("tell QEMU to {command}"));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(writing)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let Some(mut message) = self.read(deadline)? else {
                let what = format!("QEMU's answer to {command}");
                return Err(BenchError::Timeout { what, limit: ANSWER_LIMIT });
            };
            if let Some(error) = message.get("error") {
                return Err(BenchError::Refused { command: command.to_owned(), answer: error.to_string() });
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            self.events.extend(event(&message));
        }
    }

    /// The next event, if one comes before the deadline.
    pub(crate) fn next_event(&mut self, deadline: Instant) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(message) = self.read(deadline)? else { return Ok(None) };
            self.events.extend(event(&message));
        }
    }

    /// The next line; `None` if it is not whole before the deadline.
    fn read(&mut self, deadline: Instant) -> Result<Option<Value>> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let reading = || BenchError::io("read what QEMU says");
        self.stream.get_ref().set_read_timeout(Some(left)).map_err(reading())?;
        match self.stream.read_until(b'\n', &mut self.unfinished) {
            Ok(0) => Err(reading()(ErrorKind::UnexpectedEof.into())),
            Ok(_) => {
                let line = std::mem::take(&mut self.unfinished);
                let parsed = serde_json::from_slice(&line);
                parsed.map(Some).map_err(|source| BenchError::Unreadable {
                    text: String::from_utf8_lossy(&line).into_owned(),
                    source,
                })
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(reading()(error)),
        }
    }
}

fn event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let status = message.pointer("/data/status").and_then(Value::as_str).map(str::to_owned);
    Some(Event { name, status, at: Instant::now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Qmp { stream: BufReader::new(ours), unfinished: Vec::new(), events: VecDeque::new() }, theirs)
    }

    #[test]
    fn events_before_an_answer_are_kept() {
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(
            b"{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n{\"return\":{\"a\":1}}\n",
        )
        .unwrap();
        assert_eq!(qmp.execute("query-migrate", json!({})).unwrap(), json!({"a": 1}));
        let event = qmp.next_event(Instant::now()).unwrap().unwrap();
        assert_eq!((event.name.as_str(), event.status.as_deref()), ("MIGRATION", Some("active")));
    }

    #[test]
    fn half_a_line_is_completed_later_and_a_refusal_is_an_error() {
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"{\"event\":\"ST").unwrap();
        assert!(qmp.next_event(Instant::now()).unwrap().is_none());
        qemu.write_all(b"OP\"}\n{\"error\":{\"desc\":\"no such thing\"}}\n").unwrap();
        assert_eq!(qmp.next_event(Instant::now()).unwrap().unwrap().name, "STOP");
        let error = qmp.execute("nonsense", json!({})).unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("no such thing"), "{error}");
    }
}
