//! What the manager sees of the hosts: the answers to its polls, and their heartbeats.

use godwit_manager::Power;
use godwit_manager::arbiter::MigrationState;
use godwit_manager::news::{News, REPORTS_BELIEVED, news};
use godwit_manager::settle::{DestinationView, SourceView};
use godwit_types::Epoch;
use godwit_types::agent::LocalState;
use godwit_types::migration::{Blackout, BytesByKind, MigrationOutcome, MigrationReport, Phase};

use super::agent::{Outcome, Outgoing};
use super::choice::Call;
use super::{FIRST, Life, MIGRATION, NEXT, Side, World, broken};

impl World {
    pub(crate) fn source_view(&self, late: bool, unheard: bool) -> SourceView {
        let agent = &self.agents[0];
        match agent.outgoing {
            _ if unheard || !agent.is_reachable() => {
                SourceView::Silent { error: broken(), out_of_patience: late }
            }
            Outgoing::Unknown => SourceView::Unknown,
            Outgoing::Working => SourceView::Working(None),
            Outgoing::Ended(outcome) => SourceView::Ended(match outcome {
                Outcome::Completed => MigrationOutcome::Completed { report: Box::new(report()) },
                Outcome::Failed => MigrationOutcome::Failed { phase: Phase::Switchover, error: broken() },
                Outcome::Died => MigrationOutcome::Died { error: broken() },
                Outcome::HandedOver => MigrationOutcome::HandedOver { error: broken() },
            }),
        }
    }

    pub(crate) fn destination_view(&self, late: bool, unheard: bool) -> DestinationView {
        if unheard || !self.agents[1].is_reachable() {
            return DestinationView::Silent { error: broken(), out_of_patience: late };
        }
        match self.local(Side::Destination) {
            Some((state, NEXT)) => DestinationView::State(state),
            _ => DestinationView::Absent,
        }
    }

    /// What an agent says of its process, and the process's epoch.
    pub(crate) fn local(&self, side: Side) -> Option<(LocalState, Epoch)> {
        let agent = &self.agents[side.index()];
        let state = match side {
            Side::Source if self.source.is_some() => match agent.outgoing {
                _ if agent.handed_over => LocalState::HandedOver,
                Outgoing::Working => LocalState::Outgoing,
                _ => LocalState::Running,
            },
            Side::Destination => match &self.destination {
                Some(destination) if destination.runs() => LocalState::Running,
                Some(destination) if destination.life == Life::Paused && !agent.blind => LocalState::Prepared,
                Some(_) => LocalState::Incoming,
                None => agent.left?,
            },
            Side::Source => agent.left?,
        };
        Some((state, if side == Side::Source { FIRST } else { NEXT }))
    }

    /// A heartbeat arrives: what `heartbeat::record` makes of it.
    pub(crate) fn reported(&mut self, side: Side) {
        let Some(local) = self.net.reports[side.index()].take() else { return };
        if matches!(local, Some(LocalState::Incoming | LocalState::Prepared))
            && self.manager.rows.migration.state == MigrationState::Aborted
            && !self.net.calls.contains(&Call::DiscardIncoming)
        {
            self.net.calls.push(Call::DiscardIncoming);
        }
        let rows = &mut self.manager.rows;
        let epoch = if side == Side::Source { FIRST } else { NEXT };
        if rows.owned.owner != side.host() || rows.ending.is_none() {
            return;
        }
        let local = local.filter(|_| rows.owned.epoch == epoch);
        match news(rows.power, rows.owned.claimed, rows.missing, local) {
            News::AsKnown => rows.missing = 0,
            News::Runs => {
                rows.power = Power::Running;
                (rows.owned.claimed, rows.missing) = (true, 0);
            }
            News::Stopped => rows.power = Power::Stopped,
            News::Crashed => rows.power = Power::Crashed,
            News::Missing(count) if count < REPORTS_BELIEVED => rows.missing = count,
            News::Missing(_) => (rows.missing, rows.power) = (0, Power::Crashed),
        }
    }
}

fn report() -> MigrationReport {
    MigrationReport {
        migration: MIGRATION,
        from: Side::Source.host(),
        to: Side::Destination.host(),
        total_ms: 0.0,
        blackout: Blackout::default(),
        predicted_blackout_ms: 0.0,
        rounds: 1,
        bytes: BytesByKind::default(),
        goodput_bytes_per_s: 0,
        busy_ms: 1000.0,
        later_bytes_per_s: None,
        capped: false,
        predicted: None,
        post_copy: None,
        verified: None,
        guest_clock: None,
        slowed: Vec::new(),
    }
}
