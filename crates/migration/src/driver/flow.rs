//! What the source's threads share: counters, the windows of the page streams, the pace, and the order to stop.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::pace::Pace;
use crate::codec::Codec;
use crate::source::Sent;
use crate::wire::PageRecord;

/// Most bytes that one page stream may have on their way unacknowledged: 1 Gb/s at 2 s, 10 Gb/s at 200 ms.
const WINDOW_BYTES: u64 = 256 << 20;

/// See the module.
pub(super) struct Flow {
    state: Mutex<State>,
    changed: Condvar,
    /// What the streams may send together while the guest runs.
    pub(super) pace: Arc<Pace>,
    pub(super) page_stream_bytes: AtomicU64,
    pub(super) raw_pages: AtomicU64,
    pub(super) packed_pages: AtomicU64,
    pub(super) packed_bytes: AtomicU64,
    pub(super) delta_pages: AtomicU64,
    pub(super) zero_pages: AtomicU64,
    pub(super) reused_pages: AtomicU64,
    pub(super) state_bytes: AtomicU64,
    pub(super) other_bytes: AtomicU64,
}

struct State {
    /// Acknowledged bytes of each stream.
    settled: Vec<u64>,
    stopped: bool,
}

/// The engine wants its threads to end.
#[derive(Debug)]
pub(super) struct Stopped;

impl Flow {
    pub(super) fn new(streams: u32, pace: Arc<Pace>) -> Self {
        Self {
            state: Mutex::new(State { settled: vec![0; streams as usize], stopped: false }),
            changed: Condvar::new(),
            pace,
            page_stream_bytes: AtomicU64::new(0),
            raw_pages: AtomicU64::new(0),
            packed_pages: AtomicU64::new(0),
            packed_bytes: AtomicU64::new(0),
            delta_pages: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            reused_pages: AtomicU64::new(0),
            state_bytes: AtomicU64::new(0),
            other_bytes: AtomicU64::new(0),
        }
    }

    /// For new connections, counting on from what went over the old ones.
    pub(super) fn after(old: &Self, streams: u32) -> Self {
        let sent = old.sent(0);
        Self {
            page_stream_bytes: sent.page_stream_bytes.into(),
            raw_pages: sent.raw_pages.into(),
            packed_pages: sent.packed_pages.into(),
            packed_bytes: sent.packed_bytes.into(),
            delta_pages: sent.delta_pages.into(),
            zero_pages: sent.zero_pages.into(),
            reused_pages: sent.reused_pages.into(),
            state_bytes: sent.state_bytes.into(),
            other_bytes: sent.other_bytes.into(),
            ..Self::new(streams, Arc::clone(&old.pace))
        }
    }

    /// The counters now, beside the pages that are still to follow.
    pub(super) fn sent(&self, rest_pages: u64) -> Sent {
        Sent {
            page_stream_bytes: self.page_stream_bytes.load(Relaxed),
            raw_pages: self.raw_pages.load(Relaxed),
            packed_pages: self.packed_pages.load(Relaxed),
            packed_bytes: self.packed_bytes.load(Relaxed),
            delta_pages: self.delta_pages.load(Relaxed),
            zero_pages: self.zero_pages.load(Relaxed),
            reused_pages: self.reused_pages.load(Relaxed),
            rest_pages,
            state_bytes: self.state_bytes.load(Relaxed),
            other_bytes: self.other_bytes.load(Relaxed),
        }
    }

    /// Counts the pages of a record that is sent.
    pub(super) fn count(&self, record: &PageRecord) {
        let contents = if record.codec == Codec::None {
            &self.raw_pages
        } else {
            self.packed_bytes.fetch_add(u64::from(record.contents_bytes), Relaxed);
            &self.packed_pages
        };
        contents.fetch_add(record.raw_pages, Relaxed);
        self.delta_pages.fetch_add(record.delta_pages, Relaxed);
        self.reused_pages.fetch_add(record.reused_pages, Relaxed);
        self.zero_pages.fetch_add(record.pages - record.raw_pages - record.reused_pages, Relaxed);
    }

    /// Notes an acknowledgement.
    pub(super) fn settle(&self, stream: u32, bytes: u64) {
        if let Some(settled) = self.lock().settled.get_mut(stream as usize) {
            *settled = bytes.max(*settled);
        }
        self.changed.notify_all();
    }

    /// Waits until a stream that has sent `sent` bytes may send more.
    pub(super) fn wait_for_window(&self, stream: u32, sent: u64) -> Result<(), Stopped> {
        let mut state = self.lock();
        while !state.stopped && sent.saturating_sub(state.settled[stream as usize]) >= WINDOW_BYTES {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Waits after `bytes` were sent, as long as the pace wants it.
    pub(super) fn wait_for_pace(&self, bytes: u64) -> Result<(), Stopped> {
        self.pace.after(bytes, || self.lock().stopped);
        if self.lock().stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Ends all waiting, now and later.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
        self.pace.wake();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_with_a_full_window_waits_until_it_is_acknowledged_or_stopped() {
        let flow = Flow::new(1, Arc::new(Pace::new(Some(1))));
        flow.wait_for_window(0, WINDOW_BYTES - 1).unwrap();
        flow.settle(0, 1);
        flow.wait_for_window(0, WINDOW_BYTES).unwrap();
        flow.stop();
        assert!(flow.wait_for_window(0, WINDOW_BYTES * 2).is_err());
        assert!(flow.wait_for_pace(WINDOW_BYTES).is_err());
    }
}
