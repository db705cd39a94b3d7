//! From the handshake to the decision to stop the guest.

use std::time::Duration;

use godwit_types::{ApiError, ErrorCode};

use super::serving::Rest;
use super::{Action, Engine, Harvest, IDLE_SPACING, State};
use crate::failure::{self, Link};
use crate::machine::MachineError;
use crate::policy::{Decision, Measured};

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
            (Ok(()), State::Starting) => self.send_round(self.setup.ram_pages),
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
                self.traffic.harvest(self.now, harvest);
                self.decide(harvest.pages);
            }
            State::LastHarvest | State::FinalHarvest => self.last_harvest(harvest.pages),
            _ => {}
        }
    }

    pub(super) fn decide(&mut self, dirty_pages: u64) {
        let measured = self.traffic.measured(dirty_pages);
        match self.policy.decide(self.now, &measured) {
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

    pub(super) fn give_up(&mut self, measured: &Measured) {
        let why = self.policy.explain(measured, self.traffic.dirty_bytes_per_s());
        let error = ApiError::new(ErrorCode::Failed, why).remedy(
            "raise the blackout budget or the deadline, allow the switchover at the deadline, or migrate when the \
             guest is quieter",
        );
        self.fail(error, true);
    }
}
