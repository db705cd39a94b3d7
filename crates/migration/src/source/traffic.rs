//! What is on its way, how fast it arrives, and what follows for the blackout.

use std::collections::VecDeque;
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
/// Assumed of a network over which hardly anything but the names of zero pages has gone yet: 1 Gb/s.
const ASSUMED_BYTES_PER_S: f64 = 125e6;
/// A smaller round takes mostly the time of a round trip: the true rate is at least what it shows.
const LARGE_ROUND_PAGES: u64 = 256;
/// Rounds that were settled in less than this, one right after the other, are measured together: what lies between two
/// acknowledgements is then mostly chance.
const TELLING: Duration = Duration::from_micros(500);
/// Weight of the newest value in moving averages.
const NEWEST_WEIGHT: f64 = 0.4;

/// Measurements of one migration.
#[derive(Debug, Clone)]
pub(super) struct Traffic {
    streams: Vec<Ack>,
    sent: Sent,
    /// Pages given to the streams in all rounds.
    scheduled_pages: u64,
    /// Rounds that are not settled.
    rounds: VecDeque<Round>,
    round_settled: Duration,
    lap: Option<Lap>,
    /// Guest memory per second, as the rounds after the first have shown.
    round_rate: Option<f64>,
    /// Bytes on the wire per second.
    wire: RateMeter,
    /// Guest memory per second.
    goodput: RateMeter,
    dirty_bytes_per_s: f64,
    harvested: Duration,
    sync: Duration,
    round_trip: Duration,
    /// How long pages were on their way, up to `measured`.
    busy: Duration,
    measured: Duration,
    is_busy: bool,
    /// When an acknowledgement last told something new.
    pub(super) advanced: Duration,
}

#[derive(Debug, Clone)]
struct Round {
    number: u32,
    began: Duration,
    pages: u64,
}

/// Rounds that were on their way one right after the other, and are measured together.
#[derive(Debug, Clone, Copy)]
struct Lap {
    began: Duration,
    pages: u64,
}

