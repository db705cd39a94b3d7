//! How an attempt ends when it does not go through.

use godwit_types::migration::{MigrationOutcome, Phase};
use godwit_types::{ApiError, ErrorCode};

use super::{Action, Engine, State};
use crate::failure::Link;
use crate::machine::{MachineError, Reclaimed};
use crate::wire::Control;

impl Engine {
    pub(super) fn lost(&mut self, link: Link, error: ApiError) {
        match (link, &self.state) {
            (_, State::Serving { .. }) => self.line_broke(error),
            (_, State::Verifying(_)) => {}
            // Nothing is said to the destination meanwhile; new connections come once the VM is its.
            (_, State::Committing { .. } | State::HandingOver { .. }) if self.rest.is_some() => {
                self.deaf.get_or_insert(error);
            }
            (Link::Control, _) => {
                let first = self.broken.take().map_or(error, |(_, first)| first);
                self.peer_failed(first);
            }
            // The destination has all pages; only the verdict and RESUMED matter now.
            (Link::Pages(_), _) if self.is_commit_asked() => {}
            (Link::Pages(_), _) => {
                self.broken.get_or_insert((self.now + self.setup.tuning.last_words, error));
            }
        }
    }

    /// The destination has given up, or cannot be heard any more.
    pub(super) fn peer_failed(&mut self, error: ApiError) {
        self.deaf.get_or_insert(error.clone());
        self.fail(error, false);
    }

    /// Ends the attempt; before the commit is asked, the guest runs on here. `tell` the destination why.
    pub(super) fn fail(&mut self, error: ApiError, tell: bool) {
        let phase = self.phase();
        match &mut self.state {
            State::Stopping { failed } => {
                failed.get_or_insert(error);
            }
            State::LastHarvest | State::Saving | State::FinalHarvest | State::Preparing => {
                self.resume_here(error, tell);
            }
            State::HandedOver | State::Serving { .. } => self.end_unconfirmed(error),
            State::Committing { .. }
            | State::HandingOver { .. }
            | State::Reclaiming { .. }
            | State::Resuming { .. }
            | State::Verifying(_)
            | State::Ended => {}
            _ => self.conclude(phase, error, tell),
        }
    }

    pub(super) fn resume_here(&mut self, error: ApiError, tell: bool) {
        let phase = self.phase();
        if matches!(self.state, State::Preparing | State::Committing { .. }) {
            self.state = State::Reclaiming { phase, error, tell, try_at: None };
            self.actions.push(Action::Reclaim);
        } else {
            self.state = State::Resuming { phase, error, tell };
            self.actions.push(Action::Resume);
        }
    }

    pub(super) fn reclaim_again(&mut self) {
        if let State::Reclaiming { try_at, .. } = &mut self.state {
            *try_at = None;
            self.actions.push(Action::Reclaim);
        }
    }

    /// A guest whose disks cannot be reached stands rather than run on unrecorded: the destination may be taking over.
    pub(super) fn reclaimed(&mut self, result: Result<Reclaimed, MachineError>) {
        let State::Reclaiming { phase, error, tell, try_at } = &mut self.state else {
            return;
        };
        match result {
            Ok(Reclaimed::Ours) => {
                self.state = State::Resuming { phase: *phase, error: error.clone(), tell: *tell };
                self.actions.push(Action::Resume);
            }
            Ok(Reclaimed::Lost(reason)) => {
                let mut error = error.clone();
                error.message = format!("{}; meanwhile the VM was taken over: {reason}", error.message);
                self.actions.push(Action::HandOver);
                self.end_unconfirmed(error);
            }
            Err(_) => *try_at = Some(self.now + self.setup.tuning.ask_again),
        }
    }

    pub(super) fn resumed(&mut self, result: Result<(), MachineError>) {
        let State::Resuming { phase, error, tell } = &self.state else {
            return;
        };
        let (phase, mut error, tell) = (*phase, error.clone(), *tell);
        if let Err(stuck) = result {
            let message = format!("{}; and then the VM could not be resumed: {stuck}", error.message);
            error = ApiError::new(ErrorCode::Internal, message).remedy("restart the VM on this host");
        }
        self.conclude(phase, error, tell);
    }

    pub(super) fn conclude(&mut self, phase: Phase, error: ApiError, tell: bool) {
        self.lift();
        if self.log_on {
            self.actions.push(Action::StopLog);
        }
        if tell && self.deaf.is_none() {
            self.actions.push(Action::Send(Control::error(&error)));
        }
        self.end(MigrationOutcome::Failed { phase, error });
    }

    pub(super) fn end_unconfirmed(&mut self, mut error: ApiError) {
        error.remedy = Some(format!(
            "the VM belongs to {}: see there whether it runs; it will not run on {}",
            self.setup.destination, self.setup.source
        ));
        self.end(MigrationOutcome::HandedOver { error });
    }

    pub(super) fn end(&mut self, outcome: MigrationOutcome) {
        self.state = State::Ended;
        if matches!(outcome, MigrationOutcome::Completed { .. }) {
            self.progress();
        }
        self.actions.push(Action::End(outcome));
    }
}
