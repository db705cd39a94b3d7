//! The load on a guest, and what a user of it would notice.
//!
//! | what | how it is seen |
//! | --- | --- |
//! | failed requests | one kept-open HTTP connection, one request after another; of a Linux guest also one download that never ends |
//! | network silence | UDP echoes at a fixed interval; the longest time without a reply |
//! | lost writes | every record that the guest counts as acknowledged is looked for in the disk image |
//! | memory errors | the guest checks its own stamped pages and reports |

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod disk;
mod download;
mod echo;
mod http;
pub mod pgbench;
pub mod qcow2;
mod report;

pub use disk::{LostWrites, has_last_write, lost_writes};
pub use report::{DiskReport, GuestReport, MemoryReport, fetch, reset_gap};

use crate::cluster::{Cluster, Setting};
use crate::namespace::Namespace;
use crate::{LabError, Result, exec};

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest may take from its start to its first answer; on emulated hosts it takes about 30 s.
const BOOT_LIMIT: Duration = Duration::from_secs(150);

/// What a load is to do.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the client lives.
    pub client: Namespace,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The image of the guest's first disk.
    pub image: PathBuf,
    /// Time between two echoes, and the resolution of the network silence.
    pub echo_interval: Duration,
    /// A request that takes longer has failed.
    pub request_limit: Duration,
    /// Whether to begin a download that never ends, which only Linux guests have.
    pub download: bool,
}

impl LoadOptions {
    /// Against the guest at an address, with an image to be named; the emulated hosts are asked more gently.
    pub fn new(client: &Namespace, guest: Ipv4Addr, image: PathBuf, setting: Setting) -> Self {
        let echo_interval = match setting {
            Setting::Kvm => Duration::from_millis(2),
            Setting::Lab => Duration::from_millis(10),
        };
        let download = setting == Setting::Lab;
        Self { client: client.clone(), guest, image, echo_interval, request_limit: REQUEST_LIMIT, download }
    }
}

/// The load's threads, running. Dropping it stops them.
#[derive(Debug)]
pub struct Load {
    options: LoadOptions,
    stop: Arc<AtomicBool>,
    requests: Arc<Mutex<Requests>>,
    silence: Arc<Mutex<Silence>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the HTTP client has seen.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    pub answered: u64,
    /// Bytes of the download that never ends.
    pub downloaded: u64,
    /// Another status than 200, a counter that ran backwards, a closed connection, a time-out, or a download that ended or was
    /// not what it should be.
    pub failed: u64,
    pub first_failure: Option<String>,
    pub slowest: Duration,
}

/// What the echo probe has seen since the last reset.
#[derive(Debug, Clone, Copy)]
struct Silence {
    last_reply: Instant,
    longest: Duration,
    replies: u64,
}

/// What a user would have noticed between two moments.
#[derive(Debug, Clone)]
pub struct Noticed {
    pub network_silence: Duration,
    pub requests_answered: u64,
    pub requests_failed: u64,
    pub first_failure: Option<String>,
    pub writes: LostWrites,
    pub memory_errors: u64,
    pub disk_errors: u64,
    /// Times that one of the guest's clocks went back.
    pub clock_steps_back: u64,
    /// The guest's own longest gap between two heartbeats.
    pub guest_gap: Duration,
    /// The first error that the guest names, if it has any.
    pub first_guest_error: Option<String>,
}

/// The beginning of a window that [`Load::noticed`] ends.
#[derive(Debug, Clone)]
pub struct Mark {
    requests: Requests,
    report: GuestReport,
}

/// How long after a migration the first echo may take before the silence counts as still going on.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

impl Load {
    /// Starts the client's threads against a guest that answers; see [`await_guest`].
    pub fn start(options: LoadOptions) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Requests::default()));
        let now = Instant::now();
        let silence = Arc::new(Mutex::new(Silence { last_reply: now, longest: Duration::ZERO, replies: 0 }));
        let http = http::spawn(&options, stop.clone(), requests.clone())?;
        let mut load = Self { options, stop, requests, silence, threads: vec![http] };
        let echo = echo::spawn(&load.options, load.stop.clone(), load.silence.clone())?;
        load.threads.push(echo);
        if load.options.download {
            load.threads.push(download::spawn(&load.options, load.stop.clone(), load.requests.clone())?);
        }
        Ok(load)
    }

    /// The HTTP client's counters.
    pub fn requests(&self) -> Requests {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins a window: the silence and the guest's own gap start afresh.
    pub fn mark(&self) -> Result<Mark> {
        reset_gap(&self.options.client, self.options.guest)?;
        let report = fetch(&self.options.client, self.options.guest)?;
        let mark = Mark { requests: self.requests(), report };
        self.silence_mut(|silence| silence.longest = Duration::ZERO);
        Ok(mark)
    }

    /// Ends a window: waits until the guest is heard again, and compares.
    pub fn noticed(&self, since: &Mark) -> Result<Noticed> {
        let network_silence = self.silence_until_heard()?;
        let report = fetch(&self.options.client, self.options.guest)?;
        let writes = lost_writes(&self.options.image, report.disk.acked)?;
        let requests = self.requests();
        Ok(Noticed {
            network_silence,
            requests_answered: requests.answered - since.requests.answered,
            requests_failed: requests.failed - since.requests.failed,
            first_failure: requests.first_failure,
            writes,
            memory_errors: report.memory.errors - since.report.memory.errors.min(report.memory.errors),
            disk_errors: report.disk.errors - since.report.disk.errors.min(report.disk.errors),
            clock_steps_back: report.clock_steps_back
                - since.report.clock_steps_back.min(report.clock_steps_back),
            guest_gap: Duration::from_micros(report.max_gap_us),
            first_guest_error: report.memory.first_error.or(report.disk.first_error),
        })
    }

    /// Stops the threads and waits for them.
    pub fn stop(mut self) -> Requests {
        self.join();
        self.requests()
    }

    fn silence_until_heard(&self) -> Result<Duration> {
        let asked = Instant::now();
        let heard = exec::poll(SETTLE_LIMIT, exec::POLL, || {
            let silence = self.silence_mut(|silence| *silence);
            Ok((silence.last_reply > asked).then_some(silence.longest))
        })?;
        heard.ok_or_else(|| {
            let (guest, limit) = (self.options.guest, SETTLE_LIMIT.as_secs());
            LabError::Broken(format!("the guest at {guest} has not answered an echo for {limit} s"))
        })
    }

    fn silence_mut<T>(&self, work: impl FnOnce(&mut Silence) -> T) -> T {
        work(&mut self.silence.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}

/// Waits until a guest that was just started answers; its first report.
pub fn await_guest(cluster: &dyn Cluster, guest: Ipv4Addr) -> Result<GuestReport> {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        match fetch(cluster.client(), guest) {
            Ok(report) => return Ok(report),
            Err(error) if Instant::now() >= deadline => {
                return Err(LabError::Silent { guest, limit: BOOT_LIMIT, last: error.chain() });
            }
            Err(_) => cluster.check_foundation()?,
        }
        std::thread::sleep(exec::POLL);
    }
}

/// The guest's web server.
fn web(guest: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(guest, 80)
}
