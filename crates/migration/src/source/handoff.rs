//! From the stopped guest to its running at the destination.

use std::time::Duration;

use godwit_types::migration::{MigrationOutcome, MigrationReport, Phase, PostCopyReport};
use godwit_types::ownership::Verdict;
use godwit_types::{ApiError, ErrorCode, PAGE_SIZE_BYTES};

use super::{Action, Engine, State};
use crate::failure;
use crate::machine::MachineError;
use crate::report::ms;
use crate::wire::{Ack, Committed, Control, Digest128};

impl Engine {
    pub(super) fn paused(&mut self, result: Result<Duration, MachineError>) {
        let State::Stopping { failed } = &self.state else {
            return;
        };
        match (result, failed.clone()) {
            (Ok(drained), None) => {
                self.timeline.paused = self.now;
                self.timeline.drain = drained;
                self.state = State::LastHarvest;
                self.actions.push(Action::Harvest);
            }
            (Ok(_), Some(error)) => self.resume_here(error, true),
            (Err(_), Some(error)) => self.conclude(Phase::Switchover, error, true),
            (Err(error), None) => self.conclude(Phase::Switchover, failure::machine(&error), true),
        }
    }

    pub(super) fn saved(&mut self, result: Result<(), MachineError>) {
        if self.state != State::Saving {
            return;
        }
        match result {
            Ok(()) => {
                self.state = State::FinalHarvest;
                self.actions.push(Action::Harvest);
            }
            Err(error) => self.fail(failure::machine(&error), true),
        }
    }

    /// The guest stands. Saving goes on beside the sending of the last pages; what saving dirties follows.
    /// By post-copy, they wait until it runs at the destination.
    pub(super) fn last_harvest(&mut self, pages: u64) {
        match &mut self.rest {
            Some(rest) => rest.pages = pages,
            None if pages > 0 => self.schedule(pages),
            None => {}
        }
        if self.state == State::LastHarvest {
            self.state = State::Saving;
            self.actions.push(Action::Save { ahead_ns: self.clocks.carry() });
        } else {
            self.state = State::Preparing;
            // With nothing left to follow, it is a switchover like any other.
            self.rest.take_if(|rest| rest.pages == 0);
            self.actions.push(Action::SendState { last_round: self.round, rest: self.rest.is_some() });
        }
        self.mark_settled();
    }

    pub(super) fn acknowledged(&mut self, ack: Ack) {
        if !self.traffic.acknowledge(self.now, ack) {
            return self
                .fail(failure::out_of_turn(&self.peer(), "an acknowledgement of an unknown stream"), true);
        }
        self.mark_settled();
    }

    /// Notes when the last pages had arrived.
    pub(super) fn mark_settled(&mut self) {
        let last_pages = matches!(self.state, State::Saving | State::FinalHarvest | State::Preparing);
        if last_pages && self.settled_round < self.round && self.traffic.is_settled(self.round) {
            self.settled_round = self.round;
            self.timeline.settled = self.now;
        }
    }

    pub(super) fn ask_commit(&mut self) {
        self.state = State::Committing { since: self.now, ask_at: None, let_go: false };
        self.actions.push(Action::AskCommit);
    }

    /// An undecided arbiter is asked again. When its word does not come, the disks' locks are let go: this host may be
    /// cut off, and the destination, which has everything, then needs nothing more of it.
    pub(super) fn await_verdict(&mut self, since: Duration, ask_at: Option<Duration>, let_go: bool) {
        let overdue = self.now >= since + self.setup.tuning.let_go;
        let ask = ask_at.is_some_and(|at| self.now >= at);
        let ask_at = ask_at.filter(|_| !ask);
        self.state = State::Committing { since, ask_at, let_go: let_go || overdue };
        if overdue && !let_go {
            self.actions.push(Action::LetGo);
        }
        if ask {
            self.actions.push(Action::AskCommit);
        }
    }

    pub(super) fn verdict(&mut self, verdict: Verdict) {
        let State::Committing { since, ask_at: None, let_go } = self.state else {
            return;
        };
        match verdict {
            Verdict::Granted { epoch } => {
                self.timeline.granted = self.now;
                self.state = State::HandingOver { epoch };
                self.actions.push(Action::HandOver);
            }
            Verdict::Undecided => {
                let ask_at = Some(self.now + self.setup.tuning.ask_again);
                self.state = State::Committing { since, ask_at, let_go };
            }
            Verdict::Refused { reason } => {
                let error =
                    ApiError::new(ErrorCode::Refused, format!("the manager refused the commit: {reason}"))
                        .remedy("see what else happened to the VM in the events, then migrate again");
                self.resume_here(error, true);
            }
        }
    }

    pub(super) fn handed_over(&mut self) {
        let State::HandingOver { epoch } = self.state else {
            return;
        };
        self.timeline.committed = self.now;
        if self.rest.is_some() {
            return self.serve(epoch);
        }
        self.state = State::HandedOver;
        match self.deaf.take() {
            Some(error) => self.end_unconfirmed(error),
            None => self.actions.push(Action::Send(Control::Committed(Committed { epoch: epoch.0 }))),
        }
    }

    /// The guest has run at the destination since `total`, and all of its memory is there, with this digest.
    pub(super) fn complete(
        &mut self,
        total: Duration,
        post_copy: Option<PostCopyReport>,
        memory: Option<Digest128>,
    ) {
        let settled = self.traffic.settled_pages() * PAGE_SIZE_BYTES;
        let report = MigrationReport {
            migration: self.setup.migration,
            from: self.setup.source.clone(),
            to: self.setup.destination.clone(),
            total_ms: ms(total),
            blackout: self.timeline.blackout(total),
            predicted_blackout_ms: ms(self.predicted),
            rounds: self.round,
            bytes: self.traffic.sent().by_kind(),
            goodput_bytes_per_s: (settled as f64 / total.as_secs_f64().max(1e-6)) as u64,
            busy_ms: ms(self.traffic.busy()),
            later_bytes_per_s: self.traffic.later_bytes_per_s(),
            capped: false,
            predicted: None,
            post_copy: post_copy.map(Box::new),
            verified: None,
            guest_clock: self.clocks.report(),
            slowed: self.throttle.report(),
        };
        if self.setup.budget.verify {
            self.verify(Box::new(report), memory.map(Into::into));
        } else {
            self.completed(Box::new(report));
        }
    }

    pub(super) fn completed(&mut self, report: Box<MigrationReport>) {
        self.end(MigrationOutcome::Completed { report });
    }
}
