//! What is on its way, how fast it arrives, and what follows for the blackout.

use std::time::Duration;

use godwit_types::PAGE_SIZE_BYTES;

use super::event::{Harvest, Sent};
use crate::meter::RateMeter;
use crate::policy::Measured;
use crate::wire::Ack;

/// Stopping, saving, loading, committing and resuming, without the messages' flight. Not known before it happens.
const HANDOFF_ESTIMATE: Duration = Duration::from_millis(10);
/// One-way flights while the guest stands: state and PREPARED, COMMITTED, last pages.
const HANDOFF_FLIGHTS: u32 = 4;
/// Weight of the newest value in moving averages.
const NEWEST_WEIGHT: f64 = 0.4;

/// Measurements of one migration.
#[derive(Debug)]
pub(super) struct Traffic {
    streams: Vec<Ack>,
    sent: Sent,
    /// Pages given to the streams in all rounds.
    scheduled_pages: u64,
    wire: RateMeter,
    goodput: RateMeter,
    dirty_bytes_per_s: f64,
    harvested: Duration,
    sync: Duration,
    round_trip: Duration,
    /// When an acknowledgement last told something new.
    pub(super) advanced: Duration,
}

impl Traffic {
    pub(super) fn new(streams: u32) -> Self {
        Self {
            streams: (0..streams).map(|stream| Ack { stream, ..Ack::default() }).collect(),
            sent: Sent::default(),
            scheduled_pages: 0,
            wire: RateMeter::default(),
            goodput: RateMeter::default(),
            dirty_bytes_per_s: 0.0,
            harvested: Duration::ZERO,
            sync: Duration::ZERO,
            round_trip: Duration::ZERO,
            advanced: Duration::ZERO,
        }
    }

    pub(super) fn sent(&self) -> &Sent {
        &self.sent
    }

    pub(super) fn set_sent(&mut self, sent: Sent) {
        self.sent = sent;
    }

    /// A round begins.
    pub(super) fn schedule(&mut self, now: Duration, pages: u64) {
        if !self.is_outstanding() {
            self.advanced = now;
        }
        if self.scheduled_pages == 0 {
            self.harvested = now;
        }
        self.scheduled_pages += pages;
        self.measure(now);
    }

    /// Whether the acknowledgement names a stream of this migration.
    pub(super) fn acknowledge(&mut self, now: Duration, ack: Ack) -> bool {
        let Some(known) = self.streams.get_mut(ack.stream as usize) else {
            return false;
        };
        if ack.wire_bytes > known.wire_bytes {
            self.advanced = now;
        }
        known.wire_bytes = known.wire_bytes.max(ack.wire_bytes);
        known.pages = known.pages.max(ack.pages);
        known.round = known.round.max(ack.round);
        self.measure(now);
        true
    }

    fn measure(&mut self, now: Duration) {
        let busy = self.waiting_pages() > 0 || self.is_outstanding();
        self.wire.observe(now, self.settled_wire_bytes(), busy);
        self.goodput.observe(now, self.settled_pages() * PAGE_SIZE_BYTES, busy);
    }

    pub(super) fn harvest(&mut self, now: Duration, harvest: Harvest) {
        let time = now.saturating_sub(self.harvested).as_secs_f64();
        if time > 0.0 {
            self.dirty_bytes_per_s = (harvest.pages * PAGE_SIZE_BYTES) as f64 / time;
        }
        self.harvested = now;
        self.sync = moving_average(self.sync, harvest.took);
    }

    pub(super) fn echo(&mut self, round_trip: Duration) {
        self.round_trip = moving_average(self.round_trip, round_trip);
    }

    /// What the policy decides upon, with `dirty_pages` not yet given to the streams.
    pub(super) fn measured(&self, dirty_pages: u64) -> Measured {
        Measured {
            remaining: (self.waiting_pages() + dirty_pages) * PAGE_SIZE_BYTES,
            rate: self.wire.rate(),
            sync: self.sync,
            handoff: HANDOFF_ESTIMATE + self.round_trip * HANDOFF_FLIGHTS / 2,
        }
    }

    /// Pages given to the streams and not acknowledged.
    fn waiting_pages(&self) -> u64 {
        self.scheduled_pages.saturating_sub(self.settled_pages())
    }

    pub(super) fn settled_pages(&self) -> u64 {
        self.streams
            .iter()
            .fold(0, |sum: u64, stream| sum.saturating_add(stream.pages))
            .min(self.scheduled_pages)
    }

    fn settled_wire_bytes(&self) -> u64 {
        self.streams.iter().fold(0, |sum: u64, stream| sum.saturating_add(stream.wire_bytes))
    }

    /// Whether bytes are on their way that nobody has acknowledged.
    pub(super) fn is_outstanding(&self) -> bool {
        self.sent.page_stream_bytes > self.settled_wire_bytes()
    }

    /// Whether every stream has acknowledged the end of a round.
    pub(super) fn is_settled(&self, round: u32) -> bool {
        self.streams.iter().all(|stream| stream.round >= round)
    }

    pub(super) fn goodput_bytes_per_s(&self) -> u64 {
        self.goodput.rate().unwrap_or(0.0) as u64
    }

    pub(super) fn dirty_bytes_per_s(&self) -> u64 {
        self.dirty_bytes_per_s as u64
    }

    /// How long until the rest is sent while the guest goes on dirtying; none if it never is.
    pub(super) fn predicted_finish(&self, measured: &Measured) -> Option<Duration> {
        let gain = measured.rate? - self.dirty_bytes_per_s;
        let transfer = if gain > 0.0 { measured.remaining as f64 / gain } else { return None };
        Duration::try_from_secs_f64(transfer).ok()?.checked_add(measured.handoff)
    }
}

fn moving_average(average: Duration, newest: Duration) -> Duration {
    if average.is_zero() {
        return newest;
    }
    average.mul_f64(1.0 - NEWEST_WEIGHT) + newest.mul_f64(NEWEST_WEIGHT)
}
