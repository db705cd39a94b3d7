//! When part of memory is still at the source: from STATE on, until all of it is here.
//!
//! ```text
//!  Loading --> Prepared --> Claiming --> Running --> Following --all here: WHOLE--> (waits for DONE) --> Ended
//!                 connections may break and be made again in any of these, but Loading      |
//!                                                          the source stays away for too long: Ended, the VM is lost
//! ```
//!
//! A copy that is not whole never takes over from a source that may be dead: it needs it. Once it is whole it may.

use std::time::Duration;

use godwit_types::Epoch;
use godwit_types::ownership::Witness;

use super::{Action, Engine, State};
use crate::failure;
use crate::wire::{Ack, Control, Resumed, Want, Welcome, Whole};

/// What is known of the part of memory that follows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rest {
    /// All of it is here.
    pub(super) whole: Option<Whole>,
    /// When the first vCPU ran, and the microseconds from COMMITTED to then.
    pub(super) ran: Option<(Duration, Resumed)>,
}

impl Engine {
    /// Whether the source may connect again.
    pub fn awaits_source(&self) -> bool {
        let may = matches!(
            self.state,
            State::Prepared | State::Claiming(_) | State::Running { .. } | State::Following { .. }
        );
        self.rest.is_some() && may
    }

    pub(super) fn is_whole(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.whole.is_some())
    }

    pub(super) fn expect_rest(&mut self) {
        self.rest = Some(Rest::default());
        self.witness = Witness::Blind { reason: "part of the VM's memory is still at its source".into() };
    }

    /// Sends, if the source can be heard.
    pub(super) fn say(&mut self, message: Control) {
        if !self.deaf || self.rest.is_none() {
            self.actions.push(Action::Send(message));
        }
    }

    pub(super) fn acknowledge_rest(&mut self, ack: Ack) {
        if self.rest.is_some() {
            self.say(Control::Ack(ack));
        }
    }

    pub(super) fn touched(&mut self, pages: Vec<u64>) {
        // What is asked for while the line is down is named again when the source has come back.
        if self.rest.is_some() {
            self.say(Control::Want(Want { pages }));
        }
    }

    pub(super) fn whole(&mut self, whole: Whole) {
        let Some(rest) = &mut self.rest else { return };
        rest.whole = Some(whole);
        if rest.ran.is_some() {
            return self.say(Control::Whole(whole));
        }
        // It has everything: it may take over.
        if matches!(self.witness, Witness::Blind { .. }) {
            self.witness = Witness::None;
        }
    }

    /// The vCPUs run.
    pub(super) fn follow(&mut self, epoch: Epoch, resumed: Resumed) {
        self.state = State::Following { epoch };
        let Some(rest) = &mut self.rest else { return };
        rest.ran = Some((self.now, resumed));
        if let Some(whole) = rest.whole {
            self.say(Control::Whole(whole));
        }
    }

    /// Any connection's end is the end of all: what was on its way is lost.
    pub(super) fn line_broke(&mut self, error: godwit_types::ApiError) {
        if !std::mem::replace(&mut self.deaf, true) {
            self.actions.push(Action::Disconnect);
        }
        self.doubt_or_fail(error, false);
    }

    pub(super) fn rejoined(&mut self) {
        if !self.awaits_source() {
            return;
        }
        (self.deaf, self.broken, self.heard) = (false, None, self.now);
        let welcome = Welcome { post_copy: true, verify: self.verify, ..Welcome::default() };
        self.actions.push(Action::Send(Control::Welcome(welcome)));
        self.actions.push(Action::SendMissing);
        let Some(Rest { whole, ran: Some((ran, resumed)) }) = self.rest else { return };
        let ago_us = (self.now.saturating_sub(ran).as_micros() as u64).max(1);
        self.actions.push(Action::Send(Control::Resumed(Resumed { ago_us, ..resumed })));
        if let Some(whole) = whole {
            self.actions.push(Action::Send(Control::Whole(whole)));
        }
    }

    pub(super) fn following_tick(&mut self) {
        let State::Following { epoch } = self.state else { return };
        let away = self.now.saturating_sub(self.heard);
        if away < self.setup.tuning.rejoin {
            return;
        }
        if self.is_whole() {
            // The source never heard that it may end, which harms nobody here.
            self.end(Ok(epoch));
        } else {
            self.fail(failure::stayed_away(&self.source, away), true);
        }
    }
}
