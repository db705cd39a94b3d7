//! From the handshake to the decision to stop the guest.

use std::time::Duration;

use godwit_types::{ApiError, ErrorCode};

use super::serving::Rest;
use super::{Action, Engine, Harvest, IDLE_SPACING, State};
use crate::failure::{self, Link};
use crate::machine::MachineError;
use crate::policy::{Decision, Measured};
use crate::throttle::Round;

impl Engine {
    pub(super) fn streams_opened(&mut self, result: Result<(), ApiError>) {
        match (result, &self.state) {
            (Ok(()), State::Opening) => {
                self.state = State::Starting;
                (self.log_on, self.opened) = (true, self.now);
                self.actions.push(Action::StartLog);
            }
            (Err(error), State::Opening) => self.lost(Link::Pages(0), error),
            _ => {}
        }
    }

    pub(super) fn log_started(&mut self, result: Result<(), MachineError>) {
        match (result, &self.state) {
            (Ok(()), State::Starting) => self.send_round(self.setup.ram_pages + self.setup.disk_pages),
            (Err(error), State::Starting) => self.fail(failure::machine(&error), true),
            _ => {}
        }
    }

    /// Begins a round of pre-copy.
    pub(super) fn send_round(&mut self, pages: u64) {
        self.schedule(pages);
        self.round_began = self.now;
        self.state = State::Sending { streams_done: 0 };
    }

    pub(super) fn schedule(&mut self, pages: u64) {
        self.round += 1;
        self.traffic.schedule(self.now, self.round, pages);
        self.actions.push(Action::SendRound { round: self.round });
    }

    pub(super) fn round_sent(&mut self, round: u32) {
        let State::Sending { streams_done } = &mut self.state else {
            return;
        };
        if round != self.round {
            return;
        }
        *streams_done += 1;
        if *streams_done == self.setup.tuning.page_streams {
            self.rest();
        }
    }

    /// Reads the dirty log now, or when the round has lasted long enough.
    pub(super) fn rest(&mut self) {
        if self.now >= self.round_began + self.spacing {
            self.state = State::Harvesting;
            self.actions.push(Action::Harvest);
        } else {
            self.state = State::Resting;
        }
    }

    pub(super) fn harvested(&mut self, result: Result<Harvest, MachineError>) {
        let harvest = match result {
            Ok(harvest) => harvest,
            Err(_) if matches!(self.state, State::Resuming { .. }) => return,
            Err(error) => return self.fail(failure::machine(&error), true),
        };
        match self.state {
            State::Harvesting => {
                let time = self.traffic.since_harvest(self.now);
                self.throttle.observe(self.now, &harvest.vcpus);
                self.traffic.harvest(self.now, &harvest);
                self.decide(harvest.pages, time);
            }
            State::LastHarvest => {
                // The vCPUs stand, and were held up to here.
                self.throttle.observe(self.now, &harvest.vcpus);
                self.throttle.lift();
                self.last_harvest(harvest.pages);
            }
            State::FinalHarvest => self.last_harvest(harvest.pages),
            _ => {}
        }
    }

    /// What to do with so many pages, `time` after the reading before.
    fn decide(&mut self, dirty_pages: u64, time: Duration) {
        let slowing = self.throttle.may_help();
        let measured = Measured { slowing, ..self.traffic.measured(dirty_pages) };
        let decision = self.policy.decide(self.now, &measured);
        if matches!(decision, Decision::Round { .. }) {
            self.slow(&measured, time);
        }
        match decision {
            Decision::Switch { predicted } if self.ready => self.stop(predicted),
            Decision::SwitchPostCopy { predicted } if self.ready => {
                self.rest = Some(Rest::default());
                self.stop(predicted);
            }
            Decision::GiveUp => self.give_up(&measured),
            Decision::Round { spacing } if dirty_pages > 0 => {
                self.spacing = spacing;
                self.send_round(dirty_pages);
            }
            _ if dirty_pages > 0 => self.send_round(dirty_pages),
            _ => {
                self.round_began = self.now;
                self.spacing = self.spacing.max(IDLE_SPACING);
                self.rest();
            }
        }
    }

    fn stop(&mut self, predicted: Duration) {
        self.predicted = predicted;
        self.timeline.stop = self.now;
        self.state = State::Stopping { failed: None };
        self.actions.push(Action::Pause);
    }

    /// Slows those who write, as far as it takes. Told at each reading: a vCPU that was reset meanwhile has forgotten it.
    fn slow(&mut self, measured: &Measured, time: Duration) {
        let slowed = !self.throttle.shares().is_empty();
        if !self.policy.fits(measured) {
            let Measured { remaining: left, rate, .. } = *measured;
            self.throttle.adjust(Round { now: self.now, left, rate }, time);
        }
        let shares = self.throttle.shares().to_vec();
        if slowed || !shares.is_empty() {
            self.actions.push(Action::Slow { shares });
        }
    }

    /// Nobody is slowed any more.
    pub(super) fn lift(&mut self) {
        if self.throttle.lift() {
            self.actions.push(Action::Slow { shares: Vec::new() });
        }
    }

    pub(super) fn give_up(&mut self, measured: &Measured) {
        let mut why = self.policy.explain(measured, self.traffic.dirty_bytes_per_s());
        let slowed = self.throttle.report().iter().map(|vcpu| vcpu.highest_percent).fold(0.0, f64::max);
        if slowed > 0.0 {
            why = format!("{why}, although its writers were slowed by up to {slowed:.0} %");
        }
        let error = ApiError::new(ErrorCode::Failed, why).remedy(
            "raise the blackout budget or the deadline, allow the guest's writers to be slowed (more), allow the \
             switchover at the deadline, or migrate when the guest is quieter",
        );
        self.fail(error, true);
    }
}
