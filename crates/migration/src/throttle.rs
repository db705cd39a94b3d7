//! How much each vCPU is slowed, so that rounds get smaller.
//!
//! ```text
//!            a round is hardly smaller than the one before
//!   calm ----------------------------------------------------> slowing --+ raised while rounds hardly shrink,
//!    ^ ^                                                        |   | ^  | lowered while they shrink well
//!    | +------------------- lowered to nothing -----------------+   | +--+
//!    |                                                              | all writers at the bound, and it does not help
//!    |        eight times as long as was tried                      v
//!    +---------------------------------------------------------- futile: nobody is slowed
//! ```
//!
//! One number, the push, says what part of the guest's writes is to go. It is taken from the heaviest writers first, as if
//! water stood over them: all that are cut write equally fast afterwards. A vCPU that writes little beside others is a
//! reader, and keeps its speed whatever happens. Nobody loses more than the bound.

use std::time::Duration;

use godwit_types::PAGE_SIZE_BYTES;
use godwit_types::migration::SlowedVcpu;

use crate::machine::VcpuActivity;
use crate::report::ms;

/// The whole, of which shares and the push are parts.
const WHOLE: f64 = 1000.0;
/// A round that leaves more than this part of the one before hardly shrinks.
const HARDLY: f64 = 0.75;
/// One that leaves at most this part shrinks well.
const WELL: f64 = 0.4;
/// When the push is raised, writes are to come down to this part of the rate at which memory moves.
const AIM: f64 = 0.5;
/// By so much at least, in permille; and by what part of it the push is lowered, until it is less than the least.
const RAISE_MIN: f64 = 100.0;
const LOWER: f64 = 0.25;
const PUSH_MIN: f64 = 50.0;
/// Who writes less than this part of the heaviest writer is a reader.
const READER: f64 = 0.05;
/// At the bound, a round helps if it leaves at most this part of the best so far; so many in a row that do not, over at
/// least so long, show that it is futile.
const HELPS: f64 = 0.95;
const FUTILE_ROUNDS: u32 = 4;
const FUTILE_TIME: Duration = Duration::from_secs(1);
/// It is tried again after so many times as long as it was.
const REST: u32 = 8;
/// A shorter time tells more of the holds themselves than of what they do.
const TELLING: Duration = Duration::from_millis(20);

/// What a reading of the dirty log has found.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Since the migration began.
    pub now: Duration,
    /// What is to be sent, in bytes.
    pub left: u64,
    /// Bytes per second that the destination settles, if that is known.
    pub rate: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Calm,
    Slowing { since: Duration, idle: Idle },
    Futile { until: Duration },
}

/// How long nothing has helped at the bound.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Idle {
    best: Option<u64>,
    rounds: u32,
    since: Duration,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Throttle {
    /// The most that a vCPU may lose, in permille.
    bound: f64,
    state: State,
    push: f64,
    /// What the round before has left.
    left: Option<u64>,
    shares: Vec<u16>,
    accounts: Vec<Account>,
    read: Duration,
}

/// What one vCPU went through.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    /// As the machine has told it first and last.
    first: VcpuActivity,
    last: VcpuActivity,
    /// Pages written between the last two readings.
    written: u64,
    slowed: Duration,
    highest: u16,
}

impl Throttle {
    /// Nobody is slowed yet, and never by more than so many percent.
    pub fn new(percent_max: u8) -> Self {
        Self {
            bound: f64::from(percent_max.min(99)) * WHOLE / 100.0,
            state: State::Calm,
            push: 0.0,
            left: None,
            shares: Vec::new(),
            accounts: Vec::new(),
            read: Duration::ZERO,
        }
    }

    /// What part of the time each vCPU is to be held, in permille; empty if none is.
    pub fn shares(&self) -> &[u16] {
        &self.shares
    }

    /// The most that any vCPU is slowed now, in percent.
    pub fn percent(&self) -> f64 {
        f64::from(self.shares.iter().copied().max().unwrap_or(0)) / 10.0
    }

    /// Whether slowing vCPUs may still bring the rounds down.
    pub fn may_help(&self) -> bool {
        self.bound > 0.0 && !self.accounts.is_empty() && !matches!(self.state, State::Futile { .. })
    }

    /// Whether it has been tried in vain.
    pub const fn is_futile(&self) -> bool {
        matches!(self.state, State::Futile { .. })
    }

    /// Takes in what the vCPUs have done, at every reading of the log.
    pub fn observe(&mut self, now: Duration, vcpus: &[VcpuActivity]) {
        let time = now.saturating_sub(self.read);
        if self.accounts.len() != vcpus.len() {
            self.accounts = vcpus
                .iter()
                .map(|first| Account { first: *first, last: *first, ..Account::default() })
                .collect();
            // What was written before is known together with what comes.
            self.accounts.iter_mut().for_each(|account| account.written = account.last.written_pages);
        } else {
            for (index, (account, vcpu)) in self.accounts.iter_mut().zip(vcpus).enumerate() {
                account.written = vcpu.written_pages.saturating_sub(account.last.written_pages);
                account.last = *vcpu;
                if self.shares.get(index).is_some_and(|share| *share > 0) {
                    account.slowed += time;
                }
            }
        }
        self.read = now;
    }

