//! A migration that does not happen: the source's engine, told by an imagined machine and network what they would say.
//!
//! ```text
//!   engine --SendRound--> the clock goes on by what the link takes, with acknowledgements on the way
//!          --Slow-------> the guest's time goes by more slowly for the vCPUs that are held
//!          --Harvest----> as many pages as the curve says for the guest's time since the last
//!          --Pause .. Committed--> the clock goes on by what handing over takes
//!          --End--------> its report is the answer
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use godwit_types::migration::{Budget, MigrationOutcome, MigrationReport};
use godwit_types::ownership::Verdict;
use godwit_types::{Epoch, HostName, MigrationId, PAGE_SIZE_BYTES};

use super::Unforeseeable;
use super::curve::Curve;
use crate::machine::{Reclaimed, VcpuActivity};
use crate::proof::MemoryDigest;
use crate::source::{Action, Engine, Harvest, Input, Sent, Setup};
use crate::tuning::Tuning;
use crate::wire::{Ack, Control, Prepared, Ready, Resumed, Welcome, Whole};

/// Connections, handshakes and the destination's check of the manifest.
const SETUP: Duration = Duration::from_millis(15);
/// Naming a page that is zeros, at both ends.
const ZERO_PAGE: Duration = Duration::from_nanos(800);
/// Fewer bytes say more about connections that warm up than about the link.
const TELLING_BYTES: u64 = 8 << 20;
/// Between two looks at the clock, as in reality.
const TICK: Duration = Duration::from_millis(20);
/// Acknowledgements of a round.
const ACKS: u32 = 10;
/// After so many rounds nothing new will happen until the deadline.
const ROUNDS_MAX: u32 = 100;
/// An imagined peer is never silent.
const PATIENCE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The guest, its host and its link.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) curve: Curve,
    /// All RAM, and what the disks hold that move along.
    pub(super) pages: u64,
    /// The part of them that is not zeros. What the guest writes is none.
    pub(super) raw_part: f64,
    /// Of the first round, and of those after it.
    pub(super) bytes_per_s: [f64; 2],
    /// What the source may send while the guest runs.
    pub(super) cap_bytes_per_s: f64,
    /// Reading the dirty log.
    pub(super) sync: Duration,
    /// The blackout without its last pages.
    pub(super) handoff: Duration,
    /// The part of all writes that is each vCPU's.
    pub(super) writers: Vec<f64>,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Imagined {
    pub(super) total: Duration,
    pub(super) blackout: Duration,
    /// What the engine predicted when it stopped the guest.
    predicted: Duration,
    handoff: Duration,
    pub(super) rounds: u32,
    pub(super) sent_bytes: u64,
    /// Pages that the guest wrote, each counted once a round.
    pub(super) written_pages: u64,
    /// What the most slowed vCPU lost at the worst moment, and what all of them together were held for.
    pub(super) slowdown_percent: f64,
    pub(super) held: Duration,
}

impl Imagined {
    /// Whether the engine finds the budget met in time. It allows for a usual handoff; one that is longer by itself than
    /// the whole blackout may be meets nothing.
    pub(super) fn meets(&self, budget: &Budget) -> bool {
        let stopped = self.total.saturating_sub(self.blackout);
        self.predicted.max(self.handoff) <= blackout_max(budget)
            && stopped <= Duration::from_millis(budget.deadline_ms)
    }

    /// Whether it also turns out so.
    pub(super) fn keeps(&self, budget: &Budget) -> bool {
        self.meets(budget) && self.blackout <= blackout_max(budget)
    }
}

impl World {
    /// How long all of them take.
    pub(super) fn first_round(&self) -> Duration {
        let raw = (self.pages as f64 * self.raw_part) as u64;
        self.transfer(1, (raw, self.pages - raw), self.cap_bytes_per_s)
    }

    fn transfer(&self, round: u32, (raw, zero): (u64, u64), cap: f64) -> Duration {
        let bytes_per_s = self.bytes_per_s[usize::from(round > 1)].min(cap);
        let seconds = (raw * PAGE_SIZE_BYTES) as f64 / bytes_per_s.max(1.0);
        let contents = Duration::try_from_secs_f64(seconds).unwrap_or(PATIENCE);
        contents.saturating_add(ZERO_PAGE.mul_f64(zero as f64))
    }
}

/// What a migration that is over says of its link: page contents per second, in bytes, those counted that the destination had
/// from before. The reverse of what is imagined. None if there were hardly any.
pub fn observed_bytes_per_s(report: &MigrationReport) -> Option<f64> {
    let zeros = ZERO_PAGE.mul_f64(report.bytes.zero_pages as f64).as_secs_f64();
    let busy = report.busy_ms / 1e3;
    // Where there were hardly any contents the time for them is a difference of two that are alike.
    let contents = (busy - zeros).max(busy / 4.0);
    let whole_pages = report.bytes.packed_pages + report.bytes.reused_pages;
    let bytes = report.bytes.raw + whole_pages * PAGE_SIZE_BYTES;
    (bytes >= TELLING_BYTES && contents > 0.0).then(|| bytes as f64 / contents)
}

