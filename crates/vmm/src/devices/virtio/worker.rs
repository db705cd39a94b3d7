//! The thread of one device. It owns the queues while it runs them.
//!
//! ```text
//!             start                     stop                   (thread has put the queues back,
//!   parked ----------> running -----------------> stopping ---------> parked     and flushed)
//!     ^                   |  ^                      |
//!     +-- driver fault ---+  +--- patience is over -+
//! ```
//!
//! A start looks at every queue and file descriptor once, since a kick may have been lost with another machine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{DriverFault, Interrupts, Io, Progress, Source, VirtQueue, VirtioDevice};
use crate::memory::GuestRam;
use crate::sandbox::{self, Kind};

/// Most queues and watched file descriptors of one device together: the ready set is one word.
pub(super) const SOURCES_MAX: usize = 31;
/// Events fetched from epoll at once.
const EVENTS_PER_WAIT: usize = 8;

/// A device's thread, seen from the transport. Dropped only when parked or by [`Worker::quit`].
pub(super) struct Worker<D: VirtioDevice> {
    shared: Arc<Shared<D>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<D> {
    device: Arc<D>,
    ram: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    kicks: Arc<[EventFd]>,
    /// Wakes the thread out of epoll to look at the phase.
    control: EventFd,
    state: Mutex<State>,
    /// The phase has changed, either way.
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// Empty while the thread has them.
    queues: Vec<VirtQueue>,
    /// The outcome of the last flush.
    flushed: Result<(), String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Parked,
    Running,
    Stopping { flush: bool },
    Quit,
}

/// What to do if the thread does not stop in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Let it run on as if nothing had been asked.
    RunOn,
    /// Let it stop whenever it comes to it.
    KeepStopping,
}

/// Why a worker did not stop as asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StopError {
    #[error("a request to the host has been pending for {} ms; check the storage or network behind it", .0.as_millis())]
    Busy(Duration),
    #[error("what the guest wrote cannot be made durable: {0}")]
    Flush(String),
}

