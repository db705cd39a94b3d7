//! After the commit, when part of memory is still here: the source serves it until the destination has all.
//!
//! ```text
//!  HandingOver --> Up <----------------------------------+
//!                  | lost, silent                        | new connections
//!                  v                                     |
//!                 Down --(back-off)--> connecting -------+
//!                  ^                       | failed
//!                  +-----------------------+
//!
//!  Up --WHOLE--> Ended: Completed      Up --ERROR--> Ended: HandedOver      Down, for too long --> Ended: HandedOver
//! ```
//!
//! The guest stands here, so that a page never changes any more: it can be sent twice, and whatever the network has lost
//! is named again by the destination.

use std::time::Duration;

use godwit_types::migration::PostCopyReport;
use godwit_types::{ApiError, Epoch};

use super::{Action, Engine, State};
use crate::failure;
use crate::report::ms;
use crate::wire::{Committed, Control, Done, Resumed, WANT_PAGES_MAX, Want, Whole};

/// Between two attempts to connect again, the first and the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How the destination can be reached.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    Up,
    /// Since when, and when to connect again; none while that is under way.
    Down {
        since: Duration,
        try_at: Option<Duration>,
        backoff: Duration,
    },
}

/// What is known of the part of memory that follows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rest {
    /// Pages that were missing at the destination when the guest was stopped.
    pub(super) pages: u64,
    /// When the guest ran there, by this side's clock, and how long that took.
    resumed: Option<Duration>,
    /// Connections that were made again.
    session: u32,
}

impl Engine {
    /// Whether the destination may ask for pages.
    pub(super) fn is_asked_for_pages(&self) -> bool {
        let since_state = matches!(
            self.state,
            State::Preparing | State::Committing { .. } | State::HandingOver { .. } | State::Serving { .. }
        );
        self.rest.is_some() && since_state
    }

    pub(super) fn wanted(&mut self, Want { mut pages }: Want) {
        pages.truncate(WANT_PAGES_MAX);
        self.actions.push(Action::Serve { pages });
    }

    /// The commit was granted, and the locks are dropped.
    pub(super) fn serve(&mut self, epoch: Epoch) {
        self.state = State::Serving { epoch, line: Line::Up };
        match self.deaf.take().or(self.broken.take().map(|(_, error)| error)) {
            Some(error) => self.line_broke(error),
            None => {
                self.actions.push(Action::Send(Control::Committed(Committed { epoch: epoch.0 })));
                self.actions.push(Action::PushRest);
            }
        }
    }

    /// The destination cannot be heard any more: the guest there goes on with what it has, until it needs more.
    pub(super) fn line_broke(&mut self, error: ApiError) {
        let State::Serving { line, .. } = &mut self.state else { return };
        if *line == Line::Up {
            *line = Line::Down { since: self.now, try_at: Some(self.now), backoff: BACKOFF_MIN };
            self.deaf = Some(error);
            self.actions.push(Action::Disconnect);
            self.connect_again();
        }
    }

    fn connect_again(&mut self) {
        let (now, rejoin) = (self.now, self.setup.tuning.rejoin);
        let State::Serving { line: Line::Down { since, try_at, .. }, .. } = &mut self.state else { return };
        if now >= *since + rejoin {
            let waited = now - *since;
            let error = failure::stayed_away(&self.peer(), waited);
            return self.end_unconfirmed(error);
        }
        if try_at.is_some_and(|at| now >= at) {
            *try_at = None;
            if let Some(rest) = &mut self.rest {
                rest.session += 1;
                self.actions.push(Action::Reconnect { session: rest.session });
            }
        }
    }

    pub(super) fn reconnected(&mut self, result: Result<(), ApiError>) {
        let State::Serving { epoch, line } = &mut self.state else { return };
        let Line::Down { try_at: try_at @ None, backoff, .. } = line else { return };
        match result {
            Ok(()) => {
                let epoch = epoch.0;
                *line = Line::Up;
                (self.heard, self.deaf, self.broken) = (self.now, None, None);
                // What is to be pushed, it will say itself.
                self.actions.push(Action::Send(Control::Committed(Committed { epoch })));
            }
            Err(_) => {
                *try_at = Some(self.now + *backoff);
                *backoff = (*backoff * 2).min(BACKOFF_MAX);
            }
        }
    }

    /// The destination has said what it does not have.
    pub(super) fn missing_named(&mut self) {
        if matches!(self.state, State::Serving { line: Line::Up, .. }) {
            self.actions.push(Action::PushRest);
        }
    }

    pub(super) fn serving_tick(&mut self) {
        match &self.state {
            State::Serving { line: Line::Up, .. } => {
                let silence = self.now.saturating_sub(self.heard);
                if silence >= self.setup.tuning.peer_silent {
                    self.line_broke(failure::silent(&self.peer(), silence));
                }
            }
            _ => self.connect_again(),
        }
    }

    pub(super) fn runs_there(&mut self, resumed: Resumed) {
        let ago = Duration::from_micros(resumed.ago_us);
        self.timeline.resumed(self.now, resumed);
        let timeline = self.timeline;
        if let Some(rest) = &mut self.rest {
            // Said again, it no longer tells how long its flight took.
            let ran = if ago.is_zero() { timeline.running() } else { self.now.saturating_sub(ago) };
            rest.resumed.get_or_insert(ran);
        }
    }

    pub(super) fn has_resumed(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.resumed.is_some())
    }

    pub(super) fn whole(&mut self, whole: Whole) {
        let Some(Rest { pages, resumed: Some(ran), session }) = self.rest.clone() else {
            return self.fail(failure::out_of_turn(&self.peer(), "WHOLE"), true);
        };
        self.actions.push(Action::Send(Control::Done(Done {})));
        let ms_of = |us| ms(Duration::from_micros(us));
        let report = PostCopyReport {
            pages,
            faults: whole.faults,
            waited_ms: ms_of(whole.waited_us),
            longest_wait_ms: ms_of(whole.longest_us),
            rest_ms: ms(self.now.saturating_sub(ran)),
            reconnects: session,
        };
        self.complete(ran, Some(report), whole.memory);
    }
}