/// Goes through a migration whose budget switches at the deadline, to its end.
pub(super) fn imagine(world: World, budget: Budget) -> Result<Imagined, Unforeseeable> {
    let deadline = Duration::from_millis(budget.deadline_ms);
    let mut run = Run::new(world, budget);
    run.feed(Input::Start);
    loop {
        while let Some(action) = run.actions.pop_front() {
            run.perform(action);
        }
        match &run.outcome {
            Some(MigrationOutcome::Completed { report }) => return Ok(run.imagined(report)),
            Some(_) => return Err(Unforeseeable::GivenUp),
            None if run.rounds > ROUNDS_MAX => run.skip_to(deadline),
            None => {}
        }
        run.now += TICK;
        run.feed(Input::Tick);
    }
}

struct Run {
    world: World,
    engine: Engine,
    now: Duration,
    actions: VecDeque<Action>,
    /// When the dirty log was last read.
    harvested: Duration,
    /// Pages that wait to be sent.
    waiting: u64,
    rounds: u32,
    /// When the guest stopped.
    stopped: Option<Duration>,
    committed: Duration,
    sent: Sent,
    ack: Ack,
    written_pages: u64,
    /// How much of the time each vCPU is held, in permille, and what each has done.
    shares: Vec<u16>,
    vcpus: Vec<VcpuActivity>,
    outcome: Option<MigrationOutcome>,
}

impl Run {
    fn new(world: World, budget: Budget) -> Self {
        let host: HostName = "imagined".parse().expect("a word is a name");
        let tuning = Tuning {
            page_streams: 1,
            peer_silent: PATIENCE,
            peer_silent_stopped: PATIENCE,
            switchover: PATIENCE,
            resumed: PATIENCE,
            ..Tuning::default()
        };
        let setup = Setup {
            migration: MigrationId(uuid::Uuid::nil()),
            source: host.clone(),
            destination: host,
            budget,
            ram_pages: world.pages,
            disk_pages: 0,
            unix: Duration::ZERO,
            tuning,
        };
        Self {
            waiting: world.pages,
            shares: Vec::new(),
            vcpus: vec![VcpuActivity::default(); world.writers.len()],
            world,
            engine: Engine::new(setup),
            now: Duration::ZERO,
            actions: VecDeque::new(),
            harvested: Duration::ZERO,
            rounds: 0,
            stopped: None,
            committed: Duration::ZERO,
            sent: Sent::default(),
            ack: Ack::default(),
            written_pages: 0,
            outcome: None,
        }
    }

    fn feed(&mut self, input: Input) {
        self.actions.extend(self.engine.handle(self.now, input));
    }

    fn control(&mut self, message: Control) {
        self.feed(Input::Control(message));
    }

    /// Does what the engine wants, as fast as the world lets it.
    fn perform(&mut self, action: Action) {
        match action {
            Action::Greet => {
                self.now += SETUP;
                let welcome = Welcome { post_copy: true, verify: true, ..Welcome::default() };
                self.control(Control::Welcome(welcome));
            }
            Action::OpenStreams => {
                self.feed(Input::StreamsOpened(Ok(())));
                self.control(Control::Ready(Ready {}));
            }
            Action::StartLog => {
                self.harvested = self.now;
                self.feed(Input::LogStarted(Ok(())));
            }
            Action::SendRound { round } => self.send_round(round),
            Action::Harvest => self.harvest(),
            Action::Slow { shares } => self.shares = shares,
            Action::Pause => {
                self.stopped = Some(self.now);
                self.feed(Input::Paused(Ok(Duration::ZERO)));
            }
            Action::Save { .. } => self.feed(Input::Saved(Ok(()))),
            Action::SendState { rest, .. } => {
                if rest {
                    self.sent.rest_pages = self.waiting;
                    self.feed(Input::Sent(self.sent));
                }
                self.now += self.world.handoff / 2;
                self.control(Control::Prepared(Prepared::default()));
            }
            Action::AskCommit => {
                self.feed(Input::Verdict(Verdict::Granted { epoch: Epoch(1) }));
            }
            Action::HandOver => {
                self.committed = self.now;
                self.feed(Input::HandedOver);
            }
            Action::Send(Control::Committed(_)) => {
                self.now += self.world.handoff / 2;
                let took_us = (self.now - self.committed).as_micros() as u64;
                self.control(Control::Resumed(Resumed { took_us, ..Resumed::default() }));
            }
            Action::PushRest => self.push_rest(),
            // It takes nothing of the guest's time.
            Action::Digest => self.feed(Input::Digested(Ok(MemoryDigest::default()))),
            Action::End(outcome) => self.outcome = Some(outcome),
            // Nothing fails here, so the rest is never asked for, or changes nothing.
            Action::Reclaim => self.feed(Input::Reclaimed(Ok(Reclaimed::Ours))),
            Action::Resume => self.feed(Input::Resumed(Ok(()))),
            Action::Send(_)
            | Action::StopLog
            | Action::LetGo
            | Action::Serve { .. }
            | Action::Disconnect
            | Action::Reconnect { .. }
            | Action::Progress(_) => {}
        }
    }

