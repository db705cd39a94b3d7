//! When to stop the guest: the convergence policy.
//!
//! predicted blackout = remaining bytes / goodput + reading the dirty log + handing over. It switches over when that is
//! within the budget, and a few more rounds would not make it much shorter. Where it never is, rounds are spaced out, and the deadline decides; if the user allows it,
//! post-copy decides sooner: what is dirty then follows the guest, and the blackout holds no more than the list of it.
//! It need not wait to see that rounds do not get better where the guest writes as fast as its memory moves. As long as
//! slowing those who write may help (`throttle`), that comes first.

use std::collections::VecDeque;
use std::time::Duration;

use godwit_types::migration::{Budget, OnDeadline};
use godwit_types::{Bytes, PAGE_SIZE_BYTES};

/// Rounds that are looked back upon to tell whether it gets better.
const WINDOW_ROUNDS: usize = 8;
/// A prediction counts as better than another if it is at most this part of it.
const BETTER: f64 = 0.9;
/// Within the budget, another round is worth its while if what it may save is more than this part of what cannot be saved.
const WORTH: f64 = 0.1;
/// And as long as each such round at least halves that: so all of them take no longer than two budgets.
const HALVES: f64 = 0.5;
/// But so many at most in a migration: the guest may never be as quiet again.
const POLISH_ROUNDS_MAX: u32 = 6;
/// Rounds in a row that did not get better after which post-copy is better than another: the local minimum is behind.
const POST_COPY_ROUNDS: u32 = 2;
/// What naming a page takes that is to follow, in bytes on the wire, and in time at a destination that has an older copy of it.
const NAMED_PAGE_BYTES: f64 = 4.0;
const NAMED_PAGE: Duration = Duration::from_micros(1);
/// Past the deadline, it switches over at a prediction of at most this multiple of the window's best.
const NEAR_BEST: f64 = 1.1;
/// Shortest and longest time between the beginnings of two rounds that do not get better; but they may take no larger part
/// of the time than one in so many, since the guest pays for each with a fault at every page that it writes.
const SPACING_MIN: Duration = Duration::from_millis(10);
const SPACING_MAX: Duration = Duration::from_millis(500);
const ROUND_SHARE: u32 = 8;
/// No round gets better if the guest writes at this part of the rate at which its memory moves, or faster.
const HOPELESS: f64 = 0.9;

/// What is known when the dirty log has been read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Pages to send and bytes on their way, in bytes.
    pub remaining: u64,
    /// Those of them that are on their way, in bytes.
    pub on_its_way: u64,
    /// Bytes per second that the destination settles; none before the first measurement.
    pub rate: Option<f64>,
    /// Bytes per second that the guest wrote since the log was read before, each page counted once.
    pub dirty: f64,
    /// Reading the dirty log.
    pub sync: Duration,
    /// Stopping, saving, loading, committing and resuming.
    pub handoff: Duration,
    /// Slowing those who write may still make rounds smaller.
    pub slowing: bool,
}

impl Measured {
    /// The blackout if the guest were stopped now; none while no rate is known.
    pub fn blackout(&self) -> Option<Duration> {
        self.blackout_for(self.remaining as f64)
    }

    /// The blackout if the guest were stopped now and what is dirty followed it.
    pub fn blackout_post_copy(&self) -> Option<Duration> {
        let pages = self.remaining.saturating_sub(self.on_its_way) / PAGE_SIZE_BYTES;
        let named = NAMED_PAGE.saturating_mul(u32::try_from(pages).unwrap_or(u32::MAX));
        Some(
            self.blackout_for(self.on_its_way as f64 + pages as f64 * NAMED_PAGE_BYTES)?
                .saturating_add(named),
        )
    }

    /// Whether the guest writes as fast as its memory moves.
    fn is_hopeless(&self) -> bool {
        self.rate.is_some_and(|rate| self.dirty >= rate * HOPELESS)
    }

    /// What sending less while the guest stands can save of the blackout.
    fn transfer(&self, predicted: Duration) -> Duration {
        predicted.saturating_sub(self.sync).saturating_sub(self.handoff)
    }

    fn blackout_for(&self, bytes: f64) -> Option<Duration> {
        let transfer = match self.rate {
            _ if bytes == 0.0 => 0.0,
            Some(rate) if rate > 0.0 => bytes / rate,
            _ => return None,
        };
        let transfer = Duration::try_from_secs_f64(transfer).unwrap_or(Duration::MAX);
        Some(transfer.saturating_add(self.sync).saturating_add(self.handoff))
    }
}

