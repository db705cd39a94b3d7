//! What tells two worlds apart, but for the time on their clocks.

use std::hash::{DefaultHasher, Hash, Hasher};

use godwit_manager::settle::{DestinationView, SourceView};
use godwit_migration::wire::Control;
use godwit_types::migration::MigrationOutcome;
use godwit_types::ownership::Verdict;

use super::World;
use super::agent::Agent;
use super::manager::{Drive, Rows};
use super::network::{Frame, Reply};

impl World {
    /// A hash of everything that decides what can happen from here on. Timestamps are left out: which deadline fires
    /// next is a choice, not a number.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let h = &mut hasher;
        if let Some(source) = &self.source {
            (1u8, source.life, &source.memory, source.asks, source.outcome, source.fail_next).hash(h);
            (source.storing.is_some(), &source.rest, source.vcpus.is_slowed()).hash(h);
            source.todo.iter().for_each(|action| std::mem::discriminant(action).hash(h));
            source.engine.iter().for_each(|engine| engine.fingerprint(h));
        }
        if let Some(it) = &self.destination {
            (2u8, it.life, &it.memory, it.asks, it.greeted, it.committed, it.fail_next).hash(h);
            (it.storing.is_some(), it.acked.pages, it.acked.round).hash(h);
            it.todo.iter().for_each(|action| std::mem::discriminant(action).hash(h));
            (&it.witness, &it.rest).hash(h);
            it.engine.fingerprint(h);
        }
        for agent in &self.agents {
            hash_agent(agent, h);
        }
        (&self.guest, self.killed, self.ran, self.granted, self.heir, self.forsaken).hash(h);
        (self.disk.content, self.disk.record.epoch, self.disk.record.ran_on_after, self.disk.holders).hash(h);
        self.hash_manager(h);
        self.hash_network(h);
        hasher.finish()
    }

    fn hash_manager(&self, h: &mut DefaultHasher) {
        let manager = &self.manager;
        (manager.down, manager.in_doubt).hash(h);
        for rows in [&manager.rows, &manager.durable] {
            hash_rows(rows, h);
        }
        std::mem::discriminant(&manager.drive).hash(h);
        match &manager.drive {
            Drive::HearSource(view) | Drive::AskDestination(view) => hash_source(view, h),
            Drive::HearDestination(source, destination, late) => {
                hash_source(source, h);
                hash_destination(destination, h);
                late.hash(h);
            }
            Drive::HearHeir(heir, late) => {
                hash_destination(heir, h);
                late.hash(h);
            }
            _ => {}
        }
    }

    fn hash_network(&self, h: &mut DefaultHasher) {
        let net = &self.net;
        for frame in &net.to_destination.queue {
            match frame {
                Frame::Hello(_) => 0u8.hash(h),
                Frame::Control(message) => hash_control(message, h),
                Frame::State { last_round, rest } => (last_round, rest).hash(h),
                Frame::Pages(pages) => pages.hash(h),
            }
        }
        for reply in &net.to_source.queue {
            match reply {
                Reply::Control(message) => hash_control(message, h),
                Reply::Missing(pages) => pages.hash(h),
            }
        }
        (net.to_destination.closed, net.to_destination.told, net.to_source.closed, net.to_source.told)
            .hash(h);
        (&net.pages.rounds, &net.pages.records, net.pages.cut, net.pages.told, net.silent, net.connecting)
            .hash(h);
        for question in &net.questions {
            (question.live, &question.stale, question.ever, question.dead).hash(h);
            question.verdict.as_ref().map(std::mem::discriminant::<Verdict>).hash(h);
        }
        (&net.calls, &net.carried_out, net.reply).hash(h);
        for report in &net.reports {
            report.map(|local| local.map(|state| std::mem::discriminant(&state))).hash(h);
        }
    }
}

fn hash_agent(agent: &Agent, h: &mut DefaultHasher) {
    (agent.down, agent.isolated, agent.waiting, agent.handed_over, agent.outgoing).hash(h);
    (agent.claiming, agent.claimed, agent.settled, agent.blind).hash(h);
    agent.left.as_ref().map(std::mem::discriminant).hash(h);
}

fn hash_control(message: &Control, h: &mut DefaultHasher) {
    message.name().hash(h);
    if let Control::Ack(ack) = message {
        (ack.pages, ack.round).hash(h);
    }
    if let Control::Want(want) = message {
        want.hash(h);
    }
}

fn hash_destination(view: &DestinationView, h: &mut DefaultHasher) {
    std::mem::discriminant(view).hash(h);
    match view {
        DestinationView::State(state) => std::mem::discriminant(state).hash(h),
        DestinationView::Silent { out_of_patience, .. } => out_of_patience.hash(h),
        DestinationView::Absent => {}
    }
}

fn hash_source(view: &SourceView, h: &mut DefaultHasher) {
    std::mem::discriminant(view).hash(h);
    match view {
        SourceView::Ended(outcome) => std::mem::discriminant::<MigrationOutcome>(outcome).hash(h),
        SourceView::Silent { out_of_patience, .. } => out_of_patience.hash(h),
        SourceView::Working(_) | SourceView::Unknown => {}
    }
}

fn hash_rows(rows: &Rows, h: &mut DefaultHasher) {
    (rows.owned.epoch, rows.owned.claimed, rows.missing, rows.cancelling, rows.closing, rows.ending).hash(h);
    std::mem::discriminant(&rows.migration.state).hash(h);
    std::mem::discriminant(&rows.power).hash(h);
}