impl Traffic {
    pub(super) fn new(streams: u32) -> Self {
        Self {
            streams: (0..streams).map(|stream| Ack { stream, ..Ack::default() }).collect(),
            sent: Sent::default(),
            scheduled_pages: 0,
            rounds: VecDeque::new(),
            round_settled: Duration::ZERO,
            lap: None,
            round_rate: None,
            wire: RateMeter::default(),
            goodput: RateMeter::default(),
            dirty_bytes_per_s: 0.0,
            harvested: Duration::ZERO,
            sync: Duration::ZERO,
            round_trip: Duration::ZERO,
            busy: Duration::ZERO,
            measured: Duration::ZERO,
            is_busy: false,
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
    pub(super) fn schedule(&mut self, now: Duration, number: u32, pages: u64) {
        if !self.is_outstanding() {
            self.advanced = now;
        }
        if self.scheduled_pages == 0 {
            self.harvested = now;
        }
        self.scheduled_pages += pages;
        self.rounds.push_back(Round { number, began: now, pages });
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
        self.settle_rounds(now);
        self.measure(now);
        true
    }

    fn settle_rounds(&mut self, now: Duration) {
        let before = self.round_settled;
        while let Some(round) = self.rounds.front().filter(|round| self.is_settled(round.number)) {
            let Round { number, began, pages } = *round;
            self.rounds.pop_front();
            self.round_settled = now;
            self.lap = match self.lap {
                // It says little about what the guest writes: it is all of memory.
                _ if number == 1 => None,
                Some(lap) if began <= before.max(lap.began) => Some(Lap { pages: lap.pages + pages, ..lap }),
                _ => Some(Lap { began: began.max(before), pages }),
            };
        }
        if self.lap.is_some_and(|lap| self.learn(lap, now)) {
            self.lap = None;
        }
    }

    /// Takes in how fast pages went, if that took long enough to tell.
    fn learn(&mut self, lap: Lap, now: Duration) -> bool {
        let time = now.saturating_sub(lap.began);
        if time < TELLING {
            return false;
        }
        let rate = (lap.pages * PAGE_SIZE_BYTES) as f64 / time.as_secs_f64();
        self.round_rate = Some(match self.round_rate {
            Some(average) if lap.pages < LARGE_ROUND_PAGES => average.max(rate),
            Some(average) => average + NEWEST_WEIGHT * (rate - average),
            None if lap.pages < LARGE_ROUND_PAGES => self.first_guess().unwrap_or(rate).max(rate),
            None => rate,
        });
        true
    }

    /// Guest memory per second, as the first round shows it: everything the guest writes may turn out not to be zero.
    fn first_guess(&self) -> Option<f64> {
        Some(self.goodput.rate()?.min(self.wire.rate().unwrap_or(ASSUMED_BYTES_PER_S)))
    }

    fn measure(&mut self, now: Duration) {
        let busy = self.waiting_pages() > 0 || self.is_outstanding();
        if self.is_busy {
            self.busy += now.saturating_sub(self.measured);
        }
        (self.measured, self.is_busy) = (now, busy);
        self.wire.observe(now, self.settled_wire_bytes(), busy);
        self.goodput.observe(now, self.settled_pages() * PAGE_SIZE_BYTES, busy);
    }

    /// Since the log was read last.
    pub(super) fn since_harvest(&self, now: Duration) -> Duration {
        now.saturating_sub(self.harvested)
    }

    pub(super) fn harvest(&mut self, now: Duration, harvest: &Harvest) {
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
            on_its_way: self.waiting_pages() * PAGE_SIZE_BYTES,
            rate: self.round_rate.or_else(|| self.first_guess()),
            dirty: self.dirty_bytes_per_s,
            sync: self.sync,
            handoff: HANDOFF_ESTIMATE + self.round_trip * HANDOFF_FLIGHTS / 2,
            slowing: false,
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

    /// How fast the rounds after the first went.
    pub(super) fn later_bytes_per_s(&self) -> Option<f64> {
        self.round_rate
    }

    /// How long pages were on their way.
    pub(super) fn busy(&self) -> Duration {
        self.busy
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_are_acknowledged_at_once_are_not_infinitely_fast() {
        let us = Duration::from_micros;
        let mut traffic = Traffic::new(1);
        round(&mut traffic, 0, 100, (1000, 1000));
        let known = traffic.streams[0];
        let ack = |rounds: u32| {
            let pages = known.pages + u64::from(rounds) * 100;
            let wire_bytes = known.wire_bytes + u64::from(rounds) * 100 * PAGE_SIZE_BYTES;
            Ack { wire_bytes, pages, round: known.round + rounds, ..known }
        };
        for number in 1..=6 {
            traffic.schedule(us(200_000), known.round + number, 100);
        }
        // 200 pages in 2 ms, twice; then what seems to take a moment each.
        for (at, rounds) in [(2000, 2), (4000, 4), (4010, 5), (4020, 6)] {
            assert!(traffic.acknowledge(us(200_000 + at), ack(rounds)));
        }
        let rate = traffic.later_bytes_per_s().unwrap();
        let true_rate = 100_000.0 * PAGE_SIZE_BYTES as f64;
        assert!((rate / true_rate - 1.0).abs() < 0.1, "{rate}");
    }

    /// Sends one round and has it acknowledged after `ms`; `raw` of its pages are not zero.
    fn round(traffic: &mut Traffic, start_ms: u64, ms: u64, (pages, raw): (u64, u64)) {
        let number = traffic.streams[0].round + 1;
        let known = traffic.streams[0];
        traffic.schedule(Duration::from_millis(start_ms), number, pages);
        let wire_bytes = known.wire_bytes + raw * PAGE_SIZE_BYTES + 100;
        traffic.set_sent(Sent { page_stream_bytes: wire_bytes, ..Sent::default() });
        let ack = Ack { wire_bytes, pages: known.pages + pages, round: number, ..known };
        assert!(traffic.acknowledge(Duration::from_millis(start_ms + ms), ack));
    }

    fn predicted_ms(traffic: &Traffic, pages: u64) -> f64 {
        traffic.measured(pages).blackout().unwrap().as_secs_f64() * 1e3 - 10.0
    }

    #[test]
    fn a_guest_of_zeros_is_not_judged_by_the_few_bytes_that_name_them() {
        let mut traffic = Traffic::new(1);
        round(&mut traffic, 0, 200, (100_000, 0));
        assert!(predicted_ms(&traffic, 500) < 20.0, "{traffic:?}");
        round(&mut traffic, 300, 10, (10_000, 0));
        assert!(predicted_ms(&traffic, 10_000) < 15.0, "{traffic:?}");
    }

    #[test]
    fn a_slow_looking_first_round_does_not_hide_that_few_pages_go_quickly() {
        let mut traffic = Traffic::new(1);
        round(&mut traffic, 0, 1000, (1_000_000, 100));
        assert!(predicted_ms(&traffic, 20) > 100.0, "{traffic:?}");
        round(&mut traffic, 1100, 1, (20, 20));
        assert!(predicted_ms(&traffic, 20) < 2.0, "{traffic:?}");
    }

    #[test]
    fn what_the_guest_writes_decides_not_what_all_of_memory_was() {
        let mut traffic = Traffic::new(1);
        round(&mut traffic, 0, 100, (100_000, 1000));
        round(&mut traffic, 200, 400, (10_000, 10_000));
        let predicted = predicted_ms(&traffic, 1000);
        assert!((predicted - 40.0).abs() < 1.0, "{predicted}");
    }
}