    /// Decides anew, after a reading whose pages are too many. `time` since the one before.
    pub fn adjust(&mut self, round: Round, time: Duration) {
        if self.bound == 0.0 || time < TELLING {
            return;
        }
        let full = self.full_rates(time);
        let shrunk = self.left.replace(round.left).map(|before| round.left as f64 / before.max(1) as f64);
        let at_bound = self.is_at_bound(&full);
        let (wrote, moves) = (full.iter().sum::<f64>(), round.rate.unwrap_or(f64::INFINITY));
        match &mut self.state {
            State::Futile { until } if round.now >= *until => (self.state, self.left) = (State::Calm, None),
            State::Futile { .. } => {}
            State::Calm => {
                // A guest that writes faster than its memory moves need not be seen to do so twice.
                if wrote >= moves || wrote > moves * AIM && shrunk.is_some_and(|part| part > HARDLY) {
                    self.state = State::Slowing { since: round.now, idle: Idle::default() };
                    self.raise(wrote, moves);
                }
            }
            State::Slowing { since, idle } => match shrunk {
                Some(part) if part <= WELL || wrote <= moves * AIM => self.lower(),
                Some(part) if part > HARDLY => {
                    let since = *since;
                    if at_bound && idle.is_over(&round) {
                        self.give_up(since, round.now);
                    } else {
                        self.raise(wrote, moves);
                    }
                }
                _ => {}
            },
        }
        self.share_out(&full);
    }

    /// The guest stands, or the migration has ended: nobody is slowed any more. Whether somebody was.
    pub fn lift(&mut self) -> bool {
        (self.state, self.push) = (State::Calm, 0.0);
        !std::mem::take(&mut self.shares).is_empty()
    }

    /// What those went through that were slowed.
    pub fn report(&self) -> Vec<SlowedVcpu> {
        let slowed = |(vcpu, account): (u32, &Account)| {
            let held = account.last.held.saturating_sub(account.first.held);
            let mean = held.as_secs_f64() / account.slowed.as_secs_f64();
            (account.highest > 0 && !account.slowed.is_zero()).then(|| SlowedVcpu {
                vcpu,
                mean_percent: mean * 100.0,
                highest_percent: f64::from(account.highest) / 10.0,
                time_ms: ms(account.slowed),
            })
        };
        (0..).zip(&self.accounts).filter_map(slowed).collect()
    }

    /// Bytes per second that each vCPU would write at full speed; none for readers.
    fn full_rates(&self, time: Duration) -> Vec<f64> {
        let full = |(index, account): (usize, &Account)| {
            let runs = 1.0 - f64::from(self.shares.get(index).copied().unwrap_or(0)) / WHOLE;
            account.written as f64 * PAGE_SIZE_BYTES as f64 / time.as_secs_f64() / runs
        };
        let mut rates: Vec<f64> = self.accounts.iter().enumerate().map(full).collect();
        let heaviest = rates.iter().copied().fold(0.0, f64::max);
        rates.iter_mut().filter(|rate| **rate < heaviest * READER).for_each(|rate| *rate = 0.0);
        rates
    }

    fn raise(&mut self, wrote: f64, moves: f64) {
        let needed = if wrote > 0.0 { (1.0 - AIM * moves / wrote) * WHOLE } else { 0.0 };
        self.push = (self.push + RAISE_MIN).max(needed).min(self.bound);
    }

    fn lower(&mut self) {
        self.push *= 1.0 - LOWER;
        if self.push < PUSH_MIN {
            (self.state, self.push) = (State::Calm, 0.0);
        }
    }

    fn give_up(&mut self, since: Duration, now: Duration) {
        let tried = now.saturating_sub(since);
        self.state = State::Futile { until: now.saturating_add(tried.saturating_mul(REST)) };
        self.push = 0.0;
    }

    /// Whether all who write are slowed as much as they may be.
    fn is_at_bound(&self, full: &[f64]) -> bool {
        let most = self.bound as u16;
        let share = |index: usize| self.shares.get(index).copied().unwrap_or(0);
        self.push >= self.bound
            && full.iter().enumerate().all(|(index, rate)| *rate == 0.0 || share(index) >= most)
    }

    /// Takes the push from the heaviest writers.
    fn share_out(&mut self, full: &[f64]) {
        let bound = self.bound / WHOLE;
        let cut = |level: f64, rate: f64| if rate > level { (1.0 - level / rate).min(bound) } else { 0.0 };
        let wanted = full.iter().sum::<f64>() * self.push / WHOLE;
        // The higher the level, the less is cut: halved until it is known to a millionth of the heaviest.
        let (mut low, mut high) = (0.0, full.iter().copied().fold(0.0, f64::max));
        for _ in 0..20 {
            let level = f64::midpoint(low, high);
            let gone: f64 = full.iter().map(|rate| rate * cut(level, *rate)).sum();
            if gone >= wanted { low = level } else { high = level }
        }
        let share = |rate: &f64| (cut(low, *rate) * WHOLE).round() as u16;
        self.shares = if self.push > 0.0 { full.iter().map(share).collect() } else { Vec::new() };
        if self.shares.iter().all(|share| *share == 0) {
            self.shares.clear();
        }
        for (account, share) in self.accounts.iter_mut().zip(&self.shares) {
            account.highest = account.highest.max(*share);
        }
    }
}

impl Idle {
    /// Counts a round at the bound that hardly shrank; whether there have been enough.
    fn is_over(&mut self, round: &Round) -> bool {
        if self.best.is_none_or(|best| round.left as f64 <= best as f64 * HELPS) {
            *self = Self { best: Some(round.left), rounds: 0, since: round.now };
        } else {
            self.rounds += 1;
        }
        self.rounds >= FUTILE_ROUNDS && round.now.saturating_sub(self.since) >= FUTILE_TIME
    }
}

#[cfg(test)]
#[path = "throttle/tests.rs"]
mod tests;
