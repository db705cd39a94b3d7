//! Two connections, each in order; either can break, and everything can fall silent.

use std::collections::VecDeque;

use godwit_migration::wire::Hello;

use super::ToSource;

pub(crate) enum ToDestination {
    Hello(Box<Hello>),
    Control(ToSource),
    State(u32),
    End,
}

/// A round and one page with its content; no page is the round's end.
type Record = (u32, Option<(usize, u32)>);

#[derive(Default)]
pub(crate) struct Network {
    pub(crate) to_destination: VecDeque<ToDestination>,
    pub(crate) to_source: VecDeque<ToSource>,
    /// Rounds given to the page stream, with the pages that are not read yet.
    pub(crate) rounds: VecDeque<(u32, Vec<usize>)>,
    pub(crate) records: VecDeque<Record>,
    /// Nothing arrives any more, and nobody is told.
    pub(crate) silent: bool,
    to_destination_closed: bool,
    to_source_closed: bool,
    source_told: bool,
    destination_told: bool,
    pages_cut: bool,
    source_told_pages: bool,
    destination_told_pages: bool,
}

impl Network {
    /// Breaks all connections; so many messages on their way still arrive.
    pub(crate) fn cut(&mut self, to_destination: usize, to_source: usize) {
        self.to_destination.truncate(to_destination);
        self.to_source.truncate(to_source);
        (self.to_destination_closed, self.to_source_closed) = (true, true);
        self.cut_pages();
    }

    pub(crate) fn cut_pages(&mut self) {
        self.pages_cut = true;
        self.records.truncate(1);
        self.rounds.clear();
    }

    /// The source has closed its side; what it sent before still arrives.
    pub(crate) fn close_to_destination(&mut self) {
        self.to_destination_closed = true;
        self.pages_cut = true;
    }

    pub(crate) fn close_to_source(&mut self) {
        self.to_source_closed = true;
        self.pages_cut = true;
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.silent
            || (self.to_destination.is_empty()
                && self.to_source.is_empty()
                && self.rounds.is_empty()
                && self.records.is_empty())
    }

    pub(crate) fn next_to_destination(&mut self) -> Option<ToDestination> {
        if self.silent {
            return None;
        }
        let next = self.to_destination.pop_front();
        if next.is_none()
            && self.to_destination_closed
            && !std::mem::replace(&mut self.destination_told, true)
        {
            return Some(ToDestination::End);
        }
        next
    }

    pub(crate) fn next_to_source(&mut self) -> Option<ToSource> {
        if self.silent { None } else { self.to_source.pop_front() }
    }

    /// Once, after the last message.
    pub(crate) fn source_sees_the_end(&mut self) -> bool {
        !self.silent && self.to_source_closed && !std::mem::replace(&mut self.source_told, true)
    }

    pub(crate) fn pages_open(&self) -> bool {
        !self.pages_cut
    }

    pub(crate) fn source_sees_broken_pages(&mut self) -> bool {
        !self.silent && !std::mem::replace(&mut self.source_told_pages, true)
    }

    pub(crate) fn next_record(&mut self) -> Option<Record> {
        if self.silent { None } else { self.records.pop_front() }
    }

    pub(crate) fn destination_sees_broken_pages(&mut self) -> bool {
        !self.silent && self.pages_cut && !std::mem::replace(&mut self.destination_told_pages, true)
    }
}