impl<D: VirtioDevice> Worker<D> {
    /// Creates the thread, parked. One kick for each queue.
    pub(super) fn new(
        device: Arc<D>,
        ram: Arc<GuestRam>,
        interrupts: Arc<Interrupts>,
        kicks: Arc<[EventFd]>,
    ) -> io::Result<Self> {
        let watched = device.watched();
        assert!(kicks.len() + watched.len() <= SOURCES_MAX, "{} has too many event sources", D::NAME);
        let state = State { phase: Phase::Parked, queues: Vec::new(), flushed: Ok(()) };
        let shared = Arc::new(Shared {
            device,
            ram,
            interrupts,
            kicks,
            control: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let epoll = shared.epoll(&watched)?;
        let (body, sources) = (Arc::clone(&shared), shared.kicks.len() + watched.len());
        let builder = std::thread::Builder::new().name(D::NAME.to_owned());
        let thread = builder.spawn(move || {
            sandbox::enter(Kind::Device);
            body.run(&epoll, sources);
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Whether the thread is at rest and the transport may use the queues' registers.
    pub(super) fn parked(&self) -> bool {
        matches!(self.shared.lock().phase, Phase::Parked | Phase::Quit)
    }

    /// Hands the queues over. The worker must be parked.
    pub(super) fn start(&self, queues: Vec<VirtQueue>) {
        let mut state = self.shared.lock();
        debug_assert_eq!(state.phase, Phase::Parked);
        state.queues = queues;
        self.shared.set_phase(&mut state, Phase::Running);
    }

    /// Stops the thread and waits for it, up to `patience`; with `flush`, everything written is durable afterwards.
    /// Returns the queues that it had, if any.
    pub(super) fn stop(
        &self,
        flush: bool,
        patience: Duration,
        overdue: Overdue,
    ) -> Result<Vec<VirtQueue>, StopError> {
        let mut state = self.shared.lock();
        let before = state.phase;
        if before == Phase::Quit || before == Phase::Parked && !flush {
            return Ok(std::mem::take(&mut state.queues));
        }
        self.shared.set_phase(&mut state, Phase::Stopping { flush });
        let pending = |state: &mut State| matches!(state.phase, Phase::Stopping { .. });
        let (mut state, timeout) =
            self.shared.changed.wait_timeout_while(state, patience, pending).expect("no worker panics");
        if timeout.timed_out() {
            if overdue == Overdue::RunOn {
                self.shared.set_phase(&mut state, before);
            }
            return Err(StopError::Busy(patience));
        }
        if let Err(reason) = std::mem::replace(&mut state.flushed, Ok(())) {
            self.shared.set_phase(&mut state, before);
            return Err(StopError::Flush(reason));
        }
        Ok(std::mem::take(&mut state.queues))
    }

    /// Ends the thread, waiting up to `patience`; a thread that hangs in the kernel is left behind.
    pub(super) fn quit(&self, patience: Duration) {
        if self.stop(false, patience, Overdue::KeepStopping).is_err() {
            tracing::warn!(
                device = D::NAME,
                "the device's thread hangs in the host's kernel and is left behind"
            );
            return;
        }
        let mut state = self.shared.lock();
        self.shared.set_phase(&mut state, Phase::Quit);
        drop(state);
        if let Some(thread) = self.thread.lock().expect("no one panics with the handle").take() {
            // The thread has nothing left to do but to return.
            let _ = thread.join();
        }
    }
}

impl<D: VirtioDevice> Shared<D> {
    fn run(&self, epoll: &Epoll, sources: usize) {
        loop {
            match self.wait_for_work() {
                Phase::Running => self.run_queues(epoll, sources),
                Phase::Stopping { flush } => {
                    let flushed = if flush { self.device.flush() } else { Ok(()) };
                    let mut state = self.lock();
                    if matches!(state.phase, Phase::Stopping { .. }) {
                        state.flushed = flushed;
                        self.set_phase(&mut state, Phase::Parked);
                    }
                }
                Phase::Quit | Phase::Parked => return,
            }
        }
    }

    fn wait_for_work(&self) -> Phase {
        let state = self.lock();
        let parked = |state: &mut State| state.phase == Phase::Parked;
        self.changed.wait_while(state, parked).expect("no one panics with the state").phase
    }

    fn run_queues(&self, epoll: &Epoll, sources: usize) {
        let mut queues = std::mem::take(&mut self.lock().queues);
        let outcome = self.serve(epoll, sources, &mut queues);
        let mut state = self.lock();
        state.queues = queues;
        if let Err(fault) = outcome {
            tracing::warn!(device = D::NAME, %fault, "the guest's driver broke the rules; it must reset the device");
            self.interrupts.need_reset();
            if state.phase == Phase::Running {
                self.set_phase(&mut state, Phase::Parked);
            }
        }
    }

    /// Serves sources until the phase changes.
    fn serve(&self, epoll: &Epoll, sources: usize, queues: &mut [VirtQueue]) -> Result<(), DriverFault> {
        let mut ready: u32 = (1 << sources) - 1;
        let mut events = [EpollEvent::default(); EVENTS_PER_WAIT];
        while self.lock().phase == Phase::Running {
            let timeout_ms = if ready == 0 { -1 } else { 0 };
            // The only error possible on a valid epoll is an interrupting signal.
            let count = epoll.wait(timeout_ms, &mut events).unwrap_or(0);
            for event in &events[..count] {
                ready |= self.acknowledge(event.data() as usize, sources);
            }
            let due = ready;
            for source in (0..sources).filter(|source| due & 1 << source != 0) {
                let mut io = Io { ram: &self.ram, queues, interrupts: &self.interrupts };
                if self.device.process(self.source(source), &mut io)? == Progress::Idle {
                    ready &= !(1 << source);
                }
            }
        }
        Ok(())
    }

    /// Clears an event's counter; returns the source that it makes ready.
    fn acknowledge(&self, source: usize, sources: usize) -> u32 {
        let counter = if source == sources { Some(&self.control) } else { self.kicks.get(source) };
        if let Some(counter) = counter {
            // An empty counter was read before: nothing lost.
            let _ = counter.read();
        }
        if source == sources { 0 } else { 1 << source }
    }

    fn source(&self, index: usize) -> Source {
        match index.checked_sub(self.kicks.len()) {
            Some(watched) => Source::Watched(watched),
            None => Source::Queue(index),
        }
    }

    fn epoll(&self, watched: &[RawFd]) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let kicks = self.kicks.iter().map(|kick| (kick.as_raw_fd(), EventSet::IN));
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let watched = watched.iter().map(|fd| (*fd, edges));
        let control = [(self.control.as_raw_fd(), EventSet::IN)];
        for (source, (fd, events)) in kicks.chain(watched).chain(control).enumerate() {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source as u64))?;
        }
        Ok(epoll)
    }

    fn set_phase(&self, state: &mut State, phase: Phase) {
        state.phase = phase;
        self.changed.notify_all();
        // A full counter wakes the thread just as well.
        let _ = self.control.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with the worker's state")
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
