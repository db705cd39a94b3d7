//! Listening to a guest: its pulse, wherever it runs, from the logs of its serial consoles.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_guest_contract::pulse::Pulse;
use godwit_lab::exec;

use crate::error::{BenchError, Result};
use crate::measure::Heard;

/// How often the logs are read: what the time of a pulse's arrival can be wrong by.
const LISTEN_EVERY: Duration = Duration::from_millis(5);
/// How much of what the guest has said is kept for an error message, in lines.
const LAST_WORDS: usize = 8;

/// Listens until it is dropped.
pub(crate) struct Watch {
    begun: Instant,
    heard: Arc<Mutex<Vec<Heard>>>,
    said: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Listens at these logs, which need not exist yet.
    pub(crate) fn start(logs: &[PathBuf]) -> Self {
        let (heard, said, stop) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut ear = Ear {
            begun: Instant::now(),
            tails: logs.iter().map(|log| Tail::new(log)).collect(),
            heard: Arc::clone(&heard),
            said: Arc::clone(&said),
        };
        let (begun, stopping) = (ear.begun, Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                ear.listen();
                std::thread::sleep(LISTEN_EVERY);
            }
        });
        Self { begun, heard, said, stop, thread: Some(thread) }
    }

    /// A point in time on the clock of what was [`heard`](Self::heard).
    pub(crate) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.begun)
    }

    /// Everything so far, in order.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last lines of the guest that are no pulse.
    pub(crate) fn last_words(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said[said.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    /// Waits for a pulse that satisfies `wanted`.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Heard) -> bool,
    ) -> Result<Heard> {
        let newest = || self.heard.lock().unwrap_or_else(PoisonError::into_inner).last().copied();
        let found = exec::poll(limit, LISTEN_EVERY, || Ok(newest().filter(&wanted)))?;
        found.ok_or_else(|| BenchError::Timeout {
            what: format!("{what} (the guest: {})", self.last_words()),
            limit,
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Ear {
    begun: Instant,
    tails: Vec<Tail>,
    heard: Arc<Mutex<Vec<Heard>>>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Ear {
    fn listen(&mut self) {
        for tail in &mut self.tails {
            for line in tail.lines() {
                let at = self.begun.elapsed();
                match Pulse::parse(&line) {
                    Some(pulse) => {
                        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(Heard { at, pulse });
                    }
                    None => self.said.lock().unwrap_or_else(PoisonError::into_inner).push(line),
                }
            }
        }
    }
}

/// A file that grows. It stays open: the log of a VM that has left may be removed with words in it still to be read.
struct Tail {
    path: PathBuf,
    file: Option<File>,
    unfinished: Vec<u8>,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, unfinished: Vec::new() }
    }

    /// The lines that have become whole.
    fn lines(&mut self) -> Vec<String> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Vec::new() };
        // What cannot be read now is read the next time.
        let _ = file.read_to_end(&mut self.unfinished);
        let Some(end) = self.unfinished.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.unfinished.split_off(end + 1);
        let whole = std::mem::replace(&mut self.unfinished, rest);
        String::from_utf8_lossy(&whole).lines().map(|line| line.trim().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_heard_once_and_whole_even_from_a_log_that_is_removed() {
        let path = std::env::temp_dir().join(format!("godwit-bench-tail-{}", std::process::id()));
        let mut tail = Tail::new(&path);
        assert_eq!(tail.lines(), [] as [&str; 0]);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\r\ntw").unwrap();
        assert_eq!(tail.lines(), ["one"]);
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"o\nthree\nfo").unwrap();
        assert_eq!(tail.lines(), ["two", "three"]);
        assert_eq!(tail.lines(), [] as [&str; 0]);
    }
}