/// What to do after the dirty log has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Stop the guest; the prediction to be held against what then happens.
    Switch { predicted: Duration },
    /// The same, and let what is dirty follow.
    SwitchPostCopy { predicted: Duration },
    /// Send what is dirty; read the log again no sooner than this long after the round began.
    Round { spacing: Duration },
    /// The deadline has passed and the user wants the VM to stay.
    GiveUp,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Policy {
    budget: Budget,
    recent: VecDeque<Duration>,
    rounds_without_better: u32,
    rounds_past_deadline: usize,
    /// Within the budget: rounds that were made all the same, and what the last one could have saved.
    polish_rounds: u32,
    polished: Option<Duration>,
}

impl Policy {
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            recent: VecDeque::with_capacity(WINDOW_ROUNDS),
            rounds_without_better: 0,
            rounds_past_deadline: 0,
            polish_rounds: 0,
            polished: None,
        }
    }

    /// Decides once for each reading of the dirty log; `elapsed` since the migration began.
    pub fn decide(&mut self, elapsed: Duration, measured: &Measured) -> Decision {
        let predicted = measured.blackout();
        if let Some(predicted) = predicted.filter(|predicted| *predicted <= self.blackout_max()) {
            let polish = !self.is_past_deadline(elapsed) && self.polish(measured, predicted);
            return if polish {
                Decision::Round { spacing: Duration::ZERO }
            } else {
                Decision::Switch { predicted }
            };
        }
        self.polished = None;
        let best = self.recent.iter().min().copied();
        let stuck = self.rounds_without_better >= POST_COPY_ROUNDS || measured.is_hopeless();
        let no_better = stuck && !measured.slowing;
        if self.budget.post_copy
            && (no_better || self.is_past_deadline(elapsed))
            && let Some(predicted) = measured.blackout_post_copy()
        {
            return Decision::SwitchPostCopy { predicted };
        }
        if self.is_past_deadline(elapsed) {
            if self.budget.on_deadline == OnDeadline::Cancel && !self.budget.post_copy {
                return Decision::GiveUp;
            }
            self.rounds_past_deadline += 1;
            let near_best = match (predicted, best) {
                (Some(predicted), Some(best)) => predicted <= best.mul_f64(NEAR_BEST),
                _ => true,
            };
            if near_best || self.rounds_past_deadline >= WINDOW_ROUNDS {
                return Decision::Switch { predicted: predicted.unwrap_or(measured.handoff) };
            }
        }
        self.remember(predicted, best);
        let shift = self.rounds_without_better.saturating_sub(1).min(16);
        let spacing = match self.rounds_without_better {
            0 => Duration::ZERO,
            // A guest that is slowed is not left waiting.
            _ if measured.slowing => Duration::ZERO,
            _ if self.rounds_past_deadline > 0 => SPACING_MIN,
            _ => {
                let longest = SPACING_MAX.max(predicted.unwrap_or_default().saturating_mul(ROUND_SHARE));
                SPACING_MIN.saturating_mul(1 << shift).min(longest)
            }
        };
        Decision::Round { spacing }
    }

    /// Whether the guest could be stopped now.
    pub fn fits(&self, measured: &Measured) -> bool {
        measured.blackout().is_some_and(|predicted| predicted <= self.blackout_max())
    }

    /// Whether the deadline has passed and the VM is to stay, even in the middle of a round. Post-copy needs the round's end.
    pub fn has_given_up(&self, elapsed: Duration) -> bool {
        if self.polished.is_some() {
            return false;
        }
        let stays = self.budget.on_deadline == OnDeadline::Cancel && !self.budget.post_copy;
        stays && self.is_past_deadline(elapsed)
    }

    /// Why it gave up, with the numbers that decided.
    pub fn explain(&self, measured: &Measured, dirty_bytes_per_s: u64) -> String {
        let rate = measured.rate.unwrap_or(0.0) as u64;
        let predicted = measured.blackout().map_or_else(
            || "the blackout cannot be predicted yet".to_owned(),
            |predicted| format!("the predicted blackout is {:.1} ms", predicted.as_secs_f64() * 1e3),
        );
        format!(
            "the guest's memory did not come to rest within {} ms: it dirties {}/s, the network settles {}/s, {} are \
             left, and {predicted} against a budget of {} ms",
            self.budget.deadline_ms,
            Bytes(dirty_bytes_per_s),
            Bytes(rate),
            Bytes(measured.remaining),
            self.budget.blackout_ms_max,
        )
    }

    /// Whether to make another round although the guest could be stopped now.
    fn polish(&mut self, measured: &Measured, predicted: Duration) -> bool {
        let saves = measured.transfer(predicted);
        let better = self.polished.is_none_or(|last| saves <= last.mul_f64(HALVES));
        let worth = saves > (predicted - saves).mul_f64(WORTH);
        let polish = better && worth && !measured.is_hopeless() && self.polish_rounds < POLISH_ROUNDS_MAX;
        if polish {
            self.polish_rounds += 1;
            self.polished = Some(saves);
        }
        polish
    }

    fn remember(&mut self, predicted: Option<Duration>, best: Option<Duration>) {
        let better = match (predicted, best) {
            (Some(predicted), Some(best)) => predicted <= best.mul_f64(BETTER),
            _ => true,
        };
        self.rounds_without_better = if better { 0 } else { self.rounds_without_better + 1 };
        if let Some(predicted) = predicted {
            if self.recent.len() == WINDOW_ROUNDS {
                self.recent.pop_front();
            }
            self.recent.push_back(predicted);
        }
    }

    fn blackout_max(&self) -> Duration {
        Duration::from_millis(u64::from(self.budget.blackout_ms_max))
    }

    fn is_past_deadline(&self, elapsed: Duration) -> bool {
        elapsed >= Duration::from_millis(self.budget.deadline_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn policy(on_deadline: OnDeadline) -> Policy {
        Policy::new(Budget { blackout_ms_max: 50, deadline_ms: 10_000, on_deadline, ..Budget::default() })
    }

    fn measured(remaining: u64) -> Measured {
        let (sync, handoff) = (Duration::from_millis(2), Duration::from_millis(8));
        Measured {
            remaining,
            on_its_way: 0,
            rate: Some(1000.0 * MIB as f64),
            dirty: 0.0,
            sync,
            handoff,
            slowing: false,
        }
    }

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn it_switches_within_the_budget_at_the_local_minimum() {
        let mut policy = policy(OnDeadline::Cancel);
        let mut decide = |remaining| policy.decide(secs(1), &measured(remaining));
        let round = Decision::Round { spacing: Duration::ZERO };
        assert_eq!(decide(41 * MIB), round, "51 ms are too long");
        assert_eq!(
            [decide(40 * MIB), decide(20 * MIB)],
            [round, round],
            "50 ms would do, but may get shorter"
        );
        let Decision::Switch { predicted } = decide(11 * MIB) else {
            panic!("it did not get much shorter");
        };
        assert_eq!(predicted, Duration::from_millis(21));
    }

    #[test]
    fn nothing_is_polished_that_cannot_get_much_shorter_and_nothing_for_ever() {
        let switches = |policy: &mut Policy, measured: &Measured| {
            matches!(policy.decide(secs(1), measured), Decision::Switch { .. })
        };
        assert!(switches(&mut policy(OnDeadline::Cancel), &measured(MIB)), "1 of 11 ms");
        let hopeless = Measured { dirty: 1000.0 * MIB as f64, ..measured(30 * MIB) };
        assert!(switches(&mut policy(OnDeadline::Cancel), &hopeless));
        assert!(matches!(
            policy(OnDeadline::Cancel).decide(secs(10), &measured(30 * MIB)),
            Decision::Switch { .. }
        ));
        // Quiet, then loud again, for ever.
        let mut policy = policy(OnDeadline::Cancel);
        let quiet = (0..100).position(|_| {
            policy.decide(secs(1), &measured(900 * MIB));
            switches(&mut policy, &measured(30 * MIB))
        });
        assert_eq!(quiet, Some(POLISH_ROUNDS_MAX as usize));
    }

    #[test]
    fn a_deadline_that_passes_while_it_polishes_does_not_end_what_is_within_the_budget() {
        let mut policy = policy(OnDeadline::Cancel);
        policy.decide(secs(9), &measured(30 * MIB));
        assert!(!policy.has_given_up(secs(11)));
        policy.decide(secs(9), &measured(900 * MIB));
        assert!(policy.has_given_up(secs(11)));
    }

    #[test]
    fn without_a_measured_rate_only_a_clean_guest_is_stopped() {
        let mut policy = policy(OnDeadline::Cancel);
        let unknown = |remaining| Measured { rate: None, ..measured(remaining) };
        assert!(matches!(policy.decide(secs(1), &unknown(MIB)), Decision::Round { .. }));
        assert!(matches!(policy.decide(secs(1), &unknown(0)), Decision::Switch { .. }));
    }

    #[test]
    fn rounds_that_do_not_get_better_are_spaced_out_until_the_deadline() {
        let mut policy = policy(OnDeadline::Cancel);
        let mut spacings = Vec::new();
        for _ in 0..20 {
            match policy.decide(secs(1), &measured(490 * MIB)) {
                Decision::Round { spacing } => spacings.push(spacing),
                other => panic!("{other:?}"),
            }
        }
        assert!(spacings.is_sorted() && spacings[0].is_zero(), "{spacings:?}");
        assert_eq!(spacings[19], secs(4), "a round of half a second takes an eighth of the time");
        assert_eq!(policy.decide(secs(10), &measured(500 * MIB)), Decision::GiveUp);
        assert!(policy.has_given_up(secs(10)) && !policy.has_given_up(secs(9)));
    }

    #[test]
    fn past_the_deadline_it_waits_for_a_local_minimum_but_not_for_ever() {
        let mut near = policy(OnDeadline::Switch);
        near.decide(secs(1), &measured(100 * MIB));
        assert!(matches!(near.decide(secs(10), &measured(900 * MIB)), Decision::Round { .. }));
        assert!(matches!(near.decide(secs(10), &measured(105 * MIB)), Decision::Switch { .. }));

        let mut far = policy(OnDeadline::Switch);
        far.decide(secs(1), &measured(100 * MIB));
        let decisions = (1..100).map(|round| far.decide(secs(10), &measured(200 * round * MIB)));
        let rounds = decisions.take_while(|decision| !matches!(decision, Decision::Switch { .. })).count();
        assert!(rounds < WINDOW_ROUNDS, "{rounds} rounds past the deadline");
    }

    fn with_post_copy() -> Policy {
        let budget =
            Budget { blackout_ms_max: 50, deadline_ms: 10_000, post_copy: true, ..Budget::default() };
        Policy::new(budget)
    }

    #[test]
    fn post_copy_waits_for_the_local_minimum_and_predicts_the_blackout_without_what_follows() {
        let mut policy = with_post_copy();
        for remaining in [4000, 2000, 1000, 990, 990] {
            let decision = policy.decide(secs(1), &measured(remaining * MIB));
            assert!(matches!(decision, Decision::Round { .. }), "{remaining} MiB: {decision:?}");
        }
        let Decision::SwitchPostCopy { predicted } = policy.decide(secs(1), &measured(990 * MIB)) else {
            panic!("two rounds have not got better");
        };
        let pages = 990 * MIB / PAGE_SIZE_BYTES;
        let named = pages as f64 * (1e-6 + NAMED_PAGE_BYTES / (1000.0 * MIB as f64));
        assert!((predicted.as_secs_f64() - 0.010 - named).abs() < 1e-6, "{predicted:?}");
    }

    #[test]
    fn post_copy_does_not_wait_where_the_guest_writes_as_fast_as_its_memory_moves() {
        let writing = |part: f64| Measured { dirty: 1000.0 * MIB as f64 * part, ..measured(990 * MIB) };
        let decided = |part: f64| with_post_copy().decide(secs(1), &writing(part));
        assert!(matches!(decided(0.95), Decision::SwitchPostCopy { .. }));
        assert!(matches!(decided(0.8), Decision::Round { .. }));
        let without = policy(OnDeadline::Switch).decide(secs(1), &writing(2.0));
        assert!(matches!(without, Decision::Round { .. }));
    }

    #[test]
    fn post_copy_waits_while_slowing_may_help_but_not_past_the_deadline() {
        let stuck = Measured { dirty: 2000.0 * MIB as f64, slowing: true, ..measured(990 * MIB) };
        let mut policy = with_post_copy();
        for _ in 0..20 {
            assert_eq!(policy.decide(secs(1), &stuck), Decision::Round { spacing: Duration::ZERO });
        }
        let given_up = Measured { slowing: false, ..stuck };
        assert!(matches!(policy.clone().decide(secs(1), &given_up), Decision::SwitchPostCopy { .. }));
        assert!(matches!(policy.decide(secs(10), &stuck), Decision::SwitchPostCopy { .. }));
    }

    #[test]
    fn what_is_on_its_way_is_waited_for_by_post_copy_too() {
        let all = Measured { on_its_way: 100 * MIB, ..measured(100 * MIB) };
        assert_eq!(all.blackout_post_copy(), all.blackout());
    }

    #[test]
    fn a_guest_that_comes_under_the_budget_moves_without_post_copy_and_the_deadline_ends_with_it() {
        let mut policy = with_post_copy();
        assert!(matches!(policy.decide(secs(1), &measured(MIB)), Decision::Switch { .. }));
        let mut policy = with_post_copy();
        assert!(!policy.has_given_up(secs(60)));
        assert!(matches!(policy.decide(secs(60), &measured(500 * MIB)), Decision::SwitchPostCopy { .. }));
    }
}