    /// The pages arrive one after the other, and are acknowledged as they do.
    fn send_round(&mut self, round: u32) {
        let pages = std::mem::take(&mut self.waiting);
        let raw = if round == 1 { (pages as f64 * self.world.raw_part) as u64 } else { pages };
        self.rounds = round;
        self.sent.raw_pages += raw;
        self.sent.zero_pages += pages - raw;
        self.sent.page_stream_bytes += raw * PAGE_SIZE_BYTES + 1;
        self.feed(Input::Sent(self.sent));
        let (began, before) = (self.now, self.ack);
        // A guest that stands is not held back.
        let cap = self.stopped.map_or(self.world.cap_bytes_per_s, |_| f64::INFINITY);
        let time = self.world.transfer(round, (raw, pages - raw), cap);
        for count in 1..=ACKS {
            let part = f64::from(count) / f64::from(ACKS);
            let of = |from: u64, to: u64| from + ((to - from) as f64 * part) as u64;
            self.now = began + time.mul_f64(part);
            self.ack.pages = of(before.pages, before.pages + pages);
            self.ack.wire_bytes = of(before.wire_bytes, self.sent.page_stream_bytes);
            self.ack.round = if count == ACKS { round } else { before.round };
            self.control(Control::Ack(self.ack));
        }
        self.feed(Input::RoundSent { stream: 0, round });
    }

    /// What is left follows the guest, at the rate of later rounds.
    fn push_rest(&mut self) {
        let pages = std::mem::take(&mut self.waiting);
        self.now += self.world.transfer(2, (pages, 0), self.world.cap_bytes_per_s);
        self.sent.raw_pages += pages;
        self.sent.page_stream_bytes += pages * PAGE_SIZE_BYTES;
        self.sent.rest_pages = 0;
        self.feed(Input::Sent(self.sent));
        self.control(Control::Whole(Whole::default()));
    }

    fn harvest(&mut self) {
        let ran = self.stopped.unwrap_or(self.now).saturating_sub(self.harvested);
        let runs = |vcpu: usize| 1.0 - f64::from(self.shares.get(vcpu).copied().unwrap_or(0)) / 1000.0;
        // By how much each adds to the guest's writing.
        let parts: Vec<f64> =
            self.world.writers.iter().enumerate().map(|(vcpu, part)| part * runs(vcpu)).collect();
        let all: f64 = parts.iter().sum();
        let written = self.world.curve.pages(ran.mul_f64(all));
        for (vcpu, part) in parts.iter().enumerate() {
            self.vcpus[vcpu].written_pages += (written as f64 * part / all.max(f64::MIN_POSITIVE)) as u64;
            self.vcpus[vcpu].held += ran.mul_f64(1.0 - runs(vcpu));
        }
        self.harvested = self.now;
        self.now += self.world.sync;
        self.written_pages += written;
        self.waiting = (self.waiting + written).min(self.world.pages);
        self.feed(Input::Harvested(Ok(Harvest {
            pages: self.waiting,
            took: self.world.sync,
            vcpus: self.vcpus.clone(),
        })));
    }

    fn imagined(&self, report: &MigrationReport) -> Imagined {
        Imagined {
            total: from_ms(report.total_ms),
            blackout: from_ms(report.blackout.total_ms),
            predicted: from_ms(report.predicted_blackout_ms),
            handoff: self.world.handoff,
            rounds: report.rounds,
            sent_bytes: report.bytes.sent,
            written_pages: self.written_pages,
            slowdown_percent: report.slowed.iter().map(|vcpu| vcpu.highest_percent).fold(0.0, f64::max),
            held: self.vcpus.iter().map(|vcpu| vcpu.held).sum(),
        }
    }

    /// Leaves out rounds that would all be the same.
    fn skip_to(&mut self, deadline: Duration) {
        let ahead = deadline.saturating_sub(self.now);
        self.now += ahead;
        self.harvested += ahead;
    }
}

fn blackout_max(budget: &Budget) -> Duration {
    Duration::from_millis(budget.blackout_ms_max.into())
}

fn from_ms(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX)
}
